"""Learned temperature of a contrastive loss: a number with its own Adam, clipped as CLIP's."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from unime_jax import sharding
from unime_jax.batch import ArrayLike
from unime_jax.training.loss_settings import (
    Contrastive,
    Distillation,
    JudgeDistillation,
    contrastive_part,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Temperature:
    """ln(1 / temperature), which is what is learned, and the moments of its gradient."""

    log_scale: Float[ArrayLike, ""]
    opt_state: Any


def initial_temperature(
    loss: Contrastive | Distillation | JudgeDistillation, mesh: Mesh
) -> Temperature | None:
    """The temperature before the first step, on all devices; None: the loss learns none."""
    contrast = contrastive_part(loss)[1]
    if contrast is None or not contrast.temperature_learning_rate:
        return None
    log_scale = jnp.float32(-math.log(contrast.temperature))
    values = Temperature(log_scale, _optimizer(contrast).init(log_scale))
    # One buffer each: a donated state must not hold the same array twice.
    return jax.tree.map(
        lambda x: jax.device_put(jnp.array(x, copy=True), sharding.replicated(mesh)), values
    )


def abstract_temperature(
    loss: Contrastive | Distillation | JudgeDistillation, mesh: Mesh
) -> Temperature | None:
    """Shapes and dtypes of `initial_temperature`."""
    contrast = contrastive_part(loss)[1]
    if contrast is None or not contrast.temperature_learning_rate:
        return None
    everywhere = sharding.replicated(mesh)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    values = Temperature(number, jax.eval_shape(_optimizer(contrast).init, number))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), values
    )


def update(state: Temperature, gradient: Float[Array, ""], loss: Contrastive) -> Temperature:
    """The temperature after a step; it stays between `lowest_temperature` and 1."""
    change, opt_state = _optimizer(loss).update(gradient, state.opt_state)
    highest = -math.log(loss.lowest_temperature)
    return Temperature(jnp.clip(state.log_scale + change, 0, highest), opt_state)


def _optimizer(loss: Contrastive) -> optax.GradientTransformation:
    """Adam without decay and schedule."""
    return optax.adam(loss.temperature_learning_rate)
