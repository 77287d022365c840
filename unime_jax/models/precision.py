"""Precision of matrix products: float32 is multiplied as float32 on every platform.

A TPU multiplies float32 operands as one pass of bfloat16, and some GPUs as TF32, unless the product
itself asks for more. JAX's global default is the user's and stays as it is. So every product of
this package names its precision, and that follows from the dtype of its operands, which
`vlm.Execution` decides. Gradients inherit it.
"""

import contextlib

import jax
import jax.numpy as jnp


def of(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Full precision for float32; None, the platform's own, for bfloat16 and float16."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def asked(dtype: jnp.dtype) -> contextlib.AbstractContextManager[object]:
    """`of`, as a context for functions that multiply but take no precision."""
    full = of(dtype) is not None
    return jax.default_matmul_precision("highest") if full else contextlib.nullcontext()
