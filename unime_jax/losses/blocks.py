"""Rows and columns of a tiled loss, and what is a negative in a block of them."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Integer, UInt8

from unime_jax.losses.selection import Negatives, Settings, select, temperature_of


class Rows(NamedTuple):
    embedding: Float32[Array, "B D"]
    target_id: Integer[Array, " B"]
    labelled: Integer[Array, "B H"]  # columns by number, -1: none
    positive: Int[Array, " B"] | None  # column by number, None: of another term
    positive_score: Float32[Array, " B"]  # without gradient
    closed: Bool[Array, " B"] | None
    temperature: Float32[Array, " B"] | None  # None: the settings have it
    barred: UInt8[Array, "B columns"] | None  # of all devices' columns


class Columns(NamedTuple):
    embedding: Float32[Array, "M D"]
    target_id: Integer[Array, " M"]
    mask: Bool[Array, " M"]
    number: Int[Array, " M"]


@dataclasses.dataclass(frozen=True)
class Term:
    """What a loss fixes of a term; columns of all terms count on from `first`."""

    margin: float | None
    first: int


def compare(
    rows: Rows, columns: Columns, term: Term, settings: Settings
) -> tuple[Float[Array, "B block"], Bool[Array, "B block"], Negatives]:
    """Scores, the rows' own explicit negatives, and what is selected."""
    scores = jnp.einsum(
        "bd,md->bm", rows.embedding, columns.embedding, precision=jax.lax.Precision.HIGHEST
    )
    available = (columns.target_id != rows.target_id[:, None]) & columns.mask
    labelled = (rows.labelled[:, :, None] == columns.number).any(axis=1)
    barred = None if rows.barred is None else rows.barred[:, columns.number]
    chosen = select(
        scores,
        rows.positive_score[:, None],
        available,
        labelled,
        rows.closed,
        barred,
        term.margin,
        settings,
    )
    return scores, labelled, chosen


def logits_of(
    scores: Float[Array, "B block"],
    labelled: Bool[Array, "B block"],
    rows: Rows,
    settings: Settings,
) -> Float[Array, "B block"]:
    by_row = None if rows.temperature is None else rows.temperature[:, None]
    logits = scores / temperature_of(settings, by_row)
    weight = settings.hardness * scores
    return logits + (jnp.where(labelled, weight, 0) if settings.weighs_explicit else weight)
