"""Distillation of a teacher's vectors beside a contrastive loss: two-way KL, and matching."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Integer

from unime_jax.losses import ring
from unime_jax.losses.rows import Metrics, by_source, live_mean
from unime_jax.losses.similarity import cosines

HIGHEST = jax.lax.Precision.HIGHEST


class _Settings(NamedTuple):
    temperature: float
    teacher_temperature: float
    column_block: int


class _Rows(NamedTuple):
    student: Float32[Array, "B D"]
    teacher: Float32[Array, "B E"]


class _Columns(NamedTuple):
    student: Float32[Array, "M D"]
    teacher: Float32[Array, "M E"]
    live: Bool[Array, " M"]
    number: Int[Array, " M"]


class _Seen(NamedTuple):
    """Of each row over its columns: sums of exponentials, means under the teacher, the nearest."""

    log_student: Float32[Array, " B"]
    log_teacher: Float32[Array, " B"]
    mean_student: Float32[Array, " B"]
    mean_teacher: Float32[Array, " B"]
    nearest_student: tuple[Float32[Array, " B"], Int[Array, " B"]]
    nearest_teacher: tuple[Float32[Array, " B"], Int[Array, " B"]]

    @property
    def divergence(self) -> Float32[Array, " B"]:
        """KL(teacher || student)."""
        own = self.mean_teacher - self.log_teacher
        return own - self.mean_student + self.log_student


def teacher_distillation(
    queries: Float[Array, "B D"],
    targets: Float[Array, "B D"],
    teacher_queries: Float[Array, "B E"],
    teacher_targets: Float[Array, "B E"],
    *,
    temperature: float,
    teacher_temperature: float,
    query_mask: Bool[Array, " B"] | None = None,
    target_mask: Bool[Array, " B"] | None = None,
    column_block: int | None = None,
    source: Integer[Array, " B"] | None = None,
    sources: int = 0,
) -> tuple[Float32[Array, ""], Metrics]:
    """KL(teacher || student) of queries over targets and of targets over queries (WeMM-Embedding).

    Every query's cosines with all targets of the batch become a distribution by a softmax, of the
    teacher's and of the student's vectors, and so do every target's with all queries. The loss is
    half the sum of both means over pairs (arXiv 2608.24053). The widths D and E may differ.

    Args:
      queries: unit vectors; computed in float32 whatever their dtype.
      targets: unit vectors, of the same pairs.
      teacher_queries: the same queries by the teacher, unit vectors; constants.
      teacher_targets: the same targets by the teacher.
      temperature: the student's cosines are divided by it; greater than 0.
      teacher_temperature: the teacher's are.
      query_mask: False for queries that are no column, as copies of others; they are rows anyhow.
      target_mask: the same of targets.
      column_block: columns that a device compares its rows with at a time, which pass round the
        ring of devices: the same values without a [B, B] array. None: all columns at once.
      source: each pair's number of where it comes from, in [0, sources); metrics only.
      sources: how many there are; 0: no loss by source.

    Returns:
      The loss, and metrics without gradient, float32 []: `teacher_agreement`, the share of queries
      whose nearest target is the same for both; `chance_loss`, the loss of a student that finds all
      columns equally similar. With `sources`, float32 [sources]: `source_loss` and `source_rows`.

    Raises:
      ValueError: on shapes or settings that cannot be meant; under jit, while tracing.
    """
    _check(queries, targets, teacher_queries, teacher_targets, temperature, teacher_temperature)
    size = queries.shape[0]
    number, every = jnp.arange(size), jnp.ones(size, bool)
    query_mask = every if query_mask is None else query_mask
    target_mask = every if target_mask is None else target_mask
    of_queries = _Rows(*(x.astype(jnp.float32) for x in (queries, teacher_queries)))
    of_targets = _Rows(*(x.astype(jnp.float32) for x in (targets, teacher_targets)))
    settings = _Settings(temperature, teacher_temperature, column_block or size)

    def both_ways(query: _Columns, target: _Columns) -> tuple[_Seen, _Seen]:
        compare = _dense if column_block is None else _tiled
        return (
            compare(settings, _Rows(query.student, query.teacher), target),
            compare(settings, _Rows(target.student, target.teacher), query),
        )

    sides = _Columns(*of_queries, query_mask, number), _Columns(*of_targets, target_mask, number)
    forth, back = both_ways(*sides) if column_block is None else ring.blockwise(both_ways, *sides)
    by_row = (forth.divergence + back.divergence) / 2
    # An even student's KL is ln(columns) less the teacher's entropy.
    chance = [
        jnp.log(mask.sum()) + (seen.mean_teacher - seen.log_teacher).mean()
        for seen, mask in ((forth, target_mask), (back, query_mask))
    ]
    agree = forth.nearest_student[1] == forth.nearest_teacher[1]
    metrics = {
        "teacher_agreement": agree.mean(dtype=jnp.float32),
        "chance_loss": (chance[0] + chance[1]) / 2,
    }
    if source is not None and sources:
        metrics |= by_source(by_row, every, source, sources)
    return by_row.mean(), jax.lax.stop_gradient(metrics)


def teacher_matching(
    student: Float[Array, "G D"],
    teacher: Float[Array, "G D"],
    *,
    mask: Bool[Array, " G"] | None = None,
) -> Float32[Array, ""]:
    """Mean squared distance of the student's vectors from the teacher's (EmbeddingGemma).

    2 - 2 cos of unit vectors. EmbeddingGemma (arXiv 2509.20354) matches queries, positives and hard
    negatives.

    Args:
      student: unit vectors of items.
      teacher: of the same items; constants.
      mask: False for padding.

    Raises:
      ValueError: the widths differ; while tracing.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher_matching: the student's vectors are {student.shape}, the teacher's "
            f"{teacher.shape}; vectors that are matched have the same width"
        )
    live = jnp.ones(student.shape[0], bool) if mask is None else mask
    fixed = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    return live_mean(jnp.square(student.astype(jnp.float32) - fixed).sum(axis=1), live)


