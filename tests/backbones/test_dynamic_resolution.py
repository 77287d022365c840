"""Sizes, patches and places of images against transformers' own functions."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as pil
from transformers.vision_utils import get_vision_position_ids

from tests.backbones.images import noise
from unime_jax.backbones.qwen2_vl import dynamic_resolution

SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.sampled_from([(3136, 12845056), (3136, 1003520), (100352, 150528)]))
@example(672, 672, (3136, 12845056))
@example(14, 42, (3136, 12845056))  # half a side rounds to even
@example(1, 200, (3136, 12845056))
@example(1, 201, (3136, 12845056))
@example(10, 1500, (3136, 12845056))
@example(60, 50, (3136, 12845056))  # exactly the least area, of an image with less
@example(330, 455, (100352, 150528))  # exactly the most
@example(30, 5900, (100352, 150528))  # not a token would be left of the height
def test_sizes(height, width, pixels):
    def size(resize):
        try:
            return resize(height, width, 28, *pixels)
        except ValueError:
            return "line"

    found = size(dynamic_resolution.smart_resize)
    assert found == size(pil.smart_resize)
    if found != "line":
        assert found[0] * found[1] <= dynamic_resolution.largest_area(28, *pixels)


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 3]), st.sampled_from([2, 0, 3]))
def test_patches_and_places(rows, columns, merge, resample):
    """The processor's order, and its pixels; its two frames are the same image."""
    image, patch = noise(37, 23), 4
    grid = rows * merge, columns * merge
    patches = dynamic_resolution.cut_patches(
        image, grid, patch=patch, merge=merge, resample=resample
    )
    side = patch * merge
    resized = image.resize((columns * side, rows * side), Image.Resampling(resample))
    theirs, height, width = pil.Qwen2VLImageProcessorPil().patchify(
        np.asarray(resized).transpose(2, 0, 1), patch, merge, 2
    )
    assert (height, width) == grid
    frames = theirs.reshape(-1, 3, 2, patch * patch)
    for frame in range(2):
        np.testing.assert_array_equal(patches, frames[:, :, frame].reshape(len(patches), -1))
    places = get_vision_position_ids(torch.tensor([[1, height, width]]), merge)
    np.testing.assert_array_equal(dynamic_resolution.patch_places(grid, merge), places)


def test_positions_worked_by_hand_and_a_line_is_an_error():
    """Worked by hand: two texts, an image of 2 x 3 tokens, a text, the image as text, a text."""
    # Two texts, an image of 2 x 3 tokens, a text, the image as text, a text.
    image = dynamic_resolution.Place(2, 3)
    places = [None, None, image, None, image, None]
    found = dynamic_resolution.positions(places, [False, True, True, True, False, False])
    assert found.dtype == np.int32
    assert found.T.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8, 9, 10, 11, 12],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8, 9, 10, 11, 12],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    ]

    # A line is an error that says so.
    with pytest.raises(ValueError, match=r"image of 1 x 201 pixels is a line"):
        dynamic_resolution.smart_resize(1, 201, 28, 3136, 12845056)
