"""Chunk size, remat and kept chunks that fit a device's memory, by shapes alone: no compilation."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unime_jax import config, sharding
from unime_jax.backbones import Backbone
from unime_jax.data.bucket_filling import bucket_shapes
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes, pair_shapes
from unime_jax.models import attention, forward, frozen_vision
from unime_jax.models.settings import Remat
from unime_jax.models.vlm import Execution
from unime_jax.training import activations, kept_features, state
from unime_jax.training.settings import ExecutionConfig

# From what keeps most to what keeps least, with what layers compute again by it, as a share of a
# forward pass: of a 7B with adapters, as counted.
AGAIN: dict[Remat, float] = {
    "none": 0.0,
    "dots": 0.03,
    "attention_up": 0.35,
    "attention": 0.65,
    "full": 1.0,
}
ORDER = tuple(AGAIN)
USED = 0.85  # of a device's memory; the rest is for what the estimate does not see
# Of a chunk on each device, at most. With fewer than half of it gathering a layer's weights takes
# longer than multiplying by them; with more, memory is better spent on kept chunks.
ENOUGH_TOKENS = 2048
MOST_MERGED = 4  # chunks at once without gradient: of weights' three ways, one is a quarter
# A layer's own arrays at a time, forward or backward, by what it keeps without remat.
LAYER_ARRAYS = 2


@dataclasses.dataclass(frozen=True)
class Choice:
    """Values for four keys of a config, and why, as a sentence for the log."""

    chunk_size: int
    remat: Remat
    kept_chunks: tuple[int, ...]
    merged_chunks: int
    reason: str


def capacity(mesh: Mesh) -> int | None:
    """Bytes of a device's memory; None: the platform does not say, or it is the host's own."""
    device = next((each for each in mesh.devices.flat if _is_local(each)), None)
    if device is None or device.platform == "cpu":
        return None
    return (device.memory_stats() or {}).get("bytes_limit")


def choose(
    settings: config.TrainConfig, backbone: Backbone, mesh: Mesh, memory: int, most_rows: int
) -> Choice:
    """The remat with which least is computed twice, by layers or as whole chunks, in the memory.

    Chunks are as small as is worth it, and memory that is left keeps chunks of the largest bucket,
    so that they are not encoded twice. What the config says already stays.

    Args:
      memory: bytes of a device, of which `USED` are filled.
      most_rows: of the largest bucket on each device.
    """
    dtype, frozen_dtype = settings.execution.dtype, settings.execution.frozen_dtype
    assert dtype and frozen_dtype and settings.trainable is not None  # resolved before
    model = state.abstract_model(
        backbone,
        mesh,
        adapters=settings.lora,
        trainable=settings.trainable,
        frozen_dtype=jnp.dtype(frozen_dtype),
    )
    trainable, frozen = (model.part(model.parameters, trainable=which) for which in (True, False))
    largest = settings.data.buckets[-1]
    shards = sharding.row_shards(mesh)
    implementation = attention.implementation(settings.execution.attention, mesh)

    @functools.cache
    def row(remat: Remat, bucket: Bucket = largest) -> float:
        execution = Execution(jnp.dtype(dtype), remat, implementation)
        encode = forward.make_encode(model.graph, execution)
        trained, fixed = ({p: _plain(x) for p, x in part.items()} for part in (trainable, frozen))
        return activations.bytes_of_a_row(encode, trained, fixed, bucket, backbone.layout)

    depth = max(leaf.shape[0] for leaf in model.parameters.values() if leaf.ndim == 3)
    whole = sum(leaf.size * jnp.dtype(dtype).itemsize for leaf in model.parameters.values())
    # The largest parameter that is gathered whole: of stacks it is a layer's.
    tables = (leaf.size for leaf in model.parameters.values() if leaf.ndim < 3)
    table = max(tables, default=0) * jnp.dtype(dtype).itemsize
    # Weights, moments and gradients, two batches, two gathered layers, and the largest table.
    held = float(_on_a_device(model.parameters) + 3 * _on_a_device(trainable))
    shapes = _shapes(settings, backbone, most_rows * shards, shards)  # chunks change rounding alone
    held += 2 * _batch_bytes(shapes) / shards
    held += 2 * whole / depth + table
    held += _kept_features(settings.execution, model, shapes, mesh)
    arrays = LAYER_ARRAYS * row("none") / depth
    room = USED * memory - held
    patches = backbone.layout.patches
    tokens = max(1, largest.tokens, largest.tiles * patches)
    rows = settings.chunk_size // shards or min(enough_rows(largest, patches), most_rows)
    given = settings.execution.remat
    wanted: Sequence[Remat] = ORDER if given == "auto" else (given,)
    keeps = {remat: row(remat) for remat in wanted}

    def of_chunk(remat: Remat) -> float:
        """Bytes on a device of the chunk that keeps most, of which one layer has all its arrays.

        Rows of several texts may be longer than the largest bucket's, and their chunks larger.
        """
        shapes = _shapes(settings, backbone, rows * shards, shards)
        of_rows = [shapes.chunk_rows(bucket) / shards for bucket in shapes.buckets]
        kept, all_arrays = (
            max(n * row(each, bucket) for n, bucket in zip(of_rows, shapes.buckets))
            for each in (remat, "none")
        )
        return kept + LAYER_ARRAYS * all_arrays / depth

    def computed_twice(remat: Remat) -> float:
        """As a share of a forward pass; infinite: it does not fit."""
        spare = room - of_chunk(remat)
        if spare < 0:
            return math.inf
        shapes = _shapes(settings, backbone, rows * shards, shards)
        live = _live_chunks(shapes)
        kept = _kept_chunks(shapes, spare, lambda bucket: row(remat, bucket) / shards)
        work = [bucket.tokens * shapes.chunk_rows(bucket) for bucket in shapes.buckets]
        done, of = (sum(map(operator.mul, counts, work)) for counts in (kept, live))
        once = done / of if done else 0.0
        # All that "none" keeps is three times as much to write and read, to save attention alone.
        if remat == "none" and len(wanted) > 1 and once < 1:
            return math.inf
        return AGAIN.get(remat, 1.0) + 1 - once

    remat = min(reversed(wanted), key=computed_twice)
    kept = keeps[remat]
    if not settings.chunk_size and computed_twice(remat) == math.inf:
        rows = max(1, min(rows, int(room // (kept + arrays))))
    chunk_size = rows * shards
    used = of_chunk(remat)
    counts = settings.execution.kept_chunks
    if counts is None:
        shapes = _shapes(settings, backbone, chunk_size, shards)
        counts = ()
        if settings.execution.recompute and room > used:
            counts = _kept_chunks(shapes, room - used, lambda bucket: row(remat, bucket) / shards)
            each = [shapes.chunk_rows(b) * row(remat, b) / shards for b in shapes.buckets]
            room -= sum(count * size for count, size in zip(counts, each))
    elif not counts and not settings.chunk_size and room > used:  # larger chunks then
        fitting = int(room // (kept + arrays))
        rows = max(rows, min(1 << (fitting.bit_length() - 1), most_rows))
        chunk_size, used = rows * shards, rows * (kept + arrays)
    reason = (
        f"{rows} rows of {tokens:,} tokens or patches on a device keep {rows * kept / 1e9:.1f} GB "
        f"with remat {remat!r}, beside {held / 1e9:.1f} GB of weights, moments and batches and "
        f"{rows * arrays / 1e9:.1f} GB of one layer, of {memory / 1e9:.1f} GB; an estimate by "
        "shapes, which job=plan checks by compiling"
    )
    merged = int(room // (rows * arrays)) if mesh.shape["fsdp"] > 1 else 1
    return Choice(chunk_size, remat, tuple(counts), max(1, min(merged, MOST_MERGED)), reason)


def _kept_features(
    settings: ExecutionConfig, model: state.AbstractModel, shapes: BatchShapes, mesh: Mesh
) -> float:
    """Bytes on a device of a frozen tower's features, where they are kept for both passes."""
    assert settings.dtype  # resolved before
    execution = Execution(jnp.dtype(settings.dtype), "full", "xla")
    vision = kept_features.choose(settings, model, execution, shapes, mesh)
    if vision is None:
        return 0.0
    groups = tuple(bucket_shapes(shapes, bucket) for bucket in shapes.buckets if bucket.tiles)
    return frozen_vision.bytes_of(vision, model.parameters, groups) / sharding.row_shards(mesh)


