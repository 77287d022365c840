"""Columns that are barred to a row by what its query and target are beside those of other pairs.

They are a byte a score, and only where an option asks for them. By blocks of columns a device never
has a float32 a score, but it has these bytes of its own rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Integer, UInt8

from unime_jax.losses import ring
from unime_jax.losses.selection import DUPLICATE_QUERY, DUPLICATE_TARGET, NO_NEGATIVE, Settings
from unime_jax.losses.similarity import cosines


class Barred(NamedTuple):
    """Bits of `selection` by candidate, and by the pair that a query belongs to."""

    columns: UInt8[Array, "B M"] | None
    pairs: UInt8[Array, "B B"] | None


def representatives(target_id: Integer[Array, " G"]) -> Int[Array, " G"]:
    """Number of the first row with the same target, for every row: one candidate a target.

    Sorting keeps this O(G log G) and independent of how rows were dealt to processes.
    """
    order = jnp.argsort(target_id, stable=True)
    ordered = target_id[order]
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    start = jax.lax.cummax(jnp.where(starts, jnp.arange(order.size), 0))
    return jnp.zeros_like(order).at[order].set(order[start])


def find_barred(
    queries: Float32[Array, "B D"],
    candidates: Float32[Array, "M D"],
    positive: Integer[Array, " B"],
    target_id: Integer[Array, " M"],
    query_id: Integer[Array, " B"] | None,
    pair_mask: Bool[Array, " B"] | None,
    labelled: Integer[Array, "B H"],
    settings: Settings,
    column_block: int | None,
) -> Barred:
    """What pools, equal queries and duplicates bar; arguments as of `contrastive`, all given.

    A candidate is barred as the target of another pair if any of the pairs that have it, or a copy
    of it, as their target is barred. Pairs outside of `pair_mask` bar nothing.
    """
    alike_queries, alike_targets = settings.duplicate_queries, settings.duplicate_targets
    if settings.pool is query_id is alike_queries is alike_targets is None:
        return Barred(None, None)
    queries, candidates = jax.lax.stop_gradient((queries, candidates))
    first = representatives(target_id)
    columns: list[Bool[Array, "B M"]] = []
    pairs: list[Bool[Array, "B B"]] = []
    bits: list[int] = []
    by_pair = settings.symmetric or settings.query_query
    if settings.pool is not None:
        pool = jnp.arange(queries.shape[0]) // settings.pool
        pools = queries.shape[0] // settings.pool
        own = jnp.concatenate([positive[:, None], labelled], axis=1)
        if pair_mask is not None:
            own = jnp.where(pair_mask[:, None], own, -1)
        columns.append(~_in_pool(pool, pools, own, first))
        pairs.append(pool[:, None] != pool)
        bits.append(NO_NEGATIVE)
    if query_id is not None:
        pairs.append(_of_pairs(query_id[:, None] == query_id, pair_mask))
        columns.append(_to_columns(pairs[-1], positive, first))
        bits.append(NO_NEGATIVE)
    if alike_queries is not None:
        alike = _above(queries, queries, alike_queries, column_block)
        pairs.append(_of_pairs(alike, pair_mask))
        columns.append(_to_columns(pairs[-1], positive, first))
        bits.append(DUPLICATE_QUERY)
    if alike_targets is not None:
        own = candidates[positive]
        if column_block is not None:
            own = ring.blockwise(ring.pick, positive, candidates)
        columns.append(_above(own, candidates, alike_targets, column_block))
        bits.append(DUPLICATE_TARGET)
        if by_pair:
            pairs.append(_above(own, own, alike_targets, column_block))
    return Barred(_combine(columns, bits), _combine(pairs, bits) if by_pair else None)


def _of_pairs(flags: Bool[Array, "B B"], pair_mask: Bool[Array, " B"] | None) -> Array:
    return flags if pair_mask is None else flags & pair_mask


def _combine(flags: list[Bool[Array, "B columns"]], bits: list[int]) -> UInt8[Array, "B columns"]:
    result = jnp.zeros(flags[0].shape, jnp.uint8)
    for flag, bit in zip(flags, bits, strict=True):
        result |= jnp.where(flag, jnp.uint8(bit), jnp.uint8(0))
    return result


def _in_pool(
    pool: Int[Array, " B"],
    pools: int,
    own: Integer[Array, "B own"],
    first: Int[Array, " M"],
) -> Bool[Array, "B M"]:
    """Candidates that are among those of a pair of the query's pool; `own` is -1 for none."""
    place = jnp.where(own < 0, first.size, first[own])  # none: outside, so dropped
    members = jnp.zeros((pools, first.size), bool)
    members = members.at[pool[:, None], place].set(True, mode="drop")
    return ring.own_rows(lambda pool, members: members[pool], pool, members[:, first])


def _to_columns(
    flags: Bool[Array, "B B"], positive: Integer[Array, " B"], first: Int[Array, " M"]
) -> Bool[Array, "B M"]:
    """Flags by pair as flags by candidate."""

    def spread(flags: Array, column: Array, first: Array) -> Array:
        # Made of the flags, so that it varies over devices as they do.
        columns = jnp.broadcast_to(flags[:, :1] & False, (flags.shape[0], first.size))
        return columns.at[:, column].max(flags)[:, first]

    return ring.own_rows(spread, flags, first[positive], first)


def _above(
    rows: Float32[Array, "B D"],
    columns: Float32[Array, "columns D"],
    threshold: float,
    column_block: int | None,
) -> Bool[Array, "B columns"]:
    """Which cosines are above the threshold."""
    if column_block is None:
        return cosines(rows, columns) > threshold
    size = columns.shape[0]

    def block(rows: Array, columns: Array, number: Array) -> Array:
        def look(seen: Array, part: tuple[Array, Array, Array], _: None) -> tuple[Array, None]:
            columns, number, live = part
            scores = jnp.einsum("bd,md->bm", rows, columns, precision=jax.lax.Precision.HIGHEST)
            return seen.at[:, number].max((scores > threshold) & live), None

        seen = ring.vary(jnp.zeros((rows.shape[0], size), bool))
        part = columns, number, jnp.ones_like(number, bool)
        return ring.visit(look, seen, part, min(column_block, number.size))[0]

    return ring.blockwise(block, rows, columns, jnp.arange(size))
