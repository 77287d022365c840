"""Relational distillation: the student's similarity matrix fitted to the teacher's."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from unime_jax.losses.rows import Metrics, by_source, live_mean
from unime_jax.losses.similarity import cosines

Direction = Literal["teacher_student", "student_teacher", "symmetric"]
Reduction = Literal["mean", "sum"]


def relational_distillation(
    student: Float[Array, "B D"],
    teacher: Float[Array, "B E"],
    student_columns: Float[Array, "M D"] | None = None,
    teacher_columns: Float[Array, "M E"] | None = None,
    *,
    temperature: float = 0.02,
    teacher_temperature: float | None = None,
    direction: Direction = "teacher_student",
    mask_diagonal: bool = True,
    reduction: Reduction = "mean",
    row_mask: Bool[Array, " B"] | None = None,
    column_mask: Bool[Array, " M"] | None = None,
    source: Int[Array, " B"] | None = None,
    sources: int = 0,
) -> tuple[Float32[Array, ""], Metrics]:
    """KL divergence between the rows of two similarity matrices (UniME stage 1, Eq. 2).

    Every row of cosines, divided by the temperature, becomes a distribution over the columns by a
    softmax; the loss compares the student's with the teacher's. Only similarities are compared, so
    the widths D and E may differ. The paper's formula leaves open what the arguments say, and
    prints only the diagonal of the numerator (arXiv 2504.17432, section 3.2.1).

    Args:
      student: unit vectors; computed in float32 whatever their dtype.
      teacher: unit vectors of the same rows; constants.
      student_columns: what rows are compared with; None: with each other.
      teacher_columns: the same items by the teacher.
      temperature: of the student, greater than 0.
      teacher_temperature: None: the same.
      direction: "teacher_student" is KL(teacher || student), "student_teacher" what the paper
        prints, "symmetric" the mean of both.
      mask_diagonal: leave column i out of row i. There both models have cosine 1, which at a low
        temperature outweighs everything else.
      reduction: over rows.
      row_mask: False for padding.
      column_mask: False for padding; None: as `row_mask` where rows are compared with each other.
      source: each row's number of where it comes from, in [0, sources), -1: none; metrics only.
      sources: how many there are; 0: no loss by source.

    Returns:
      The loss, and metrics without gradient, float32 []: `teacher_entropy` and `student_entropy` of
      the mean row, in nats; `nearest_agreement`, the share of rows whose nearest column is the same
      for both; `chance_loss`, the loss of a student that finds all columns equally similar. With
      `sources`, float32 [sources]: `source_loss`, the mean loss of each source's rows, and
      `source_rows`.

    Raises:
      ValueError: on shapes or settings that cannot be meant; under jit, while tracing.
    """
    teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
    if direction not in get_args(Direction) or reduction not in get_args(Reduction):
        raise ValueError(
            f"relational_distillation: direction is {direction!r}, reduction {reduction!r}; use "
            f"one of {get_args(Direction)} and of {get_args(Reduction)}"
        )
    if (student_columns is None) != (teacher_columns is None):
        raise ValueError("relational_distillation: give columns of both models, or of neither")
    if column_mask is None and student_columns is None:
        column_mask = row_mask
    student_columns = student if student_columns is None else student_columns
    teacher_columns = teacher if teacher_columns is None else teacher_columns
    _check(student, teacher, student_columns, teacher_columns, temperature, teacher_temperature)

    shape = student.shape[0], student_columns.shape[0]
    keep = jnp.ones(shape, bool)
    if mask_diagonal:
        keep &= ~jnp.eye(*shape, dtype=bool)
    if row_mask is not None:
        keep &= row_mask[:, None]
    if column_mask is not None:
        keep &= column_mask
    live = keep.any(axis=1)

    def similarities(rows: Array, columns: Array) -> Float32[Array, "B M"]:
        return cosines(rows.astype(jnp.float32), columns.astype(jnp.float32))

    own = similarities(student, student_columns)
    wanted = jax.lax.stop_gradient(similarities(teacher, teacher_columns))
    log_student = masked_log_softmax(own / temperature, keep)
    log_teacher = masked_log_softmax(wanted / teacher_temperature, keep)

    def divergence(of: Float32[Array, "B M"], to: Float32[Array, "B M"]) -> Float32[Array, " B"]:
        return jnp.where(keep, jnp.exp(of) * (of - to), 0).sum(axis=1)

    forward, backward = divergence(log_teacher, log_student), divergence(log_student, log_teacher)
    by_row = _by_direction(forward, backward, direction)

    def entropy(log_p: Float32[Array, "B M"]) -> Float32[Array, " B"]:
        return -jnp.where(keep, jnp.exp(log_p) * log_p, 0).sum(axis=1)

    def reduce(by_row: Float32[Array, " B"]) -> Float32[Array, ""]:
        return live_mean(by_row, live) if reduction == "mean" else jnp.where(live, by_row, 0).sum()

    loss, teacher_entropy = reduce(by_row), entropy(log_teacher)
    count = jnp.maximum(keep.sum(axis=1), 1)
    from_even = -jnp.log(count) - log_teacher.sum(axis=1) / count  # KL(even || teacher)
    chance = _by_direction(jnp.log(count) - teacher_entropy, from_even, direction)
    nearest = [jnp.where(keep, s, -jnp.inf).argmax(axis=1) for s in (own, wanted)]
    metrics = {
        "teacher_entropy": live_mean(teacher_entropy, live),
        "student_entropy": live_mean(entropy(jax.lax.stop_gradient(log_student)), live),
        "nearest_agreement": live_mean(nearest[0] == nearest[1], live),
        "chance_loss": reduce(chance),
    }
    if source is not None and sources:
        metrics |= by_source(by_row, live, source, sources)
    return loss, metrics


def _by_direction(
    forward: Float32[Array, " B"], backward: Float32[Array, " B"], direction: Direction
) -> Float32[Array, " B"]:
    both = {"teacher_student": forward, "student_teacher": backward}
    return both[direction] if direction in both else (forward + backward) / 2


def masked_log_softmax(
    logits: Float32[Array, "B M"], keep: Bool[Array, "B M"]
) -> Float32[Array, "B M"]:
    """Log-softmax over the kept columns; 0 elsewhere, so that no infinity meets a gradient."""
    lowest = jnp.finfo(jnp.float32).min
    return jnp.where(keep, jax.nn.log_softmax(jnp.where(keep, logits, lowest), axis=1), 0)


def _check(
    student, teacher, student_columns, teacher_columns, temperature, teacher_temperature
) -> None:
    for name, value in (
        ("temperature", temperature),
        ("teacher_temperature", teacher_temperature),
    ):
        if not value > 0:
            raise ValueError(f"relational_distillation: {name} is {value}; it must be above 0")
    for what, own, theirs in (
        ("rows", student, teacher),
        ("columns", student_columns, teacher_columns),
    ):
        if own.ndim != 2 or theirs.ndim != 2 or own.shape[0] != theirs.shape[0]:
            raise ValueError(
                f"relational_distillation: the student's {what} are {own.shape}, the teacher's "
                f"{theirs.shape}; they must be [n, width] of the same n items"
            )
    for who, rows, columns in (
        ("student", student, student_columns),
        ("teacher", teacher, teacher_columns),
    ):
        if rows.shape[1] != columns.shape[1]:
            raise ValueError(
                f"relational_distillation: the {who}'s rows {rows.shape} and columns "
                f"{columns.shape} differ in width"
            )
