"""The plain vision transformer of CLIP and SigLIP: patches of one tile attend to each other.

Their text towers are made of the same layers (`dual_encoder`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from unime_jax.models import attention, scan
from unime_jax.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """Sizes of the layers of a tower; `num_layers` are those up to the one that is read."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    layer_norm_eps: float
    hidden_act: str


@dataclasses.dataclass(frozen=True)
class VisionConfig(LayerConfig):
    """CLIP's has a class token, a norm before the layers and no bias on its patch projection."""

    image_size: int
    patch_size: int
    class_token: bool
    pre_norm: bool
    patch_bias: bool

    @property
    def side(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size


class Attention(nnx.Module):
    """Self-attention with biases."""

    def __init__(self, config: LayerConfig, *, key: jax.Array):
        q, k, v, o = jax.random.split(key, 4)
        width = config.hidden_size
        self.q_proj = Linear(width, width, bias=True, key=q)
        self.k_proj = Linear(width, width, bias=True, key=k)
        self.v_proj = Linear(width, width, bias=True, key=v)
        self.out_proj = Linear(width, width, bias=True, key=o)
        self.num_heads = config.num_heads

    @jax.named_scope("attention")
    def __call__(
        self,
        x: Float[Array, "rows tokens width"],
        implementation: attention.Implementation,
        *,
        causal: bool = False,
        length: Int[Array, " rows"] | None = None,
    ) -> Float[Array, "rows tokens width"]:
        """`causal` and `length` are as in `attention.attend`; tokens are a tile's patches, too."""
        heads = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (proj(x).reshape(heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = attention.attend(q, k, v, causal=causal, length=length, implementation=implementation)
        return self.out_proj(y.reshape(x.shape))


class MLP(nnx.Module):
    """Two-layer feed-forward block with biases."""

    def __init__(self, features: int, hidden: int, act: str, *, key: jax.Array):
        up, down = jax.random.split(key)
        self.fc1 = Linear(features, hidden, bias=True, key=up, part="up")
        self.fc2 = Linear(hidden, features, bias=True, key=down)
        self.act = act

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "*any width"]) -> Float[Array, "*any width"]:
        return self.fc2(ACTIVATIONS[self.act](self.fc1(x)))


class Layer(nnx.Module):
    """Pre-norm residual layer."""

    def __init__(self, config: LayerConfig, *, key: jax.Array):
        attention_key, mlp_key = jax.random.split(key)
        self.layer_norm1 = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.self_attn = Attention(config, key=attention_key)
        self.layer_norm2 = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act, key=mlp_key)

    def __call__(
        self,
        x: Float[Array, "rows tokens width"],
        implementation: attention.Implementation,
        *,
        causal: bool = False,
        length: Int[Array, " rows"] | None = None,
    ) -> Float[Array, "rows tokens width"]:
        y = self.layer_norm1(x)
        x = x + self.self_attn(y, implementation, causal=causal, length=length)
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nnx.Module):
    """Patch projection (a convolution whose stride is its size) plus learned positions."""

    def __init__(self, config: VisionConfig, *, key: jax.Array):
        patch, position, first = jax.random.split(key, 3)
        width, values = config.hidden_size, 3 * config.patch_size**2
        self.patch_embedding = Linear(values, width, bias=config.patch_bias, key=patch)
        tokens = config.side**2 + config.class_token
        self.position_embedding = Embedding(tokens, width, key=position)
        token = jax.random.normal(first, (width,)) * width**-0.5
        self.class_embedding = nnx.Param(token) if config.class_token else None

    def __call__(self, patches: Float[Array, "tiles P F"]) -> Float[Array, "tiles positions width"]:
        """positions = P, or P + 1 with the class token in front."""
        x = self.patch_embedding(patches)
        if self.class_embedding is not None:
            first = self.class_embedding[...].astype(x.dtype)
            first = jnp.broadcast_to(first, (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([first, x], axis=1)
        return x + self.position_embedding(jnp.arange(x.shape[1]), x.dtype)


class Encoder(nnx.Module):
    """The stacked layers."""

    def __init__(self, config: LayerConfig, *, key: jax.Array):
        self.layers = scan.stack(lambda k: Layer(config, key=k), config.num_layers, key)


class VisionTower(nnx.Module):
    """Features of each tile from the layer that is read, before any final norm."""

    def __init__(self, config: VisionConfig, *, key: jax.Array):
        embeddings, encoder = jax.random.split(key)
        self.embeddings = Embeddings(config, key=embeddings)
        norm = functools.partial(LayerNorm, config.hidden_size, epsilon=config.layer_norm_eps)
        self.pre_layrnorm = norm() if config.pre_norm else None  # CLIP's own spelling
        self.encoder = Encoder(config, key=encoder)
        # LLaVA reads the features in front of it: never applied there, kept so that a checkpoint
        # comes back with every tensor it had.
        self.post_layernorm = norm()

    def __call__(
        self,
        patches: Float[Array, "tiles P F"],
        *,
        remat: scan.Remat,
        implementation: attention.Implementation,
    ) -> Float[Array, "tiles P width"]:
        """Features of normalised pixel patches, each flattened as (channel, y, x)."""
        x = self.hidden_states(patches, remat=remat, implementation=implementation)
        return x[:, x.shape[1] - patches.shape[1] :]  # without the class token

    @jax.named_scope("vision_tower")
    def hidden_states(
        self,
        patches: Float[Array, "tiles P F"],
        *,
        remat: scan.Remat,
        implementation: attention.Implementation,
    ) -> Float[Array, "tiles positions width"]:
        """As `__call__`, with the class token in front, if there is one."""
        x = self.embeddings(patches)
        if self.pre_layrnorm is not None:
            x = self.pre_layrnorm(x)
        return scan.run(
            self.encoder.layers, lambda layer, x: layer(x, implementation), x, remat=remat
        )