def _dense(settings: _Settings, rows: _Rows, columns: _Columns) -> _Seen:
    own = cosines(rows.student, columns.student) / settings.temperature
    wanted = cosines(rows.teacher, columns.teacher) / settings.teacher_temperature
    return _add(_start(rows), own, jax.lax.stop_gradient(wanted), columns)


def _start(rows: _Rows) -> _Seen:
    lowest = jnp.full(rows.student.shape[0], -jnp.inf)
    zero = jnp.zeros(lowest.shape)
    first = lowest, jnp.zeros(lowest.shape, jnp.int32)
    return _Seen(lowest, lowest, zero, zero, first, first)


def _add(seen: _Seen, own: Array, wanted: Array, columns: _Columns) -> _Seen:
    """What is seen with a block of logits more, [B, M] of the student and of the teacher."""
    kept_own = jnp.where(columns.live, own, -jnp.inf)
    kept = jnp.where(columns.live, wanted, -jnp.inf)
    log_teacher = jnp.logaddexp(seen.log_teacher, jax.nn.logsumexp(kept, axis=1))
    # A block may have no live column, and none may have come before it.
    base = jnp.where(jnp.isfinite(log_teacher), log_teacher, 0)
    before = jnp.exp(seen.log_teacher - base)
    share = jnp.exp(kept - base[:, None])

    def nearest(seen: tuple[Array, Array], kept: Array) -> tuple[Array, Array]:
        value, place = kept.max(axis=1), columns.number[kept.argmax(axis=1)]
        nearer = value > seen[0]
        return jnp.where(nearer, value, seen[0]), jnp.where(nearer, place, seen[1])

    return _Seen(
        log_student=_log_sum(seen.log_student, kept_own),
        log_teacher=log_teacher,
        mean_student=seen.mean_student * before + (share * own).sum(axis=1),
        mean_teacher=seen.mean_teacher * before + (share * wanted).sum(axis=1),
        nearest_student=nearest(seen.nearest_student, jax.lax.stop_gradient(kept_own)),
        nearest_teacher=nearest(seen.nearest_teacher, kept),
    )


def _log_sum(seen: Float32[Array, " B"], logits: Float32[Array, "B M"]) -> Float32[Array, " B"]:
    return jax.nn.logsumexp(jnp.concatenate([seen[:, None], logits], axis=1), axis=1)


def _logits(settings: _Settings, rows: _Rows, part: _Columns) -> tuple[Array, Array]:
    own = jnp.einsum("bd,md->bm", rows.student, part.student, precision=HIGHEST)
    wanted = jnp.einsum("be,me->bm", rows.teacher, part.teacher, precision=HIGHEST)
    return own / settings.temperature, wanted / settings.teacher_temperature


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(settings: _Settings, rows: _Rows, columns: _Columns) -> _Seen:
    """Columns pass round the ring, a block of them at a time; for use in `ring.blockwise`."""
    column_block = min(settings.column_block, columns.number.size)

    def look(seen: _Seen, part: _Columns, _: None) -> tuple[_Seen, None]:
        return _add(seen, *_logits(settings, rows, part), part), None

    return ring.visit(look, ring.vary(_start(rows)), columns, column_block)[0]


def _tiled_forward(settings, rows, columns):
    seen = _tiled(settings, rows, columns)
    return seen, (rows, columns, seen)


def _tiled_backward(settings, saved, cotangent):
    """Blocks of logits are computed again; the columns' gradient goes round with them."""
    rows, columns, seen = saved
    column_block = min(settings.column_block, columns.number.size)

    def look(d_rows, part, d_columns):
        own, wanted = _logits(settings, rows, part)
        student = jnp.exp(own - seen.log_student[:, None]) * cotangent.log_student[:, None]
        teacher = jnp.exp(wanted - seen.log_teacher[:, None]) * cotangent.mean_student[:, None]
        slope = jnp.where(part.live, student + teacher, 0) / settings.temperature
        d_rows += jnp.einsum("bm,md->bd", slope, part.student, precision=HIGHEST)
        d_columns += jnp.einsum("bm,bd->md", slope, rows.student, precision=HIGHEST)
        return d_rows, d_columns

    width = columns.student.shape[1]
    start, none = ring.vary((jnp.zeros(rows.student.shape), jnp.zeros((column_block, width))))
    d_rows, parts = ring.visit(look, start, columns, column_block, none)
    d_columns = ring.join(parts, columns.number.size)
    # None: the teacher's vectors, masks and numbers have no gradient.
    return _Rows._make((d_rows, None)), _Columns._make((d_columns, None, None, None))


_tiled.defvjp(_tiled_forward, _tiled_backward)


def _check(queries, targets, teacher_queries, teacher_targets, temperature, teacher_temperature):
    for name, value in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
        if not value > 0:
            raise ValueError(f"teacher_distillation: {name} is {value}; it must be above 0")
    for who, rows, columns in (
        ("student", queries, targets),
        ("teacher", teacher_queries, teacher_targets),
    ):
        if rows.ndim != 2 or rows.shape != columns.shape or len(rows) != len(queries):
            raise ValueError(
                f"teacher_distillation: the {who}'s queries are {rows.shape}, its targets "
                f"{columns.shape}; they must be [B, width] of the same B pairs"
            )
