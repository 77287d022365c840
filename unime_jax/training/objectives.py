"""From a batch's embeddings to its loss: who is compared with whom, and by which function."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from unime_jax import losses
from unime_jax.batch import Batch
from unime_jax.losses import Metrics, ring

Result = tuple[Float[Array, ""], Metrics]


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """The options of `losses.contrastive`, by the same names."""

    objective: Literal["contrastive"]  # InfoNCE, UniME's and LLaVE's losses
    temperature: float  # similarities are divided by it
    hard_negatives: int | None  # keep so many hardest negatives (UniME: 8); None: all
    # drop candidates that are more similar than the positive by this (UniME: 0.1); None: none
    false_negative_margin: float | None
    hardness: float  # weight of a negative by its similarity (LLaVE: 9); 0: none
    symmetric: bool  # also candidates to queries (LLaVE)
    tile: int | None  # columns of scores at a time, round a ring of devices; None: all at once
    mask_same_target: bool  # equal targets are never each other's negatives


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The options of `losses.relational_distillation`, and which texts it is about."""

    objective: Literal["distillation"]  # KL divergence of rows of the similarity matrices
    # "all" texts of the batch with each other, only those that are "queries" (sent0 of the NLI
    # triples), or "pairs": the queries with their positives
    texts: Literal["all", "queries", "pairs"]
    temperature: float  # the student's similarities are divided by it
    teacher_temperature: float | None  # the teacher's are divided by it; None: the same
    direction: losses.Direction  # which distribution the divergence is taken under
    mask_diagonal: bool  # leave out the similarity of a text with itself
    reduction: losses.Reduction  # of the rows' divergences


Objective = Contrastive | Distillation


def contrastive(
    embeddings: Sequence[Float[Array, "_ _ D"]],
    batch: Batch,
    config: Contrastive,
    *,
    plain: Bool[Array, ""] | None = None,
    sources: int = 0,
) -> Result:
    """Queries against all candidates; rows are the candidates, one column a distinct target.

    Where `plain` holds, the loss is InfoNCE over all negatives, whatever `config` says of them.
    `sources`: how many `batch.source` counts, for metrics by source; 0: none.
    """
    target_id = _by_number(batch.target_id)
    candidate, negative = target_id != 0, batch.negative
    if config.mask_same_target:
        representative = representatives(target_id)
        candidate &= representative == jnp.arange(representative.size)
        negative = jnp.where(negative < 0, -1, representative[negative])
    if config.tile is None:
        table = _by_number(embeddings)
        query, positive = table[batch.query], batch.positive
    else:
        table = ring.beside(embeddings)
        number = ring.beside(_numbers(embeddings))
        place = jnp.zeros_like(number).at[number].set(jnp.arange(number.size))
        query = ring.blockwise(ring.pick, place[batch.query], table)
        positive = place[batch.positive]
        negative = jnp.where(negative < 0, -1, place[negative])
        target_id, candidate = target_id[number], candidate[number]

    def contrast(config: Contrastive) -> Result:
        return losses.contrastive(
            query,
            table,
            positive,
            temperature=config.temperature,
            hard_negatives=config.hard_negatives,
            false_negative_margin=config.false_negative_margin,
            hardness=config.hardness,
            symmetric=config.symmetric,
            target_id=target_id if config.mask_same_target else None,
            explicit_negatives=negative if negative.shape[1] else None,
            candidate_mask=candidate,
            tile=config.tile,
            source=batch.source,
            sources=sources,
        )

    if plain is None:
        return contrast(config)
    infonce = dataclasses.replace(
        config, hard_negatives=None, false_negative_margin=None, hardness=0.0
    )
    return jax.lax.cond(plain, lambda: contrast(infonce), lambda: contrast(config))


def _by_number(parts: Sequence[Array]) -> Array:
    """[C, R, ...] of all groups as one [G, ...], in the order of row numbers."""
    return jnp.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])


def _numbers(parts: Sequence[Array]) -> list[Int[Array, "_ _"]]:
    """The row numbers of all groups."""
    sizes = [part.shape[0] * part.shape[1] for part in parts]
    return [
        sum(sizes[:i]) + jnp.arange(size).reshape(part.shape[:2])
        for i, (size, part) in enumerate(zip(sizes, parts, strict=True))
    ]


