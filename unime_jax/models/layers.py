"""Dense layers and norms; LoRA and DoRA live inside `Linear` as a side path.

Because the adapter is a side path, the frozen kernel takes part in the forward and in the gradient
of its input, but never costs a weight gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

TINY = 1e-30  # below any squared norm that a trained kernel has

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}


class Linear(nnx.Module):
    """y = x W + b, with W stored [in, out]; `lora.add` attaches an adapter."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, key: jax.Array):
        kernel = jax.random.normal(key, (in_features, out_features)) * in_features**-0.5
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(out_features)) if bias else nnx.data(None)
        self.lora_a: nnx.Param | None = nnx.data(None)
        self.lora_b: nnx.Param | None = nnx.data(None)
        self.lora_magnitude: nnx.Param | None = nnx.data(None)
        self.lora_scale = 0.0

    def __call__(self, x: Float[Array, "*B in"]) -> Float[Array, "*B out"]:
        y = x @ self.kernel[...].astype(x.dtype)
        if self.lora_a is not None and self.lora_b is not None:
            a, b = self.lora_a[...].astype(x.dtype), self.lora_b[...].astype(x.dtype)
            y = y + (x @ a) @ b * self.lora_scale
            if self.lora_magnitude is not None:
                norm = merged_norm(
                    self.kernel[...], self.lora_a[...], self.lora_b[...] * self.lora_scale
                )
                y = y * (self.lora_magnitude[...] / norm).astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return y


def merged_norm(
    kernel: Float[Array, "in out"], a: Float[Array, "in R"], b: Float[Array, "R out"]
) -> Float[Array, " out"]:
    """Norm of each column of kernel + a b, a constant to the gradient (DoRA, section 4.3).

    Expanded so that no [in, out] temporary besides the kernel itself is made. Never zero: a dead
    column of the kernel has magnitude zero, and stays dead instead of becoming 0 / 0.
    """
    w, a, b = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (kernel, a, b))
    cross = jnp.sum((a.T @ w) * b, axis=0)
    square = jnp.sum(((a.T @ a) @ b) * b, axis=0)
    return jnp.sqrt(jnp.maximum(jnp.sum(w * w, axis=0) + 2 * cross + square, TINY))


class Embedding(nnx.Module):
    """A table of vectors, looked up by row."""

    def __init__(self, rows: int, features: int, *, key: jax.Array):
        self.embedding = nnx.Param(jax.random.normal(key, (rows, features)) * 0.02)

    def __call__(self, index: Array, dtype: jnp.dtype) -> Float[Array, "... features"]:
        return jnp.take(self.embedding[...], index, axis=0).astype(dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm in float32; `weight` comes after the cast, as in transformers."""

    def __init__(self, features: int, *, epsilon: float):
        self.weight = nnx.Param(jnp.ones(features))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return y.astype(x.dtype) * self.weight[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm in float32."""

    def __init__(self, features: int, *, epsilon: float):
        self.weight = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        y = y * self.weight[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)