def enough_rows(bucket: Bucket, patches: int) -> int:
    """Rows of a chunk on a device with which gathering weights takes no longer than using them."""
    return max(1, ENOUGH_TOKENS // max(1, bucket.tokens, bucket.tiles * patches))


def _kept_chunks(
    shapes: BatchShapes, spare: float, of_a_row: Callable[[Bucket], float]
) -> tuple[int, ...]:
    """As many chunks by bucket as the spare bytes hold; () if that is none.

    Those that are expected to hold the most tokens come first; where that is not known, those of
    the largest bucket alone.

    Args:
      of_a_row: bytes that a row keeps on a device, by bucket, over the number of devices.
    """
    live = _live_chunks(shapes)
    counts = [0] * len(live)
    tokens = [bucket.share * bucket.tokens for bucket in shapes.buckets]
    for number in sorted(range(len(live)), key=tokens.__getitem__, reverse=True):
        bucket = shapes.buckets[number]
        if live[number]:
            each = shapes.chunk_rows(bucket) * of_a_row(bucket)
            counts[number] = min(int(spare // each), live[number])
            spare -= counts[number] * each
    return tuple(counts) if any(counts) else ()


def _live_chunks(shapes: BatchShapes) -> list[int]:
    """Chunks that are expected to hold rows, by bucket.

    Buckets that were chosen for the rows of a sample have shares, and the largest is for rows that
    the sample did not have. Of other buckets nothing is known but that the largest takes all.
    """
    *others, largest = shapes.buckets
    if not others or any(bucket.share == 1 for bucket in others):
        return [*[0] * len(others), shapes.chunks(largest)]
    return [round(b.share * shapes.rows / shapes.chunk_rows(b)) for b in others] + [0]


def _shapes(
    settings: config.TrainConfig, backbone: Backbone, chunk_size: int, shards: int
) -> BatchShapes:
    return pair_shapes(
        settings.data.buckets,
        backbone.layout,
        batch_size=settings.batch_size,
        negatives=settings.data.negatives,
        chunk_size=chunk_size,
        shards=math.lcm(shards, jax.process_count()),
    )


def _batch_bytes(shapes: BatchShapes) -> int:
    groups = [bucket_shapes(shapes, bucket) for bucket in shapes.buckets]
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(groups))


def _on_a_device(parameters: dict[str, Any]) -> int:
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in parameters.values()
    )


def _plain(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _is_local(device: jax.Device) -> bool:
    return device.process_index == jax.process_index()
