"""NV-Embed's pooler before the mean: tokens look up trained latents (Lee et al. 2024, 3.2)."""

import dataclasses

import jax
from flax import nnx
from jaxtyping import Array, Float

from unime_jax.models import attention
from unime_jax.models.layers import ACTIVATIONS, LayerNorm, Linear

EPSILON = 1e-5  # of the layer norms


@dataclasses.dataclass(frozen=True)
class LatentAttentionConfig:
    hidden_size: int  # of tokens and latents
    num_latents: int
    num_heads: int
    head_dim: int


class CrossAttention(nnx.Module):
    """Tokens are the queries; the latents, the same for every row, are keys and values."""

    def __init__(self, config: LatentAttentionConfig, *, key: jax.Array):
        q, k, v, out = jax.random.split(key, 4)
        width, inner = config.hidden_size, config.num_heads * config.head_dim
        self.norm = LayerNorm(width, epsilon=EPSILON)
        self.norm_context = LayerNorm(width, epsilon=EPSILON)
        self.to_q = Linear(width, inner, bias=False, key=q)
        self.to_k = Linear(width, inner, bias=False, key=k)
        self.to_v = Linear(width, inner, bias=False, key=v)
        self.to_out = Linear(inner, width, bias=False, key=out)
        self.head_dim = config.head_dim

    def __call__(
        self, x: Float[Array, "R T D"], latents: Float[Array, "latents D"]
    ) -> Float[Array, "R T D"]:
        rows, tokens, _ = x.shape
        context = self.norm_context(latents)
        heads = (1, len(latents), -1, self.head_dim)
        k, v = (linear(context).reshape(heads) for linear in (self.to_k, self.to_v))
        # All tokens are one row to attention, so that keys and values are not copied for each. A
        # flash kernel does not do such heads; there are few keys, and the scores are small.
        q = self.to_q(self.norm(x)).reshape(1, rows * tokens, -1, self.head_dim)
        y = attention.attend(q, k, v, causal=False, implementation="xla")
        return self.to_out(y.reshape(rows, tokens, -1))


class FeedForward(nnx.Module):
    """GEGLU (Shazeer 2020): down(value(x) * gelu(gate(x)))."""

    def __init__(self, features: int, *, key: jax.Array):
        value, gate, down = jax.random.split(key, 3)
        self.norm = LayerNorm(features, epsilon=EPSILON)
        self.value = Linear(features, 4 * features, bias=True, key=value)
        self.gate = Linear(features, 4 * features, bias=True, key=gate)
        self.down = Linear(4 * features, features, bias=True, key=down)

    def __call__(self, x: Float[Array, "R T D"]) -> Float[Array, "R T D"]:
        x = self.norm(x)
        return self.down(self.value(x) * ACTIVATIONS["gelu"](self.gate(x)))


class LatentAttention(nnx.Module):
    """Two pre-norm residual blocks over the decoder's hidden states."""

    def __init__(self, config: LatentAttentionConfig, *, key: jax.Array):
        latents, cross_attention, feed_forward = jax.random.split(key, 3)
        self.latents = nnx.Param(
            jax.random.normal(latents, (config.num_latents, config.hidden_size))
        )
        self.cross_attention = CrossAttention(config, key=cross_attention)
        self.feed_forward = FeedForward(config.hidden_size, key=feed_forward)

    def __call__(self, x: Float[Array, "R T D"]) -> Float[Array, "R T D"]:
        """A vector for every token, padding included: tokens do not see each other here."""
        x = x + self.cross_attention(x, self.latents[...].astype(x.dtype))
        return x + self.feed_forward(x)
