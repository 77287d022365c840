"""Checks of the arguments of `contrastive`: settings, shapes and dtypes that cannot be meant."""

from typing import get_args

import jax.numpy as jnp

from unime_jax.losses.selection import HardnessOn, Settings


def check_settings(settings: Settings, column_block: int | None) -> None:
    if settings.temperature is not None and not settings.temperature > 0:
        raise ValueError(
            f"contrastive: temperature is {settings.temperature}; it must be greater than 0"
        )
    if settings.hard_negatives is not None and settings.hard_negatives < 1:
        raise ValueError(
            f"contrastive: hard_negatives is {settings.hard_negatives}; "
            "give 1 or more, or None to contrast all negatives"
        )
    if column_block is not None and column_block < 1:
        raise ValueError(
            f"contrastive: column_block is {column_block}; give 1 or more columns, or None for all"
        )
    if settings.pool is not None and settings.pool < 1:
        raise ValueError(
            f"contrastive: pool is {settings.pool}; give 1 or more pairs, or None for all"
        )
    if settings.hardness_on not in get_args(HardnessOn):
        raise ValueError(
            f"contrastive: hardness_on is {settings.hardness_on!r}; use one of "
            f"{get_args(HardnessOn)}"
        )
    for term in ("query_query", "document_document"):
        margin = getattr(settings, f"{term}_margin")
        if margin is not None and not getattr(settings, term):
            raise ValueError(
                f"contrastive: {term}_margin is {margin}, but {term} is off; turn the term on, or "
                "leave its margin None"
            )


def check_arrays(
    queries,
    candidates,
    positive,
    target_id,
    query_id,
    closed,
    pair_mask,
    temperature,
    explicit_negatives,
    candidate_mask,
) -> None:
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"contrastive: queries {queries.shape} and candidates {candidates.shape} must be "
            "[B, D] and [M, D] with the same D"
        )
    pairs, columns = queries.shape[0], candidates.shape[0]
    if not pairs or not columns:
        raise ValueError(
            f"contrastive: {pairs} queries and {columns} candidates; need some of both"
        )
    if positive is None and columns < pairs:
        raise ValueError(
            f"contrastive: without `positive` query i's positive is candidate i, but there are "
            f"{pairs} queries and only {columns} candidates"
        )
    integers, booleans = ("integers", jnp.integer), ("booleans", jnp.bool_)
    floats = ("a number or floats", jnp.floating)
    for name, array, letters, (kind, dtype) in (
        ("positive", positive, "[B]", integers),
        ("target_id", target_id, "[M]", integers),
        ("query_id", query_id, "[B]", integers),
        ("closed", closed, "[B]", booleans),
        ("pair_mask", pair_mask, "[B]", booleans),
        ("temperature", temperature, "[B]", floats),
        ("candidate_mask", candidate_mask, "[M]", booleans),
        ("explicit_negatives", explicit_negatives, "[B, H]", integers),
    ):
        if array is None:
            continue
        length = columns if letters == "[M]" else pairs
        rank = 2 if letters == "[B, H]" else 1
        right_shape = len(array.shape) == rank and array.shape[0] == length
        if not right_shape or not jnp.issubdtype(array.dtype, dtype):
            raise ValueError(
                f"contrastive: {name} is {array.dtype}{list(array.shape)}; it must be {kind} "
                f"{letters} with B = {pairs} queries and M = {columns} candidates"
            )
