"""Selection of each row's negatives: facts that rule a column out, and masks that guess."""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, UInt8

HardnessOn = Literal["all", "explicit"]

# Bits of `barred`. The first is a fact: another pool, or another positive of the same query.
NO_NEGATIVE, DUPLICATE_QUERY, DUPLICATE_TARGET = 1, 2, 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """Arguments of `contrastive` that are no arrays."""

    temperature: float | None  # None: an array, by row
    hard_negatives: int | None
    false_negative_margin: float | None
    hardness: float
    hardness_on: HardnessOn
    symmetric: bool
    query_query: bool
    query_query_margin: float | None
    document_document: bool
    document_document_margin: float | None
    duplicate_queries: float | None
    duplicate_targets: float | None
    trust_explicit: bool
    pool: int | None

    @property
    def weighs_explicit(self) -> bool:
        """Whether explicit negatives alone are weighted by hardness."""
        return bool(self.hardness) and self.hardness_on == "explicit"


def temperature_of(settings: Settings, by_row: Array | None) -> float | Array:
    """The temperatures of rows, [B] or [B, 1] as they are given, or that of all."""
    if by_row is not None:
        return by_row
    assert settings.temperature is not None
    return settings.temperature


class Negatives(NamedTuple):
    """Negatives of some rows among some columns, and those that masks dropped.

    `unlabelled`: the negatives that masks may drop. A mask that is off is None; the others may
    name the same column.
    """

    valid: Bool[Array, "B columns"]
    unlabelled: Bool[Array, "B columns"]
    dropped: Bool[Array, "B columns"]  # by the margin
    duplicate_query: Bool[Array, "B columns"] | None
    duplicate_target: Bool[Array, "B columns"] | None


def select(
    scores: Float32[Array, "B columns"],
    positive_score: Float32[Array, "B 1"],
    available: Bool[Array, "B columns"],
    labelled: Bool[Array, "B columns"],
    closed: Bool[Array, " B"] | None,
    barred: UInt8[Array, "B columns"] | None,
    margin: float | None,
    settings: Settings,
) -> Negatives:
    """The negatives among `available` columns; scores are without gradient.

    Args:
      labelled: the row's own explicit negatives.
      closed: rows that see nothing else.
      barred: the bits above; None: no column is.
      margin: of the term that the columns belong to.
    """
    if barred is not None:
        available &= (barred & NO_NEGATIVE) == 0
    if closed is not None:
        available &= labelled | ~closed[:, None]
    unlabelled = available & ~labelled if settings.trust_explicit else available
    dropped = jnp.zeros_like(available) if margin is None else scores > positive_score + margin
    dropped &= unlabelled
    valid = available & ~dropped
    duplicates: list[Bool[Array, "B columns"] | None] = []
    for threshold, bit in (
        (settings.duplicate_queries, DUPLICATE_QUERY),
        (settings.duplicate_targets, DUPLICATE_TARGET),
    ):
        duplicate = None
        if threshold is not None and barred is not None:
            duplicate = ((barred & bit) != 0) & unlabelled
            valid &= ~duplicate
        duplicates.append(duplicate)
    return Negatives(valid, unlabelled, dropped, *duplicates)
