"""Work of a program under an assumed load, and the lower bound of its time."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from unime_jax.batch import Inputs
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.models import forward
from unime_jax.models.forward import MERGED
from unime_jax.models.frozen_vision import FEATURES
from unime_jax.planning import costs, largest
from unime_jax.planning.chips import Slice
from unime_jax.planning.compiler import Compiled
from unime_jax.planning.memory import kept_of_a_row
from unime_jax.planning.program import Program
from unime_jax.training.gradcache import KEPT


@dataclasses.dataclass(frozen=True)
class Load:
    """Assumed content of a batch by bucket: live items, and real tokens of each.

    `filled` are the rows that they take, by bucket; (): as many items share a row as are texts of
    that length in the bucket's.
    """

    rows: tuple[int, ...]
    tokens: tuple[int, ...]
    filled: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class RowCosts:
    """Costs of a row by bucket: useful FLOPs, and bytes kept for the backward pass."""

    useful: tuple[float, ...]
    kept: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one call: FLOPs of all chips, bytes of one chip.

    `useful` are the matrix products that one forward pass over the real tokens of the live rows
    needs, and its backward pass by what is trained: nothing twice, no padding, no loss, attention
    over all pairs of a row's tokens. `unknown_loops` are counted once in `ici` and `hbm`.
    `readers_and_writers` of HBM and `collectives` are the largest ones.
    """

    useful: float
    executed: float
    ici: dict[str, float] | None
    hbm: float | None
    unknown_loops: int = 0
    readers_and_writers: list[largest.Mover] = dataclasses.field(default_factory=list)
    collectives: list[largest.Mover] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Lower bound of a step's time by published peaks; most runs are slower.

    `seconds` is the longest of the three, as if all else hid behind it; `without_overlap` is their
    sum. `mfu` is the share of the chips' peak that useful FLOPs can reach in `seconds`.
    """

    compute: float
    hbm: float
    ici: float
    seconds: float
    without_overlap: float
    bound: str
    mfu: float
    items_per_second: float


def assume(shapes: BatchShapes, items: int, shares: Sequence[float], tokens: Sequence[int]) -> Load:
    """The load of a batch in which all items are distinct.

    Args:
      items: live rows.
      shares: of the live rows, by bucket; empty: all rows in the largest, the most there can be.
      tokens: of a row, by bucket; empty: as many as the bucket holds.

    Raises:
      ValueError: not one number for each bucket, or more than a bucket holds.
    """
    buckets = shapes.buckets
    shares = shares or (0.0,) * (len(buckets) - 1) + (1.0,)
    tokens = tokens or tuple(bucket.tokens for bucket in buckets)
    if len(shares) != len(buckets) or len(tokens) != len(buckets):
        raise ValueError(
            f"config.rows={tuple(shares)} and config.tokens={tuple(tokens)} must have one number "
            f"for each of the {len(buckets)} buckets, or be empty"
        )
    if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
        raise ValueError(f"config.rows={tuple(shares)} are shares of all rows: they add to 1")
    rows = tuple(round(share * items) for share in shares)
    for count, length, bucket in zip(rows, tokens, buckets):
        room = shapes.chunks(bucket) * shapes.chunk_rows(bucket)
        if (
            packed_rows(bucket, count, length) > room
            or not min(1, bucket.tokens) <= length <= bucket.tokens
        ):
            raise ValueError(
                f"config.rows, config.tokens: {count} rows of {length} tokens do not fit the "
                f"bucket {bucket}, which has room for {room} rows"
            )
    return Load(rows, tuple(tokens))


def live_chunks(shapes: BatchShapes, load: Load) -> tuple[int, ...]:
    """Chunks that hold a live row, by bucket."""
    return tuple(
        math.ceil(rows / shapes.chunk_rows(bucket))
        for rows, bucket in zip(filled_rows(shapes, load), shapes.buckets)
    )


def filled_rows(shapes: BatchShapes, load: Load) -> tuple[int, ...]:
    """Rows that hold an item, by bucket."""
    return load.filled or tuple(map(packed_rows, shapes.buckets, load.rows, load.tokens))


def packed_rows(bucket: Bucket, count: int, tokens: int) -> int:
    """Rows of a bucket that so many texts or other items of so many tokens take."""
    if bucket.texts == 1:
        return count
    return math.ceil(count / max(1, min(bucket.texts, bucket.tokens // max(tokens, 1))))


def live_tokens(load: Load) -> int:
    """Tokens of all live rows, without padding."""
    return sum(rows * tokens for rows, tokens in zip(load.rows, load.tokens))


def pad_share(shapes: BatchShapes, load: Load, live_chunks: Sequence[int]) -> float:
    """Share of padding among the tokens of all chunks that are computed; 0 without tokens."""
    computed = sum(
        chunks * shapes.chunk_rows(bucket) * bucket.tokens
        for chunks, bucket in zip(live_chunks, shapes.buckets)
    )
    return 1 - live_tokens(load) / computed if computed else 0.0


def row_costs(program: Program, load: Load) -> RowCosts:
    """Marginal cost of a row by bucket: cost(2 rows) - cost(1 row), so fixed costs cancel."""
    useful = [
        _useful(program, 2, bucket) - _useful(program, 1, bucket) if rows else 0.0
        for rows, bucket in zip(load.rows, _filled(program, load))
    ]
    kept = [kept_of_a_row(program, bucket) for bucket in program.shapes.buckets]
    return RowCosts(tuple(useful), tuple(kept))


def _filled(program: Program, load: Load) -> list[Bucket]:
    """Buckets as long as the rows that are in them, so without padding."""
    buckets = program.shapes.buckets
    return [Bucket(tokens, bucket.tiles) for tokens, bucket in zip(load.tokens, buckets)]


def _useful(program: Program, rows: int, bucket: Bucket) -> float:
    """FLOPs of a forward pass over so many full rows, and of the backward pass if any.

    Attention is XLA's: a kernel computes scores again for gradients, and pads.
    """
    execution = dataclasses.replace(program.execution, remat="none", attention="xla")
    encode = forward.make_encode(program.graph, execution)

    def once(trainable: Any, frozen: Any, inputs: Inputs) -> Any:
        if not trainable:
            return encode(trainable, frozen, inputs)
        return jax.grad(lambda p: encode(p, frozen, inputs).sum())(trainable)

    jaxpr = jax.make_jaxpr(once)(*program.chunk(rows, bucket))
    return costs.flops(jaxpr, [None] * len(jaxpr.in_avals))


def work(program: Program, load: Load, row: RowCosts, compiled: Compiled | None) -> Work:
    """Arithmetic and traffic of one call under a load."""
    useful = sum(rows * flops for rows, flops in zip(load.rows, row.useful))
    executed = costs.flops(program.traced().jaxpr, _known(program, load))
    if compiled is None or compiled.too_large:
        return Work(useful, executed, ici=None, hbm=None)
    moved = traffic(program, live_chunks(program.shapes, load), compiled.text)
    return Work(
        useful,
        executed,
        moved.ici,
        moved.hbm,
        moved.unknown_loops,
        largest.of_hbm(moved),
        largest.of_ici(moved),
    )


def _known(program: Program, load: Load) -> list[np.ndarray | None]:
    """Which rows are live, among the flat arguments."""
    live = {}
    for group, filled in zip(program.groups, filled_rows(program.shapes, load)):
        places = np.arange(group.live.size).reshape(group.live.shape)
        live[id(group.live)] = places < filled
    return [live.get(id(leaf)) for leaf in jax.tree.leaves(program.arguments)]


def traffic(program: Program, chunks: Sequence[int], text: str) -> costs.Traffic:
    """Traffic of the compiled program, given its live chunks by bucket.

    A loop over chunks is known by what it carries of every token, or of every tile where rows
    have no tokens, or where it makes features of images alone.
    """

    def trips(type: str, scopes: str) -> int | None:
        for carried in ("tokens", "patches"):
            for number, (group, count) in enumerate(zip(program.groups, chunks)):
                array = getattr(group, carried)
                if array is None or not array.shape[-1]:
                    continue
                all_chunks, rows, each, *_ = array.sharding.shard_shape(array.shape)
                kept = program.kept[number] if KEPT in scopes else 0  # there is room for no more
                leading = f"(?:{all_chunks}|{kept})" if kept else str(all_chunks)
                if re.search(rf"\[{leading},(\d+,)*{rows},{each}[],]", type):
                    return runs(group, count, program.kept[number], scopes)
        return None

    def runs(group: Inputs, count: int, kept: int, scopes: str) -> int:
        """Of a loop over a group's chunks, by the scopes that it is in."""
        if FEATURES in scopes:
            return count
        if KEPT in scopes:
            return min(count, kept)
        others = max(count - kept, 0)
        merged = min(program.merged, max(group.live.shape[0] - kept, 1))
        if MERGED in scopes:
            return others // merged
        merging = merged > 1 and "transpose(" not in scopes
        return others % merged if merging else others

    return costs.traffic(text, trips)


def estimate(work: Work, where: Slice, items: int) -> Estimate:
    """Roofline estimate of a step; unknown parts count as zero."""
    chip = where.chip
    moved = sum((work.ici or {}).values())
    parts = {
        "compute": work.executed / where.chips / chip.flops,
        "hbm": (work.hbm or 0.0) / chip.bandwidth,
        "ici": moved / where.ici if moved else 0.0,
    }
    bound, seconds = max(parts.items(), key=lambda part: part[1])
    return Estimate(
        **parts,
        seconds=seconds,
        without_overlap=sum(parts.values()),
        bound=bound,
        mfu=work.useful / (seconds * where.chips * chip.flops),
        items_per_second=items / seconds,
    )
