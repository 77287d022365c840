"""Kernels as int8 codes with one float32 scale per output channel: symmetric, to the nearest.

w[i, o] = codes[i, o] * scale[o] with scale = largest magnitude of the channel / 127. A scale per
output leaves the matmul: x w = (x codes) * scale, so that no float copy of a kernel need exist.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int8

from unime_jax.models import precision

LIMIT = 127
STEP = np.float32(1 / LIMIT)  # compilers make such a factor of a division, NumPy does not
# Channels below this are zero: scales that are denormal numbers would be lost on accelerators.
SMALLEST = LIMIT * float(np.finfo(np.float32).tiny)


def quantize(
    kernel: Float[Array, "*L in out"],
) -> tuple[Int8[Array, "*L in out"], Float32[Array, "*L out"]]:
    """Codes and scales; every element is off by at most half a scale.

    A channel that is not finite has a scale that is not, so that it stays visible.
    """
    kernel = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(kernel), axis=-2)
    scale = jnp.where(largest < SMALLEST, 0.0, largest * STEP)
    inverse = jnp.where(scale == 0, 0.0, 1 / scale)
    return jnp.round(kernel * inverse[..., None, :]).astype(jnp.int8), scale


def quantize_rows(
    rows: Float[np.ndarray, "out in"],
) -> tuple[Int8[np.ndarray, "out in"], Float32[np.ndarray, " out"]]:
    """The same on the host, for output channels as files have them."""
    rows = np.array(rows, np.float32)
    largest = np.max(np.abs(rows), axis=1)
    scale = np.where(largest < SMALLEST, np.float32(0), largest * STEP)
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not finite shows in the scale
        inverse = np.where(scale == 0, np.float32(0), 1 / scale)
        rows *= inverse[:, None]
        return np.rint(rows, out=rows).astype(np.int8), scale


def dequantize(
    codes: Int8[Array, "*L in out"], scale: Float32[Array, "*L out"]
) -> Float32[Array, "*L in out"]:
    """The kernel that the model computes with."""
    return codes.astype(jnp.float32) * scale[..., None, :]


def square_sum(
    codes: Int8[Array, "*L in out"], scale: Float32[Array, "*L out"]
) -> Float32[Array, "*L out"]:
    """Squared norm of each column; the sum is one of integers, so equal on every mesh."""
    return jnp.sum(jnp.square(codes.astype(jnp.int32)), axis=-2).astype(jnp.float32) * scale**2


@jax.custom_vjp
def matmul(
    x: Float[Array, "*any in"], codes: Int8[Array, "in out"], scale: Float32[Array, " out"]
) -> Float[Array, "*any out"]:
    """x w in the dtype of x, with a gradient for x alone.

    The gradient keeps the codes. Autodiff by itself would keep their conversion, a float copy of
    every kernel, wherever activations are not recomputed.
    """
    return _scaled_product(x, codes, scale)


def _scaled_product(x, codes, scale):
    y = jnp.matmul(x, codes.astype(x.dtype), precision=precision.of(x.dtype))
    return (y.astype(jnp.float32) * scale).astype(x.dtype)


def _forward(x, codes, scale):
    return _scaled_product(x, codes, scale), (codes, scale)  # no call, so that policies see a dot


def _backward(residual, cotangent):
    codes, scale = residual
    scaled = (cotangent.astype(jnp.float32) * scale).astype(cotangent.dtype)
    kernel = codes.T.astype(scaled.dtype)
    return jnp.matmul(scaled, kernel, precision=precision.of(scaled.dtype)), None, None


matmul.defvjp(_forward, _backward)
