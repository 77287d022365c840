"""The plain vision transformer of SigLIP: patches of one tile attend to each other."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unime_jax.models import attention, scan
from unime_jax.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    hidden_act: str

    @property
    def side(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size


class Attention(nnx.Module):
    """Bidirectional self-attention with biases."""

    def __init__(self, config: VisionConfig, *, key: jax.Array):
        q, k, v, o = jax.random.split(key, 4)
        width = config.hidden_size
        self.q_proj = Linear(width, width, bias=True, key=q)
        self.k_proj = Linear(width, width, bias=True, key=k)
        self.v_proj = Linear(width, width, bias=True, key=v)
        self.out_proj = Linear(width, width, bias=True, key=o)
        self.num_heads = config.num_heads

    def __call__(
        self, x: Float[Array, "B P D"], implementation: attention.Implementation
    ) -> Float[Array, "B P D"]:
        tiles, patches, width = x.shape
        heads = (tiles, patches, self.num_heads, width // self.num_heads)
        q, k, v = (proj(x).reshape(heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = attention.attend(q, k, v, causal=False, implementation=implementation)
        return self.out_proj(y.reshape(tiles, patches, width))


class MLP(nnx.Module):
    """Two-layer feed-forward block."""

    def __init__(self, config: VisionConfig, *, key: jax.Array):
        up, down = jax.random.split(key)
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True, key=up)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True, key=down)
        self.hidden_act = config.hidden_act

    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        return self.fc2(ACTIVATIONS[self.hidden_act](self.fc1(x)))


class Layer(nnx.Module):
    """Pre-norm residual layer."""

    def __init__(self, config: VisionConfig, *, key: jax.Array):
        attention_key, mlp_key = jax.random.split(key)
        self.layer_norm1 = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.self_attn = Attention(config, key=attention_key)
        self.layer_norm2 = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.mlp = MLP(config, key=mlp_key)

    def __call__(
        self, x: Float[Array, "B P D"], implementation: attention.Implementation
    ) -> Float[Array, "B P D"]:
        x = x + self.self_attn(self.layer_norm1(x), implementation)
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nnx.Module):
    """Patch projection (a convolution whose stride is its size) plus learned positions."""

    def __init__(self, config: VisionConfig, *, key: jax.Array):
        patch, position = jax.random.split(key)
        values = 3 * config.patch_size**2
        self.patch_embedding = Linear(values, config.hidden_size, bias=True, key=patch)
        self.position_embedding = Embedding(config.side**2, config.hidden_size, key=position)

    def __call__(self, patches: Float[Array, "B P C"]) -> Float[Array, "B P D"]:
        position = jnp.arange(patches.shape[1])
        return self.patch_embedding(patches) + self.position_embedding(position, patches.dtype)


class Encoder(nnx.Module):
    """The stacked layers."""

    def __init__(self, config: VisionConfig, *, key: jax.Array):
        self.layers = scan.stack(lambda k: Layer(config, key=k), config.num_layers, key)


class VisionTower(nnx.Module):
    """Patch features of each tile from the last layer, before any final norm."""

    def __init__(self, config: VisionConfig, *, key: jax.Array):
        embeddings, encoder = jax.random.split(key)
        self.embeddings = Embeddings(config, key=embeddings)
        self.encoder = Encoder(config, key=encoder)
        # LLaVA reads the features in front of it: never applied, kept so that a checkpoint
        # comes back with every tensor it had.
        self.post_layernorm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def __call__(
        self,
        patches: Float[Array, "B P C"],
        *,
        remat: scan.Remat,
        implementation: attention.Implementation,
    ) -> Float[Array, "B P D"]:
        """Features of normalised pixel patches, each flattened as (channel, y, x)."""
        return scan.run(
            self.encoder.layers,
            lambda layer, x: layer(x, implementation),
            self.embeddings(patches),
            remat=remat,
        )