def representatives(target_id: UInt32[Array, " G"]) -> Int[Array, " G"]:
    """For every row the one row that stands for its target, so that a target is one candidate.

    Sorting keeps this O(G log G) and independent of how rows were dealt to processes.
    """
    order = jnp.argsort(target_id, stable=True)
    ordered = target_id[order]
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    start = jax.lax.cummax(jnp.where(starts, jnp.arange(order.size), 0))
    return jnp.zeros_like(order).at[order].set(order[start])


def text_id(batch: Batch) -> UInt32[Array, " G"]:
    """32 bits of every row's tokens, the same in any bucket and process."""

    def of_group(tokens: Int[Array, "C R T"], length: Int[Array, "C R"]) -> UInt32[Array, "C R"]:
        # A polynomial modulo 2^32; tokens after the end are 0, so the length tells "a" from "a0".
        powers = np.cumprod(np.full(tokens.shape[-1], 0x9E3779B1, np.uint32), dtype=np.uint32)
        value = (tokens.astype(jnp.uint32) * powers).sum(axis=-1, dtype=jnp.uint32)
        return value + length.astype(jnp.uint32)

    return _by_number([of_group(group.tokens, group.length) for group in batch.groups])


def distillation(
    embeddings: Sequence[Float[Array, "_ _ D"]],
    batch: Batch,
    config: Distillation,
    *,
    sources: int = 0,
) -> Result:
    """The batch's texts against each other, by the student and by the teacher of its rows.

    With "all" a text counts once, also if several processes have read it; with "queries" and
    "pairs" one that several pairs have in common counts several times. `sources` as in
    `contrastive`.

    Raises:
      ValueError: the rows have no teacher; while tracing.
    """
    given = [group.teacher for group in batch.groups if group.teacher is not None]
    if len(given) < len(batch.groups):
        raise ValueError("distillation: the rows of the batch have no teacher embeddings")
    student, teacher = _by_number(embeddings), _by_number(given)
    live = _by_number([group.length for group in batch.groups]) > 0
    every = jnp.arange(live.size)
    if config.texts == "all":
        live &= representatives(text_id(batch)) == every
    rows, columns = {
        "all": (every, every),
        "queries": (batch.query, batch.query),
        "pairs": (batch.query, batch.positive),
    }[config.texts]
    return losses.relational_distillation(
        student[rows],
        teacher[rows],
        student[columns],
        teacher[columns],
        temperature=config.temperature,
        teacher_temperature=config.teacher_temperature,
        direction=config.direction,
        mask_diagonal=config.mask_diagonal,
        reduction=config.reduction,
        row_mask=live[rows],
        column_mask=live[columns],
        source=_source_of_rows(batch, live.size)[rows],
        sources=sources,
    )


def _source_of_rows(batch: Batch, size: int) -> Int[Array, " G"]:
    """The source of the pairs that a row is in, of several the last by number; -1: of none."""
    pairs = jnp.concatenate([batch.query[:, None], batch.positive[:, None], batch.negative], axis=1)
    source = jnp.broadcast_to(batch.source[:, None], pairs.shape)
    place = jnp.where(pairs < 0, size, pairs)  # no negative: out of the array, so dropped
    return jnp.full(size, -1, batch.source.dtype).at[place].max(source, mode="drop")


def mean_cosine(embeddings: Sequence[Float[Array, "_ _ D"]], batch: Batch) -> Float[Array, ""]:
    """The mean cosine of two different rows of the batch: 1 for a model that tells none apart.

    It follows from the length of the sum of all N unit vectors, (|sum|^2 - N) / (N (N - 1)), so no
    two of them need meet on a device. Without gradient; 0 of less than two rows.
    """
    count, total = jnp.zeros(()), jnp.zeros(())
    for part, group in zip(embeddings, batch.groups, strict=True):
        live = group.length > 0
        fixed = jax.lax.stop_gradient(part).astype(jnp.float32)
        total += jnp.where(live[..., None], fixed, 0).sum(axis=(0, 1))
        count += live.sum()
    mean = total / jnp.maximum(count, 1)
    found = (jnp.sum(mean * mean) * count - 1) / jnp.maximum(count - 1, 1)
    return jnp.where(count > 1, found, 0)
