"""LoRA and DoRA adapters: attached to layers by path rules, and folded back into the kernels."""

import dataclasses
import zlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from unime_jax import paths
from unime_jax.models.layers import TINY, Linear


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021); `dora` adds a trained magnitude (Liu et al. 2024).

    `targets` are path rules over the linear layers: True where an adapter goes. Rank 0: none.
    """

    rank: int
    alpha: float
    dora: bool
    targets: paths.Rules[bool]


def add(model: nnx.Module, config: LoraConfig, *, key: jax.Array) -> None:
    """Attaches adapters in place, float32; A is gaussian and B zero, so outputs are unchanged.

    Raises:
      ValueError: a linear layer that no rule covers, or rules that choose no layer at all.
    """
    linears = dict(_linears(model))
    chosen = paths.assign(config.targets, linears, what="lora.targets")
    if not any(chosen.values()):
        raise ValueError("lora.targets chooses no layer, so there would be nothing to train.")
    for path, linear in linears.items():
        if not chosen[path]:
            continue
        *stack, fan_in, fan_out = linear.kernel.shape
        # Seeded by the path: a layer's adapter does not depend on which others have one.
        layer_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        a = jax.random.normal(layer_key, (*stack, fan_in, config.rank)) / config.rank
        linear.lora_a = nnx.Param(a)
        linear.lora_b = nnx.Param(jnp.zeros((*stack, config.rank, fan_out)))
        linear.lora_scale = config.alpha / config.rank
        if config.dora:
            norm = jnp.linalg.norm(linear.kernel[...].astype(jnp.float32), axis=-2)
            linear.lora_magnitude = nnx.Param(norm)


def merge(model: nnx.Module, dtype: jnp.dtype) -> None:
    """Folds every adapter into its kernel in place: float32 arithmetic, the result in `dtype`."""
    for _, linear in _linears(model):
        if linear.lora_a is None or linear.lora_b is None:
            continue
        w = linear.kernel[...].astype(jnp.float32)
        delta = jnp.matmul(linear.lora_a[...], linear.lora_b[...], precision="highest")
        w = w + delta.astype(jnp.float32) * linear.lora_scale
        if linear.lora_magnitude is not None:
            norm = jnp.sqrt(jnp.maximum(jnp.sum(w * w, axis=-2, keepdims=True), TINY))
            w = w * (linear.lora_magnitude[...][..., None, :] / norm)
        linear.kernel = nnx.Param(w.astype(dtype))
        linear.lora_a = linear.lora_b = linear.lora_magnitude = None


def _linears(model: nnx.Module) -> Iterator[tuple[str, Linear]]:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            yield ".".join(map(str, path)), module
