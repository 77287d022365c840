"""Terms beside the contrast of a batch: graded pairs, and a teacher's vectors."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, UInt32

from unime_jax import losses
from unime_jax.batch import Batch
from unime_jax.losses import Metrics
from unime_jax.losses.barred import representatives
from unime_jax.training.loss_settings import Contrastive

Result = tuple[Float[Array, ""], Metrics]


def by_number(parts: Sequence[Array]) -> Array:
    """[C, R, ...] of all groups as one [G, ...], in the order of row numbers."""
    return jnp.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])


def teacher_vectors(batch: Batch, loss: str) -> list[Array]:
    """The teacher's vectors of all groups. Raises ValueError if some have none."""
    given = [group.teacher for group in batch.groups if group.teacher is not None]
    if len(given) < len(batch.groups):
        raise ValueError(f"{loss}: the rows of the batch have no teacher embeddings")
    return given


def contrasted_rows(batch: Batch, contrasted: Bool[Array, " B"], size: int) -> Bool[Array, " G"]:
    """Rows that are the target or an explicit negative of a pair that is contrasted."""
    own = jnp.concatenate([batch.positive[:, None], batch.negative], axis=1)
    place = jnp.where(contrasted[:, None] & (own >= 0), own, size)  # none: outside, so dropped
    return jnp.zeros(size, bool).at[place].set(True, mode="drop")


def with_graded(
    contrast: Result,
    query: Float[Array, "B D"],
    target: Float[Array, "B D"],
    batch: Batch,
    config: Contrastive,
    sources: Sequence[str],
) -> Result:
    """The mean over contrasted and graded pairs, of which one counts `graded_weight`.

    A batch of one source, as the originals have them, has the loss of its kind alone. Metrics are
    those of both, `contrastive_loss` and `graded_loss`; `chance_loss` is of the mean.
    """
    assert batch.grade is not None
    similarity = jnp.einsum(
        "bd,bd->b",
        query.astype(jnp.float32),
        target.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    graded, metrics = losses.graded_pairs(
        similarity,
        batch.grade,
        form=config.graded_form,
        temperature=config.graded_temperature,
        smallest_gap=config.graded_smallest_gap,
        mask=jnp.isfinite(batch.grade),
        source=batch.source if sources else None,
        sources=len(sources),
        row_block=config.column_block,
    )
    contrasted, others = contrast
    count = config.graded_weight * metrics["graded_pairs"]
    share = count / (count + batch.query.size - metrics["graded_pairs"])

    def mean(contrasted: Array, graded: Array) -> Array:
        return (1 - share) * contrasted + share * graded

    both = {"chance_loss": mean(others["chance_loss"], metrics["chance_loss"])}
    if sources:  # a source is of one kind, and has neither loss nor rows of the other
        both |= {name: others[name] + metrics[name] for name in ("source_loss", "source_rows")}
    said = {"contrastive_loss": contrasted, "graded_loss": graded}
    return mean(contrasted, graded), others | metrics | both | said


def with_teacher(
    result: Result,
    student: tuple[Float[Array, "B D"], Float[Array, "B D"]],
    teacher: tuple[Float32[Array, "B E"], Float32[Array, "B E"]],
    target_id: UInt32[Array, " B"],
    batch: Batch,
    config: Contrastive,
    *,
    plain: Bool[Array, ""] | None,
    sources: Sequence[str],
) -> Result:
    """A loss with the weighted two-way KL to a teacher's vectors; none where `plain` holds.

    Args:
      student, teacher: vectors of queries and of their targets.
      target_id: of the targets; equal targets, and equal queries, are one column.
    """
    every = jnp.arange(batch.query.size)
    query_id = batch.query if batch.query_id is None else batch.query_id
    value, metrics = losses.teacher_distillation(
        *student,
        *teacher,
        temperature=config.student_temperature,
        teacher_temperature=config.teacher_temperature,
        query_mask=representatives(query_id) == every,
        target_mask=representatives(target_id) == every,
        column_block=config.column_block,
        source=batch.source,
        sources=len(sources),
    )
    weight = weight_of(config.teacher_weight, plain)
    loss, others = result
    both = {"teacher_agreement": metrics["teacher_agreement"], "teacher_loss": value}
    for name in ("chance_loss", *(("source_loss",) if sources else ())):
        both[name] = others[name] + weight * metrics[name]
    if sources:
        both["source_rows"] = jnp.maximum(others["source_rows"], metrics["source_rows"])
    return loss + weight * value, others | both


def with_matching(
    result: Result,
    student: Float[Array, "G D"],
    teacher: Float32[Array, "G D"],
    live: Bool[Array, " G"],
    config: Contrastive,
    *,
    plain: Bool[Array, ""] | None,
) -> Result:
    """A loss with the weighted squared distance of all items from the teacher's vectors."""
    value = losses.teacher_matching(student, teacher, mask=live)
    loss, metrics = result
    weight = weight_of(config.teacher_matching_weight, plain)
    return loss + weight * value, metrics | {"teacher_distance": value}


def weight_of(weight: float, plain: Bool[Array, ""] | None) -> float | Array:
    """A weight, 0 where `plain` holds."""
    return weight if plain is None else jnp.where(plain, 0, weight)
