"""SigLIP's attention pooling of an image's patches."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from unime_jax.models import attention, precision
from unime_jax.models.layers import LayerNorm, Linear
from unime_jax.models.vit import MLP, VisionConfig


class ProbeAttention(nnx.Module):
    """Attention of one query; queries, keys and values are one tensor, as in the checkpoints."""

    def __init__(self, width: int, heads: int, *, key: jax.Array):
        in_proj, out = jax.random.split(key)
        self.in_proj_weight = nnx.Param(
            jax.random.normal(in_proj, (3 * width, width)) * width**-0.5
        )
        self.in_proj_bias = nnx.Param(jnp.zeros(3 * width))
        self.out_proj = Linear(width, width, bias=True, key=out)
        self.num_heads = heads

    def __call__(
        self,
        probe: Float[Array, "tiles 1 width"],
        x: Float[Array, "tiles P width"],
        implementation: attention.Implementation,
        length: Int[Array, " tiles"] | None,
    ) -> Float[Array, "tiles 1 width"]:
        weights = jnp.split(self.in_proj_weight[...].astype(x.dtype), 3)
        biases = jnp.split(self.in_proj_bias[...].astype(x.dtype), 3)
        q, k, v = (
            (jnp.matmul(y, w.T, precision=precision.of(x.dtype)) + b).reshape(
                *y.shape[:2], self.num_heads, -1
            )
            for y, w, b in zip((probe, x, x), weights, biases, strict=True)
        )
        y = attention.attend(q, k, v, causal=False, length=length, implementation=implementation)
        return self.out_proj(y.reshape(probe.shape))


class PoolingHead(nnx.Module):
    """Attention pooling: a learned probe attends to all patches, or to the first `length`."""

    def __init__(self, config: VisionConfig, *, key: jax.Array):
        probe, attend, mlp = jax.random.split(key, 3)
        width = config.hidden_size
        self.probe = nnx.Param(jax.random.normal(probe, (1, 1, width)))
        self.attention = ProbeAttention(width, config.num_heads, key=attend)
        self.layernorm = LayerNorm(width, epsilon=config.layer_norm_eps)
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act, key=mlp)

    def __call__(
        self,
        x: Float[Array, "tiles P width"],
        implementation: attention.Implementation,
        *,
        length: Int[Array, " tiles"] | None = None,
    ) -> Float[Array, "tiles width"]:
        probe = self.probe[...].astype(x.dtype)
        probe = jnp.broadcast_to(probe, (len(x), 1, x.shape[-1]))
        y = self.attention(probe, x, implementation, length)
        return (y + self.mlp(self.layernorm(y)))[:, 0]
