"""The training step, a pure function: chunked encoding, loss, gradients, update."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from unime_jax import paths
from unime_jax.batch import ArrayLike, Batch
from unime_jax.losses import Metrics
from unime_jax.models.forward import Constants, Encode
from unime_jax.models.frozen_vision import FrozenVision, with_features
from unime_jax.training import objectives
from unime_jax.training.gradcache import encode_in_chunks
from unime_jax.training.loss_settings import Matryoshka, contrastive_part
from unime_jax.training.matryoshka import WHOLE, objective_loss
from unime_jax.training.temperature import Temperature, update


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, optimizer state and counters; `frozen` passes through a step untouched."""

    step: Int[ArrayLike, ""]
    trainable: paths.Parameters
    frozen: paths.Parameters
    opt_state: Any
    skipped: Int[ArrayLike, ""]  # non-finite steps so far
    skipped_in_a_row: Int[ArrayLike, ""]
    temperature: Temperature | None = None  # of a loss that learns it


def batch_loss(
    encode: Encode,
    trainable: paths.Parameters,
    frozen: paths.Parameters,
    batch: Batch,
    objective: objectives.Objective,
    *,
    prefixes: Matryoshka = WHOLE,
    recompute: bool,
    kept: Sequence[int] = (),
    merged: int = 1,
    constants: Constants | None = None,
    vision: FrozenVision | None = None,
    plain: Bool[Array, ""] | None = None,
    temperature: Float[Array, ""] | None = None,
    sources: Sequence[str] = (),
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of a whole batch, and its metrics, "mean_cosine" among them.

    Args:
      prefixes: of embeddings, see `matryoshka.objective_loss`.
      recompute, merged: see `gradcache.encode_in_chunks`.
      kept: by bucket, see there; empty: none.
      constants: gives what every chunk is encoded with in the place of `frozen`, computed once for
        all chunks; None: `frozen` itself.
      vision: gives the features of images that are kept for both passes; None: each pass computes
        its own.
      plain, temperature, sources: see `objectives.contrastive`.
    """
    fixed = frozen if constants is None else constants(trainable, frozen)
    groups = batch.groups
    if vision is not None:
        groups = tuple(with_features(vision, trainable, fixed, group) for group in groups)
    embeddings = [
        encode_in_chunks(
            encode, trainable, fixed, group, recompute=recompute, kept=count, merged=merged
        )
        for group, count in zip(groups, kept or [0] * len(groups), strict=True)
    ]
    loss, metrics = objective_loss(
        embeddings,
        batch,
        objective,
        prefixes,
        plain=plain,
        temperature=temperature,
        sources=sources,
    )
    return loss, metrics | {"mean_cosine": objectives.mean_cosine(embeddings, batch)}


def make_train_step(
    encode: Encode,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    objective: objectives.Objective,
    *,
    prefixes: Matryoshka = WHOLE,
    recompute: bool,
    kept: Sequence[int] = (),
    merged: int = 1,
    constants: Constants | None = None,
    vision: FrozenVision | None = None,
    infonce_steps: int = 0,
    sources: Sequence[str] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """step(state, batch) -> (state, metrics), to be jitted with `state` donated.

    A step whose loss or gradient norm is not finite changes nothing but the counters.

    Args:
      schedule: the learning rate by step, for the metrics; the optimizer has its own.
      prefixes, recompute, kept, merged, constants, vision: see `batch_loss`.
      infonce_steps: first steps that use plain InfoNCE: a model that starts at random collapses if
        it only ever sees its hardest negatives.
      sources: the names that `Batch.source` counts; with them, metrics have `source_loss` and
        `source_rows`, float32 [sources].
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        plain = state.step < infonce_steps if infonce_steps else None
        learned = state.temperature
        log_scale = None if learned is None else learned.log_scale
        (value, metrics), (gradient, of_scale) = jax.value_and_grad(
            lambda both: batch_loss(
                encode,
                both[0],
                state.frozen,
                batch,
                objective,
                prefixes=prefixes,
                recompute=recompute,
                kept=kept,
                merged=merged,
                constants=constants,
                vision=vision,
                plain=plain,
                temperature=None if both[1] is None else jnp.exp(-both[1]),
                sources=sources,
            ),
            has_aux=True,
        )((state.trainable, log_scale))
        norm = optax.global_norm(gradient)
        ok = jnp.isfinite(value) & jnp.isfinite(norm)
        if learned is not None:
            contrast = contrastive_part(objective)[1]
            assert contrast is not None
            ok &= jnp.isfinite(of_scale)
            metrics["temperature"] = jnp.exp(-learned.log_scale)
            learned = update(learned, of_scale, contrast)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        trainable, opt_state, learned = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old),
            (trainable, opt_state, learned),
            (state.trainable, state.opt_state, state.temperature),
        )
        new = TrainState(
            step=state.step + 1,
            trainable=trainable,
            frozen=state.frozen,
            opt_state=opt_state,
            skipped=state.skipped + ~ok,
            skipped_in_a_row=jnp.where(ok, 0, state.skipped_in_a_row + 1),
            temperature=learned,
        )
        metrics = {
            **metrics,
            "loss": value,
            "gradient_norm": norm,
            "learning_rate": schedule(state.step),
            "skipped_steps": new.skipped,
            "skipped_in_a_row": new.skipped_in_a_row,
        }
        return new, metrics

    return step
