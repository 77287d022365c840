"""AnyRes geometry against transformers' own packing, run on a table of distinct numbers."""

import functools
import json
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextModel,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionModel,
)
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from tests.backbones.images import noise
from tests.backbones.tiny_folders import NARROW, pinpoints, tiny_config
from tests.tables import for_each
from unime_jax.backbones.llava import anyres

TILE, PATCH = 384, 14
SIDE = TILE // PATCH
WIDTH = 8  # features of the tiny model
SIZES = st.one_of(
    st.tuples(st.integers(1, 2400), st.integers(1, 2400)),
    st.tuples(st.integers(1, 64), st.integers(1, 3000)),
    st.tuples(st.integers(1, 3000), st.integers(1, 64)),
)
EDGES = [(1, 200), (200, 1), (1, 1), (300, 301), (1240, 1754), (1754, 1240), (384, 384), (94, 423)]

# LLaVA-NeXT as published: CLIP of 336 pixels, five canvases, maps are never shrunk.
NEXT_TILE = 336
NEXT_SIDE = NEXT_TILE // PATCH
NEXT_CANVASES = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
LEGACY = pathlib.Path(__file__).parents[1] / "golden" / "hf_legacy"

# Recorded from LLaVE's original code: largest grid, width, height, tiles, visual tokens, rows and
# columns of the map, and the content's box (left, top, right, bottom) on its canvas.
LAYOUT = [
    (2, 224, 224, 2, 1485, 27, 27, (0, 0, 384, 384)),
    (2, 385, 384, 3, 1512, 27, 28, (191, 0, 576, 384)),
    (2, 500, 375, 3, 1728, 27, 36, (128, 0, 640, 384)),
    (2, 640, 427, 5, 2709, 36, 54, (0, 127, 768, 640)),
    (2, 480, 640, 5, 2943, 54, 40, (96, 0, 672, 768)),
    (2, 800, 400, 3, 2214, 27, 54, (0, 0, 768, 384)),
    (2, 1344, 1344, 5, 3699, 54, 54, (0, 0, 768, 768)),
    (2, 4, 18, 2, 945, 27, 7, None),
    (6, 500, 375, 3, 1728, 27, 36, (128, 0, 640, 384)),
    (6, 640, 480, 5, 2929, 40, 54, (0, 96, 768, 672)),
    (6, 800, 400, None, 4009, 40, 81, None),
    (6, 1024, 768, None, 4725, 54, 73, None),
    (6, 1344, 1344, None, 7371, 81, 81, None),
]


def canvases(grid: int, tile: int = TILE) -> tuple[tuple[int, int], ...]:
    return tuple((h, w) for h, w in pinpoints(tile, grid))


def slots(height, width, grid, max_tiles=9):
    return anyres.image_slots(
        height, width, pinpoints=canvases(grid), tile=TILE, side=SIDE, max_tiles=max_tiles
    )


@functools.cache
def reference(grid: int) -> LlavaOnevisionModel:
    return LlavaOnevisionModel(tiny_config(tile=TILE, patch=PATCH, grid=grid))


def processor_count(height: int, width: int, grid: int, max_tiles: int) -> int:
    """The count of placeholder tokens by transformers' processor, which is hard to build whole."""
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.num_image_tokens = SIDE * SIDE
    processor.vision_aspect_ratio = f"anyres_max_{max_tiles}"
    processor.image_processor = type("P", (), {"image_grid_pinpoints": pinpoints(TILE, grid)})
    return processor._get_number_of_features(height, width, TILE, TILE)


def check_packing(height: int, width: int, grid: int, max_tiles: int = 9) -> None:
    """Gathering by slot and weight gives what transformers packs, row for row."""
    model = reference(grid)
    tiles = anyres.count_tiles(height, width, pinpoints=canvases(grid), tile=TILE)
    rng = np.random.default_rng(height * 4001 + width)
    features = rng.standard_normal((tiles, SIDE * SIDE, WIDTH), np.float32)
    newline = rng.standard_normal(WIDTH).astype(np.float32)
    (packed,), _ = model.pack_image_features(
        [torch.from_numpy(features)],
        torch.tensor([[height, width]]),
        image_newline=torch.from_numpy(newline),
        vision_aspect_ratio=f"anyres_max_{max_tiles}",
    )
    slot, weight = slots(height, width, grid, max_tiles)
    table = np.concatenate([newline[None], features.reshape(-1, WIDTH)])
    if weight is None:
        assert slot.shape[1] == 1
        np.testing.assert_array_equal(table[slot[:, 0]], packed.numpy())
    else:
        blended = np.einsum("tsd,ts->td", table[slot], weight)
        np.testing.assert_allclose(blended, packed.numpy(), atol=1e-6, rtol=0)
    assert len(slot) == processor_count(height, width, grid, max_tiles)


@for_each("grid", [2, 6])
@for_each("size", EDGES)
def test_packing_equals_transformers(size, grid):
    check_packing(*size, grid)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.sampled_from([(2, 9), (6, 9), (2, 1), (3, 2)]))
