"""Memory, work and time bounds of a program, from its trace and its compilation."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from unime_jax import sharding
from unime_jax.batch import Inputs
from unime_jax.data.packing import bucket_shapes
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.models import forward
from unime_jax.planning import flops, traffic
from unime_jax.planning.chips import Slice
from unime_jax.planning.compiler import Compiled, argument_bytes, chip_bytes
from unime_jax.planning.program import Program


@dataclasses.dataclass(frozen=True)
class Load:
    """Assumed content of a batch by bucket: live rows, and real tokens of each row."""

    rows: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class RowCosts:
    """Costs of a row by bucket: useful FLOPs, and bytes kept for the backward pass."""

    useful: tuple[float, ...]
    kept: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip; the first four are exact, from shardings.

    `activations` are what the backward pass of a chunk keeps, or of all chunks if none is encoded
    twice, as traced; the compiler may fuse or drop some of it. They are a part of `temporaries`,
    which with `peak` are the compiler's; None: there is no compiler here.
    """

    weights: int
    optimizer: int
    inputs: int
    gradients: int
    activations: int
    temporaries: int | None
    peak: int | None
    capacity: int

    @property
    def fits(self) -> bool | None:
        """Whether the program fits; None if only a part is known, and that part fits."""
        known = self.weights + self.optimizer + self.inputs if self.peak is None else self.peak
        if known > self.capacity:
            return False
        return None if self.peak is None else True


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one call: FLOPs of all chips, bytes of one chip.

    `useful` are the matrix products that one forward pass over the real tokens of the live rows
    needs, and its backward pass by what is trained: nothing twice, no padding, no loss, attention
    over all pairs of a row's tokens. `unknown_loops` are counted once in `ici` and `hbm`.
    """

    useful: float
    executed: float
    ici: dict[str, float] | None
    hbm: float | None
    unknown_loops: int = 0


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


def assume(plan: BatchShapes, items: int, shares: Sequence[float], tokens: Sequence[int]) -> Load:
    """The load of a batch in which all items are distinct.

    Args:
      items: live rows.
      shares: of the live rows, by bucket; empty: all rows in the largest, the most there can be.
      tokens: of a row, by bucket; empty: as many as the bucket holds.

    Raises:
      ValueError: not one number for each bucket, or more than a bucket holds.
    """
    buckets = plan.buckets
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
        room = plan.chunks(bucket) * plan.chunk_rows(bucket)
        if count > room or not 0 < length <= bucket.tokens:
            raise ValueError(
                f"config.rows, config.tokens: {count} rows of {length} tokens do not fit the "
                f"bucket {bucket}, which has room for {room} rows"
            )
    return Load(rows, tuple(tokens))


def trips(plan: BatchShapes, load: Load) -> tuple[int, ...]:
    """Live chunks by bucket."""
    return tuple(
        math.ceil(rows / plan.chunk_rows(bucket)) for rows, bucket in zip(load.rows, plan.buckets)
    )


def memory(program: Program, where: Slice, costs: RowCosts, compiled: Compiled | None) -> Memory:
    """Memory of one chip."""
    trainable, frozen = program.parameters
    plan, shards = program.plan, sharding.row_shards(program.mesh)
    kept = [plan.chunk_rows(b) // shards * each for b, each in zip(plan.buckets, costs.kept)]
    if program.keeps:
        kept = [sum(plan.chunks(b) * each for b, each in zip(plan.buckets, kept))]
    weights, moments = chip_bytes((trainable, frozen)), chip_bytes(program.opt_state)
    return Memory(
        weights=weights,
        optimizer=moments,
        inputs=argument_bytes(program) - weights - moments,
        gradients=chip_bytes(trainable),
        activations=round(max(kept)),
        temporaries=compiled.temporaries if compiled else None,
        peak=compiled.peak if compiled else None,
        capacity=int(where.chip.hbm),
    )


def work(program: Program, load: Load, costs: RowCosts, compiled: Compiled | None) -> Work:
    """Arithmetic and traffic of one call under a load."""
    jaxpr = program.traced().jaxpr
    chunks = trips(program.plan, load)
    live = {}
    for group, rows in zip(program.groups, load.rows):
        places = np.arange(group.live.size).reshape(group.live.shape)
        live[id(group.live)] = places < rows
    known = [live.get(id(leaf)) for leaf in jax.tree.leaves(program.arguments)]
    moved = None
    if compiled and not compiled.too_large:
        moved = traffic.count(compiled.text, _loops(program, chunks))
    return Work(
        useful=sum(rows * each for rows, each in zip(load.rows, costs.useful)),
        executed=flops.executed(flops.live(jaxpr), known),
        ici=moved.ici if moved else None,
        hbm=moved.hbm if moved else None,
        unknown_loops=moved.unknown if moved else 0,
    )


def _loops(program: Program, chunks: Sequence[int]) -> Callable[[str], int | None]:
    """Trip counts of the loops over chunks, known by what they carry of every token."""

    def find(kind: str) -> int | None:
        for group, count in zip(program.groups, chunks):
            all_chunks, rows, tokens = group.tokens.sharding.shard_shape(group.tokens.shape)
            if re.search(rf"\[{all_chunks},(\d+,)*{rows},{tokens}[],]", kind):
                return count
        return None

    return find


def estimate(work: Work, where: Slice, items: int) -> Estimate:
    """Roofline estimate of a step; unknown parts count as zero."""
    chip = where.chip
    compute = work.executed / where.chips / chip.flops
    hbm = (work.hbm or 0.0) / chip.bandwidth
    moved = sum((work.ici or {}).values())
    ici = moved / where.ici if moved else 0.0
    parts = {"compute": compute, "hbm": hbm, "ici": ici}
    bound, seconds = max(parts.items(), key=lambda part: part[1])
    return Estimate(
        **parts,
        seconds=seconds,
        without_overlap=sum(parts.values()),
        bound=bound,
        mfu=work.useful / (seconds * where.chips * chip.flops),
        items_per_second=items / seconds,
    )


def row_costs(program: Program, load: Load) -> RowCosts:
    """Marginal cost of a row by bucket: cost(2 rows) - cost(1 row), so fixed costs cancel."""
    buckets = program.plan.buckets
    useful = [
        _flops(program, 2, tokens, bucket.tiles) - _flops(program, 1, tokens, bucket.tiles)
        if rows
        else 0.0
        for rows, tokens, bucket in zip(load.rows, load.tokens, buckets)
    ]
    kept = [_kept(program, 2, bucket) - _kept(program, 1, bucket) for bucket in buckets]
    return RowCosts(tuple(useful), tuple(kept) if program.parameters[0] else (0.0,) * len(buckets))


def _flops(program: Program, rows: int, tokens: int, tiles: int) -> float:
    trainable, frozen, inputs = _abstract(program, rows, tokens, tiles)
    execution = dataclasses.replace(program.execution, remat="none")
    encode = forward.make_encode(program.graph, execution)

    def once(trainable: Any, frozen: Any, inputs: Inputs) -> Any:
        if not trainable:
            return encode(trainable, frozen, inputs)
        return jax.grad(lambda p: encode(p, frozen, inputs).sum())(trainable)

    jaxpr = flops.live(jax.make_jaxpr(once)(trainable, frozen, inputs))
    return flops.executed(jaxpr, [None] * len(jaxpr.in_avals))


def _kept(program: Program, rows: int, bucket: Bucket) -> float:
    encode = forward.make_encode(program.graph, program.execution)

    def pullback(trainable: Any, frozen: Any, inputs: Inputs) -> Any:
        return jax.vjp(lambda p: encode(p, frozen, inputs), trainable)[1]

    kept = jax.eval_shape(pullback, *_abstract(program, rows, bucket.tokens, bucket.tiles))
    return float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)))


def _abstract(program: Program, rows: int, tokens: int, tiles: int) -> tuple[Any, Any, Inputs]:
    """Trainable and frozen parameters and a chunk, anywhere."""
    bucket = Bucket(tokens, tiles)
    group = bucket_shapes(BatchShapes((bucket,), program.plan.layout, rows, rows), bucket)
    trainable, frozen = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.parameters
    )
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), group)
    return trainable, frozen, inputs
