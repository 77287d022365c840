"""Rows gathered into batches: which of them are in one, and which are left out."""

import numpy as np

from unime_jax.batch import Row
from unime_jax.data.inference_batches import batches
from unime_jax.data.shapes import BatchShapes, Bucket, Layout
from unime_jax.data.shared_rows import RowSize

SHAPES = BatchShapes((Bucket(8, 2),), Layout(patches=1, patch_bytes=3), 1, 2)


def gathered(sized):
    """The numbers of each batch's rows, and the blocks as they end."""
    steps = batches(iter(sized), [range(len(sized))], lambda tokens, tiles: SHAPES, parts=1)
    return [step if isinstance(step, range) else list(step.rows) for step in steps]


def test_a_row_of_an_image_alone_is_encoded():
    none = np.zeros((0, 1), np.int32)
    image = Row(none[:, 0], none, none, patches=np.zeros((2, 1, 3), np.uint8))
    assert gathered([(RowSize(0, 0, 2), image)]) == [[0], range(1)]


def test_an_item_without_a_row_is_left_out():
    assert gathered([(RowSize(0), None)]) == [range(1)]