@example((2304, 2304), (6, 9))
@example((700, 1900), (6, 9))
def test_packing_equals_transformers_on_any_size(size, setting):
    check_packing(*size, *setting)


def next_slots(height, width):
    slot, weight = anyres.image_slots(
        height, width, pinpoints=NEXT_CANVASES, tile=NEXT_TILE, side=NEXT_SIDE, max_tiles=None
    )
    assert weight is None and slot.shape[1] == 1
    return slot


@functools.cache
def next_reference() -> LlavaNextModel:
    tower = CLIPVisionConfig(image_size=NEXT_TILE, patch_size=PATCH, **NARROW)
    text = LlamaConfig(vocab_size=400, **NARROW)
    grid = [list(canvas) for canvas in NEXT_CANVASES]
    return LlavaNextModel(
        LlavaNextConfig(vision_config=tower, text_config=text, image_grid_pinpoints=grid)
    )


def next_count(height: int, width: int) -> int:
    """The count of placeholder tokens by transformers' processor."""
    processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
    processor.patch_size, processor.num_additional_image_tokens = PATCH, 1
    grid = [list(canvas) for canvas in NEXT_CANVASES]
    processor.image_processor = type("P", (), {"image_grid_pinpoints": grid})
    return processor._get_number_of_features(height, width, NEXT_TILE, NEXT_TILE) - 1


@settings(max_examples=40, deadline=None)
@given(SIZES)
@example((1, 200))
@example((200, 1))
@example((300, 301))
@example((1240, 1754))
@example((336, 336))
def test_llava_next_packing_equals_transformers(size):
    tiles = anyres.count_tiles(*size, pinpoints=NEXT_CANVASES, tile=NEXT_TILE)
    rng = np.random.default_rng(size[0] * 4001 + size[1])
    features = rng.standard_normal((tiles, NEXT_SIDE**2, WIDTH), np.float32)
    newline = rng.standard_normal(WIDTH).astype(np.float32)
    (packed,), _ = next_reference().pack_image_features(
        [torch.from_numpy(features)],
        torch.tensor([size]),
        vision_feature_select_strategy="default",
        image_newline=torch.from_numpy(newline),
    )
    table = np.concatenate([newline[None], features.reshape(-1, WIDTH)])
    slot = next_slots(*size)
    np.testing.assert_array_equal(table[slot[:, 0]], packed.numpy())
    assert len(slot) == next_count(*size)


@settings(max_examples=300, deadline=None)
@given(SIZES)
def test_llava_next_counts_equal_the_processor(size):
    assert len(next_slots(*size)) == next_count(*size)


def test_slots_and_what_is_gathered_can_be_counted_by_hand():
    # Counts of square images.
    assert len(next_slots(336, 336)) == 1176
    assert len(slots(384, 384, 6)[0]) == 729 + 27 * 28

    # The base tile comes first and rows are read across tiles.
    slot, _ = anyres.image_slots(
        8, 8, pinpoints=((4, 4), (4, 8), (8, 4), (8, 8)), tile=4, side=2, max_tiles=9
    )
    n = anyres.NEWLINE
    expected = [1, 2, 3, 4]
    expected += [5, 6, 9, 10, n, 7, 8, 11, 12, n, 13, 14, 17, 18, n, 15, 16, 19, 20, n]
    assert slot[:, 0].tolist() == expected

    # Patches are read row by row, and what fills none is dropped.
    tiles = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(1, 5, 5, 3)
    patches = anyres.cut_patches(tiles, 2)
    assert patches.shape == (1, 4, 12)
    expected = tiles[0, 2:4, 0:2].transpose(2, 0, 1).reshape(-1)
    np.testing.assert_array_equal(patches[0, 2], expected)

    # Weights are a blend of four rows and sum to one.
    slot, weight = slots(1240, 1754, 6)
    assert slot.shape == weight.shape and slot.shape[1] == 4
    assert slot.dtype == np.int32 and weight.dtype == np.float32
    np.testing.assert_allclose(weight.sum(axis=1), 1, atol=1e-6)
    assert weight.min() >= 0 and (weight < 1).any()
    single = (slot == anyres.NEWLINE).any(axis=1)
    single[: SIDE * SIDE] = True
    np.testing.assert_array_equal(weight[single], np.tile([1, 0, 0, 0], (single.sum(), 1)))

    # Shared arrays are read only.
    slot, _ = slots(300, 301, 2)
    with pytest.raises(ValueError, match="read-only"):
        slot[0] = 1

    # A map shrunk to nothing is an error.
    with pytest.raises(ValueError, match="1 x 100 pixels"):
        anyres.image_slots(1, 100, pinpoints=((3, 18),), tile=3, side=3, max_tiles=1)


@settings(max_examples=300, deadline=None)
@given(SIZES, st.sampled_from([(1, 9), (2, 9), (6, 9), (6, 4)]))
def test_counts_equal_the_processor(size, setting):
    assert len(slots(*size, *setting)[0]) == processor_count(*size, *setting)


