"""Dense layers and norms; LoRA and DoRA are a side path inside `Linear`.

A frozen kernel takes part in the forward and in the gradient of its input, and costs no weight
gradient.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Int8

from unime_jax.models import precision, quantization
from unime_jax.models.settings import Part

TINY = 1e-30  # below any squared norm that a trained kernel has

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}


class Linear(nnx.Module):
    """y = x W + b, with W stored [in, out]; `lora.add` attaches an adapter.

    With a `kernel_scale` (`quantize`), the kernel is int8 codes. `part` of its layer: policies of
    `scan.run` know the product by it, whatever it is made of, so that gradients find it.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        key: jax.Array,
        part: Part = "projection",
    ):
        kernel = jax.random.normal(key, (in_features, out_features)) * in_features**-0.5
        self.kernel = nnx.Param(kernel)
        self.kernel_scale: nnx.Param | None = nnx.data(None)
        self.bias = nnx.Param(jnp.zeros(out_features)) if bias else nnx.data(None)
        self.lora_a: nnx.Param | None = nnx.data(None)
        self.lora_b: nnx.Param | None = nnx.data(None)
        self.lora_magnitude: nnx.Param | None = nnx.data(None)
        self.lora_norm: nnx.Param | None = nnx.data(None)  # see `lora.column_norms`
        self.lora_scale = 0.0
        self.part = part
        self.whole: nnx.Param | None = nnx.data(None)  # the kernel to multiply by, see `gather`

    def __call__(self, x: Float[Array, "*any in"]) -> Float[Array, "*any out"]:
        scale = None if self.kernel_scale is None else self.kernel_scale[...]
        kernel = self.kernel[...] if self.whole is None else self.whole[...]
        if scale is None:
            y = _product(x, kernel.astype(x.dtype))
        else:
            y = quantization.matmul(x, kernel, scale)
        if self.lora_a is not None and self.lora_b is not None:
            a, b = self.lora_a[...].astype(x.dtype), self.lora_b[...].astype(x.dtype)
            y = y + _product(_product(x, a), b) * self.lora_scale
        y = checkpoint_name(y, self.part)  # before the magnitude, whose gradient needs it
        if self.lora_magnitude is not None:
            norm = self.column_norm() if self.lora_norm is None else self.lora_norm[...]
            y = y * (self.lora_magnitude[...] / norm).astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return y

    def column_norm(self) -> Float[Array, "*L out"]:
        """Norm of each column of the kernel with its adapter, a constant to the gradient (DoRA).

        A stack is walked layer by layer, so that one layer at a time is in float32.
        """
        parts = self.kernel, self.kernel_scale, self.lora_a, self.lora_b
        leaves = [None if x is None else jax.lax.stop_gradient(x[...]) for x in parts]

        def norm(leaves: Sequence[Any]) -> jax.Array:
            kernel, scale, a, b = leaves
            return merged_norm(kernel, scale, a, b * self.lora_scale)

        return norm(leaves) if self.kernel[...].ndim == 2 else jax.lax.map(norm, leaves)


def linears(model: nnx.Module) -> Iterator[tuple[str, Linear]]:
    """The linear layers of a model, or stacks of them, by path."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            yield ".".join(map(str, path)), module


def quantize(model: nnx.Module, kernels: Container[str]) -> None:
    """Puts int8 codes and their scales in the place of these kernels, by their paths."""
    for path, linear in linears(model):
        if f"{path}.kernel" in kernels:
            codes, scale = quantization.quantize(linear.kernel[...])
            linear.kernel, linear.kernel_scale = nnx.Param(codes), nnx.Param(scale)


def merged_norm(
    kernel: Float[Array, "in out"] | Int8[Array, "in out"],
    scale: Float[Array, " out"] | None,
    a: Float[Array, "in rank"],
    b: Float[Array, "rank out"],
) -> Float[Array, " out"]:
    """Norm of each column of kernel + a b, a constant to the gradient (DoRA, section 4.3).

    Expanded so that no [in, out] temporary is made beside the kernel. Never zero: a dead column of
    the kernel has magnitude zero, and stays dead instead of becoming 0 / 0.
    """
    w, a, b = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (kernel, a, b))
    projected = _product(a.T, w)
    if scale is None:
        own = jnp.sum(w * w, axis=0)
    else:
        own, projected = quantization.square_sum(kernel, scale), projected * scale
    square = jnp.sum(_product(_product(a.T, a), b) * b, axis=0)
    return jnp.sqrt(jnp.maximum(own + 2 * jnp.sum(projected * b, axis=0) + square, TINY))


@jax.custom_vjp
def _product(a: Float[Array, "*any in"], b: Float[Array, "in out"]) -> Float[Array, "*any out"]:
    """a b, whose gradient of `b` is a product of `a` and the cotangent as they lie in memory.

    Autodiff's own is the transpose of one of the cotangent, transposed. On CPUs XLA makes that
    transpose in the loop that computes the cotangent, which then walks all its inputs in strides.
    """
    return _matmul(a, b)


def _matmul(a: Float[Array, "*any in"], b: Float[Array, "in out"]) -> Float[Array, "*any out"]:
    return jnp.matmul(a, b, precision=precision.of(a.dtype))


def _forward(a: Any, b: Any) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
    kept = a.value if b.perturbed else None, b.value if a.perturbed else None
    return _matmul(a.value, b.value), kept  # a dot to policies of what is kept


def _backward(
    kept: tuple[jax.Array | None, jax.Array | None], cotangent: Any
) -> tuple[jax.Array | None, jax.Array | None]:
    a, b = kept
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None
    asked = precision.of(cotangent.dtype)
    last, rows = (cotangent.ndim - 1,), tuple(range(cotangent.ndim - 1))
    of_a = of_b = None
    if b is not None:
        of_a = jax.lax.dot_general(cotangent, b, ((last, (1,)), ((), ())), precision=asked)
    if a is not None:
        of_b = jax.lax.dot_general(a, cotangent, ((rows, rows), ((), ())), precision=asked)
    return of_a, of_b


_product.defvjp(_forward, _backward, symbolic_zeros=True)


class Embedding(nnx.Module):
    """A table of vectors, looked up by row; NaN beyond the last, which the host rules out."""

    def __init__(self, rows: int, features: int, *, key: jax.Array):
        self.embedding = nnx.Param(jax.random.normal(key, (rows, features)) * 0.02)

    def __call__(self, index: Int[Array, "*any"], dtype: jnp.dtype) -> Float[Array, "*any width"]:
        return jnp.take(self.embedding[...], index, axis=0, mode="fill").astype(dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm in float32; `weight` comes after the cast, as in transformers."""

    def __init__(self, features: int, *, epsilon: float):
        self.weight = nnx.Param(jnp.ones(features))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*any width"]) -> Float[Array, "*any width"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return y.astype(x.dtype) * self.weight[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm in float32."""

    def __init__(self, features: int, *, epsilon: float):
        self.weight = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*any width"]) -> Float[Array, "*any width"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        y = y * self.weight[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)
