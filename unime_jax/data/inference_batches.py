"""Batches for inference: rows of one shape, gathered as they are prepared, block by block.

A batch is full when a process has no room left in it. What is left at the end of a block is a batch
as well, so that batches follow from a block's items and the shapes alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from unime_jax.batch import Row
from unime_jax.data.bucket_filling import smallest_bucket
from unime_jax.data.shapes import BatchShapes
from unime_jax.data.shared_rows import Prepared, RowSize

T = TypeVar("T")


class Shapes(Protocol):
    """The shapes of a row's batch."""

    def __call__(self, tokens: int, tiles: int, clips: bool = False) -> BatchShapes:
        """By the row's tokens and tiles, and whether its patches are of clips, see `Layout`."""
        ...


class Batch(NamedTuple):
    """Rows of all processes by their sizes, and this process's own rows among them by number."""

    block: range
    shapes: BatchShapes
    sizes: list[RowSize]
    rows: dict[int, Row]


def blocks_of(total: int, size: int) -> list[range]:
    """The numbers of each block's items; one empty block where there are no items."""
    starts = range(0, total, max(size, 1)) or [0]
    return [range(start, min(start + size, total)) for start in starts]


def prepare(
    items: Sequence[T], preprocess: Callable[[T], Row | None], shapes: Shapes, number: int
) -> Prepared:
    """An item's row and its size; an error is kept until all processes know of it."""
    try:
        return sized(number, preprocess(items[number]), shapes)
    except Exception as error:
        return RowSize(number, failed=True), error


def sized(number: int, row: Row | None, shapes: Shapes) -> Prepared:
    """The row of item `number` with its size; None: the item is left out.

    Raises:
      ValueError: the row fits no bucket.
    """
    if row is None:
        return RowSize(number), None
    tokens, tiles = len(row.tokens), 0 if row.patches is None else len(row.patches)
    clips = row.clips > 0
    size = RowSize(number, tokens, tiles, row.truncated > 0, row.unmatched_markers > 0, clips=clips)
    smallest_bucket(row, shapes(tokens, tiles, clips))
    return size, row


def batches(
    sized: Iterator[Prepared],
    blocks: Sequence[range],
    shapes: Shapes,
    parts: int,
    *,
    window: int = 0,
    needs: Callable[[BatchShapes], object] = lambda shapes: None,
) -> Iterator[Batch | range]:
    """Full batches as they fill, then the rest of a block, then the block itself.

    All processes make the same batches of it, each with its own rows.

    Args:
      window: most items of a small block. Of what is left at its end, rows go where longer ones
        leave room in a chunk that is computed anyway: fewer chunks, and fewer programs.
      needs: is called with shapes that there will be a batch of, from their first row on; in a
        small block, at its end.
    """
    for block in blocks:
        waiting: dict[BatchShapes, Batch] = {}
        room: dict[BatchShapes, list[int]] = {}
        for number in block:
            size, row = next(sized)
            if isinstance(row, Exception):
                raise row
            if size.failed:
                raise RuntimeError(
                    f"item {number} could not be preprocessed by process {number % parts} of"
                    f" {parts}, whose turn it was: see what that process says"
                )
            if not (size.tokens or size.tiles):  # left out
                continue
            batch_shapes = shapes(size.tokens, size.tiles, size.clips)
            if len(block) > window:
                needs(batch_shapes)
            batch = waiting.setdefault(batch_shapes, Batch(block, batch_shapes, [], {}))
            left = room.setdefault(batch_shapes, [batch_shapes.rows // parts] * parts)
            batch.sizes.append(size)
            if row is not None:
                batch.rows[number] = row
            left[number % parts] -= 1
            if left[number % parts] < 1:
                del room[batch_shapes]
                yield waiting.pop(batch_shapes)
        rest = _joined(waiting, parts) if len(block) <= window else [*waiting.values()]
        for batch in rest:
            needs(batch.shapes)
        yield from rest
        yield block


def _joined(waiting: dict[BatchShapes, Batch], parts: int) -> list[Batch]:
    """Batches of which none fits into the chunks that another one computes anyway."""
    kept: list[Batch] = []
    rising = sorted(
        waiting.values(), key=lambda batch: (_largest(batch.shapes), batch.shapes.layout.clips)
    )
    for i, batch in enumerate(rising):
        for j, longer in enumerate(rising[i + 1 :], i + 1):
            if _has_room(longer, batch, parts):
                order = sorted([*longer.sizes, *batch.sizes])
                rows = dict(sorted((longer.rows | batch.rows).items()))
                rising[j] = longer._replace(sizes=order, rows=rows)
                break
        else:
            kept.append(batch)
    return kept


def _largest(shapes: BatchShapes) -> tuple[int, int]:
    return shapes.buckets[-1].tokens, shapes.buckets[-1].tiles


def _has_room(longer: Batch, batch: Batch, parts: int) -> bool:
    """Whether the rows of `batch` fit beside those of `longer`, without one more chunk.

    Rows stay among those with images, or without; images may go where clips are, not the reverse.
    """
    if batch.shapes.layout.clips and not longer.shapes.layout.clips:
        return False
    sizes = zip(_largest(batch.shapes), _largest(longer.shapes), strict=True)
    if any(small > large or bool(small) != bool(large) for small, large in sizes):
        return False
    chunk = longer.shapes.chunk_size // parts
    taken, added = (
        np.bincount([size.number % parts for size in one.sizes], minlength=parts)
        for one in (longer, batch)
    )
    return bool((taken + added).max() <= chunk * -(-taken.max() // chunk))