@for_each("row", LAYOUT)
def test_layout_of_the_original_llave(row):
    grid, width, height, tiles, tokens, map_rows, map_columns, box = row
    slot, weight = slots(height, width, grid)
    assert len(slot) == tokens == SIDE * SIDE + map_rows * (map_columns + 1)
    newlines = np.flatnonzero(slot[:, 0] == anyres.NEWLINE)
    first = SIDE * SIDE + map_columns
    np.testing.assert_array_equal(newlines, first + np.arange(map_rows) * (map_columns + 1))
    canvas = anyres.select_pinpoint(height, width, canvases(grid))
    if tiles is not None:
        assert tiles == anyres.count_tiles(height, width, pinpoints=canvases(grid), tile=TILE)
    if box is not None:
        content_height, content_width = anyres.content_size(height, width, canvas)
        top, left = (canvas[0] - content_height) // 2, (canvas[1] - content_width) // 2
        assert box == (left, top, left + content_width, top + content_height)
    assert (weight is None) == (grid == 2)


@for_each(
    "grid, max_tiles, expected",
    [(2, 9, False), (3, 9, False), (6, 9, True), (2, 4, False), (2, 3, True), (1, 1, False)],
)
def test_resamples(grid, max_tiles, expected):
    found = anyres.resamples(canvases(grid), tile=TILE, side=SIDE, max_tiles=max_tiles)
    assert found is expected


# Pixels


def golden_tiles() -> list[dict]:
    return json.loads((LEGACY / "tiles.json").read_text())["rows"]


@for_each("row", golden_tiles())
def test_legacy_tiles_are_those_of_transformers_4_48(row):
    """Two of the four have odd padding, one below and one on the right."""
    image = Image.open(LEGACY / row["image"]).convert("RGB")
    tile = row["tile"]
    expected = np.asarray(Image.open(LEGACY / row["tiles_image"]).convert("RGB"))
    expected = expected.reshape(-1, tile, tile, 3)
    assert len(expected) == row["n_tiles"]
    canvases = tuple((h, w) for h, w in row["image_grid_pinpoints_hw"])
    legacy = "crop" if row["backbone"] == "llava_next" else "stretch"
    tiles = anyres.cut_tiles(image, canvases, tile, Image.Resampling.BICUBIC, legacy)
    np.testing.assert_array_equal(tiles, expected)
    today = anyres.cut_tiles(image, canvases, tile, Image.Resampling.BICUBIC)
    canvas = anyres.select_pinpoint(image.height, image.width, canvases)
    content = anyres.content_size(image.height, image.width, canvas)
    odd = any((outer - inner) % 2 for outer, inner in zip(canvas, content, strict=True))
    assert odd is not np.array_equal(today, tiles)
    assert odd is (row["tiles_image"] in ("a_llava_onevision.png", "b_llava_next.png"))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 9), st.booleans())
def test_tiles_are_byte_for_byte_those_of_transformers_5(width, height, seed, next):
    image = noise(width, height, seed=seed)
    grid = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]] if next else pinpoints(28, 3)
    size = {"shortest_edge": 28} if next else {"height": 28, "width": 28}
    settings = dict(size=size, image_grid_pinpoints=grid, do_rescale=False, do_normalize=False)
    if next:
        processor = LlavaNextImageProcessorPil(crop_size={"height": 28, "width": 28}, **settings)
    else:
        processor = LlavaOnevisionImageProcessorPil(**settings)
    expected = processor([image], return_tensors="np")["pixel_values"][0]
    assert expected.dtype == np.uint8
    canvases = tuple((h, w) for h, w in grid)
    tiles = anyres.cut_tiles(image, canvases, 28, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(tiles, expected.transpose(0, 2, 3, 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
def test_uncut_images_are_byte_for_byte_those_of_transformers_5(width, height, seed):
    """LLaVA-OneVision's, where an item has several."""
    image = noise(width, height, seed=seed)
    mean = [0.4, 0.5, 0.6]
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 28, "width": 28}, image_mean=mean, do_rescale=False, do_normalize=False
    )
    expected = processor([[image, image]], return_tensors="np")["pixel_values"]
    background = (int(0.4 * 255), int(0.5 * 255), int(0.6 * 255))
    tile = anyres.square_tile(image, 28, Image.Resampling.BICUBIC, background)
    np.testing.assert_array_equal(tile, expected[1, 0].transpose(1, 2, 0))


TIES = ((56, 28), (28, 56), (28, 28), (56, 56), (28, 28))


@for_each("size", [(30, 30), (28, 28), (20, 20), (56, 56), (28, 56), (90, 45), (1, 60), (60, 1)])
@for_each("pinpoints", [TIES, TIES[::-1], TIES[1:], TIES[:2], TIES[1::-1]])
def test_of_canvases_as_good_the_first_counts(size, pinpoints):
    """The same pixels kept and wasted by two canvases, or kept alone."""
    expected = select_best_resolution(size, [list(canvas) for canvas in pinpoints])
    assert anyres.select_pinpoint(*size, pinpoints) == tuple(expected)
