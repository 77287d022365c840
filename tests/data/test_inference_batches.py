"""Rows gathered into batches: which of them are in one, and which are left out."""

import numpy as np
import pytest

from unime_jax.batch import Row
from unime_jax.data.inference_batches import batches, blocks_of, prepare
from unime_jax.data.shapes import BatchShapes, Bucket, Layout
from unime_jax.data.shared_rows import RowSize

SHAPES = BatchShapes((Bucket(8, 2),), Layout(patches=1, patch_bytes=3), 1, 2)


def gathered(sized):
    """The numbers of each batch's rows, and the blocks as they end."""
    steps = batches(iter(sized), [range(len(sized))], lambda *size: SHAPES, parts=1)
    return [step if isinstance(step, range) else list(step.rows) for step in steps]


def row(tokens, **fields):
    zero = np.zeros((tokens, 1), np.int32)
    return Row(zero[:, 0], zero, zero - 1, **fields)


def test_batches_have_the_sizes_of_their_rows_and_failures_are_said_to_all():
    # Sizes are those of the row.
    made = row(3, patches=np.zeros((2, 1, 3), np.uint8), truncated=1, unmatched_markers=1)
    size, _ = prepare(["a", "b"], lambda item: made, lambda *size: SHAPES, 1)
    assert size == RowSize(1, 3, 2, True, True)
    size, _ = prepare(["a"], lambda item: row(8), lambda *size: SHAPES, 0)
    assert size == RowSize(0, 8, 0, False, False)

    # A batch is full at its rows and ends with its block.
    full = SHAPES.rows
    sized = [(RowSize(number, 1), row(1)) for number in range(2 * full + 1)]
    blocks = blocks_of(len(sized), full + 1)
    assert blocks == [range(full + 1), range(full + 1, 2 * full + 1)]
    steps = list(batches(iter(sized), blocks, lambda *size: SHAPES, parts=1))
    found = [step if isinstance(step, range) else list(step.rows) for step in steps]
    first, second = blocks
    assert found == [[*first[:full]], [*first[full:]], first, [*second], second]

    # A row of an image alone is encoded.
    none = np.zeros((0, 1), np.int32)
    image = Row(none[:, 0], none, none, patches=np.zeros((2, 1, 3), np.uint8))
    assert gathered([(RowSize(0, 0, 2), image)]) == [[0], range(1)]

    # An item without a row is left out.
    assert gathered([(RowSize(0), None)]) == [range(1)]

    # A row that fails is said to all processes. The one whose row it was raises its error; the
    # others have its size alone, and stop.
    for preprocess in (lambda item: 1 / 0, lambda item: row(9)):
        size, error = prepare(["a"], preprocess, lambda *size: SHAPES, 0)
        assert size == RowSize(0, failed=True) and isinstance(error, Exception)
        with pytest.raises(type(error)):
            gathered([(size, error)])
        with pytest.raises(RuntimeError, match="item 0 could not be preprocessed by process 0"):
            gathered([(size, None)])


def test_shorter_rows_take_the_room_beside_longer_ones():
    """At the end of a small block; a chunk more, or rows with images beside texts, never."""
    rungs = {
        bucket: BatchShapes((bucket,), SHAPES.layout, 4, 8)
        for bucket in (Bucket(8, 0), Bucket(16, 0), Bucket(16, 2), Bucket(24, 3))
    }

    def shapes(tokens, tiles, clips=False):
        found = next(s for b, s in rungs.items() if tokens <= b.tokens and tiles <= b.tiles)
        return found.with_clips() if clips else found

    def sent(tokens, window):
        sized = [(RowSize(n, count), row(count)) for n, count in enumerate(tokens)]
        needed = []
        steps = batches(
            *(iter(sized), [range(len(sized))], shapes),
            parts=1,
            window=window,
            needs=lambda shapes: needed.append(shapes.buckets[0].tokens),
        )
        found = [
            (step.shapes.buckets[0].tokens, [size.number for size in step.sizes], [*step.rows])
            for step in steps
            if not isinstance(step, range)
        ]
        return found, needed

    # One program instead of two, for four rows in order.
    assert sent([9, 3, 12, 4], window=4) == ([(16, [0, 1, 2, 3], [0, 1, 2, 3])], [16])
    # Five rows are a chunk more.
    assert sent([9, 3, 12, 4, 9], window=5)[0] == [(8, [1, 3], [1, 3]), (16, [0, 2, 4], [0, 2, 4])]
    # A chunk that is full has no room.
    assert sent([9, 12, 9, 12, 3], window=5)[0] == [(8, [4], [4]), (16, [0, 1, 2, 3], [0, 1, 2, 3])]
    # A larger block keeps its shapes, which are known from the first row on.
    assert sent([9, 3], window=1) == ([(16, [0], [0]), (8, [1], [1])], [16, 8, 16, 8])
    # Texts do not go where images are.
    image = (RowSize(0, 9, 1), row(9, patches=np.zeros((1, 1, 3), np.uint8)))
    steps = batches(iter([image, (RowSize(1, 3), row(3))]), [range(2)], shapes, parts=1, window=2)
    assert [list(step.rows) for step in steps if not isinstance(step, range)] == [[1], [0]]
    # Images go where clips are, clips never where images are.
    large, small = (RowSize(0, 20, 3), row(20)), (RowSize(1, 9, 2), row(9))
    for clip, expected in ((0, [[0, 1]]), (1, [[0], [1]])):
        both = [(size._replace(clips=size.number == clip), x) for size, x in (large, small)]
        steps = batches(iter(both), [range(2)], shapes, parts=1, window=2)
        found = [step for step in steps if not isinstance(step, range)]
        assert sorted(list(step.rows) for step in found) == expected
        assert any(step.shapes.layout.clips for step in found)
