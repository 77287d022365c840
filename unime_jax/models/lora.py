"""LoRA and DoRA adapters: attached to layers by path rules, and folded back into the kernels."""

import zlib

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from unime_jax import paths
from unime_jax.models import quantization
from unime_jax.models.layers import TINY, Linear, linears
from unime_jax.models.settings import LoraConfig

NORM = "lora_norm"  # `Linear`'s attribute


def add(model: nnx.Module, config: LoraConfig, *, key: jax.Array) -> None:
    """Attaches adapters in place, float32; A is gaussian and B zero, so outputs are unchanged.

    Raises:
      ValueError: a linear layer that no rule covers, or rules that choose no layer at all.
    """
    rank = config.rank
    assert rank  # None is resolved in set-up
    layers = dict(linears(model))
    chosen = paths.assign(config.targets, layers, what="lora.targets")
    if not any(chosen.values()):
        raise ValueError("lora.targets chooses no layer, so there would be nothing to train.")
    for path, linear in layers.items():
        if not chosen[path]:
            continue
        *stack, fan_in, fan_out = linear.kernel.shape
        # Seeded by the path: a layer's adapter does not depend on which others have one.
        layer_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        a = jax.random.normal(layer_key, (*stack, fan_in, rank)) / rank
        linear.lora_a = nnx.Param(a)
        linear.lora_b = nnx.Param(jnp.zeros((*stack, rank, fan_out)))
        linear.lora_scale = config.alpha / rank
        if config.dora:
            linear.lora_magnitude = nnx.Param(_norm(linear))


def _norm(linear: Linear) -> Float32[Array, "*L out"]:
    """The norm of each column of the kernel that the layer computes with."""
    if linear.kernel_scale is None:
        return jnp.linalg.norm(linear.kernel[...].astype(jnp.float32), axis=-2)
    return jnp.sqrt(quantization.square_sum(linear.kernel[...], linear.kernel_scale[...]))


def column_norms(model: nnx.Module) -> dict[str, Float32[Array, "*L out"]]:
    """DoRA's column norms of all adapted layers, by the path that `set_column_norms` reads.

    They depend on parameters alone and are constants to the gradient (Liu et al. 2024, section
    4.3), so a step that encodes in chunks computes them once.
    """
    return {
        f"{path}.{NORM}": linear.column_norm()
        for path, linear in linears(model)
        if linear.lora_magnitude is not None
    }


def set_column_norms(model: nnx.Module, parameters: paths.Parameters) -> None:
    """Hands each layer its norm from `parameters`, if present, so that it is not computed again."""
    for path, linear in linears(model):
        if f"{path}.{NORM}" in parameters:
            linear.lora_norm = nnx.Param(parameters[f"{path}.{NORM}"])


def merge(model: nnx.Module, dtype: jnp.dtype) -> None:
    """Folds every adapter into its kernel in place, and makes float kernels of int8 codes."""
    for _, linear in linears(model):
        if is_folded(linear):
            continue
        linear.kernel = nnx.Param(fold(linear, dtype))
        linear.kernel_scale = None
        linear.lora_a = linear.lora_b = linear.lora_magnitude = None


def is_folded(linear: Linear) -> bool:
    """True if the layer has a kernel and a bias alone, without adapter and scales."""
    return linear.lora_a is None and linear.kernel_scale is None


def fold(linear: Linear, dtype: jnp.dtype) -> Float[Array, "*L in out"]:
    """The kernel with its adapter merged in: float32 arithmetic, the result in `dtype`.

    A stack is merged layer by layer, so that one layer at a time is in float32.
    """
    parts = {
        name: leaf[...]
        for name in ("kernel", "kernel_scale", "lora_a", "lora_b", "lora_magnitude")
        if (leaf := getattr(linear, name)) is not None
    }

    def fold_layer(parts: dict[str, jax.Array]) -> jax.Array:
        w = parts["kernel"].astype(jnp.float32)
        if "kernel_scale" in parts:
            w = quantization.dequantize(parts["kernel"], parts["kernel_scale"])
        if "lora_a" in parts:
            delta = jnp.matmul(parts["lora_a"], parts["lora_b"], precision="highest")
            w = w + delta.astype(jnp.float32) * linear.lora_scale
        if "lora_magnitude" in parts:
            norm = jnp.sqrt(jnp.maximum(jnp.sum(w * w, axis=0), TINY))
            w = w * (parts["lora_magnitude"] / norm)
        return w.astype(dtype)

    return fold_layer(parts) if linear.kernel[...].ndim == 2 else jax.lax.map(fold_layer, parts)
