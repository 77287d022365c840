"""Rows of Qwen2-VL against transformers' processor: tokens, patches and positions."""

import dataclasses
import functools
import io
import pickle

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from tests.backbones.images import encoded, item, noise, picture
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.tables import for_each
from unime_jax.backbones import Processing, open_backbone
from unime_jax.batch import Item, Media
from unime_jax.data.bucket_filling import fill_buckets
from unime_jax.data.shapes import BatchShapes, Bucket

RAW, CHAT = Processing(prompt="raw"), Processing(prompt="chat")
START, PAD, END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


@pytest.fixture(scope="module")
def torch_model(qwen2_vl_folder):
    config = AutoConfig.from_pretrained(qwen2_vl_folder)
    return AutoModelForImageTextToText.from_config(config)


def opened(folder, processing=None, max_length=512):
    return open_backbone(str(folder), max_length=max_length, processing=processing)


@functools.cache
def three(folder, processing):
    """Our preprocessor, transformers' image processor and its tokenizer."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return (
        opened(folder, processing).preprocess,
        processor,
        AutoTokenizer.from_pretrained(folder),
    )


def check_row(folder, processing, one, torch_model):
    """Every field of a row against transformers' steps."""
    preprocess, processor, tokenizer = three(folder, processing)
    row, text = preprocess(one), preprocess.prompt.rendered(one)
    assert text.count(PAD) == len(one.media)
    images = [Image.open(io.BytesIO(image.data)) for image in one.media]
    seen = processor(images, do_rescale=False, do_normalize=False, return_tensors="np")
    grids = seen["image_grid_thw"]
    pieces = text.split(PAD)
    for i, (_, height, width) in enumerate(grids):
        pieces[i] += PAD * (height * width // 4)
    ids = tokenizer("".join(pieces))["input_ids"]
    assert row.tokens.tolist() == ids
    is_image = row.tokens == torch_model.config.image_token_id
    assert row.slot.shape == (len(ids), 1) and row.slot_weight is None
    np.testing.assert_array_equal(row.slot[:, 0] >= 0, is_image)
    # What the slots point at, four patches each, are the processor's patches in order.
    patches, place = row.patches.reshape(-1, 48), row.patch_position.reshape(-1, 3)
    used = (4 * row.slot[is_image] + np.arange(4)).ravel()
    theirs = seen["pixel_values"].reshape(-1, 3, 2, 16)[:, :, 0].reshape(-1, 48)
    np.testing.assert_array_equal(patches[used], theirs)
    counts = [int(np.prod(grid)) for grid in grids]
    np.testing.assert_array_equal(place[used, 0], np.repeat(np.arange(len(grids)), counts))
    rest = np.setdiff1d(np.arange(len(place)), used)
    assert (place[rest] == -1).all() and not patches[rest].any()
    # Every image starts a tile.
    assert {row.patch_position[n, 0, 0] for n in range(len(row.patches))} == set(range(len(grids)))
    positions, _ = torch_model.model.get_rope_index(
        torch.tensor([ids]),
        torch.tensor(is_image.astype(np.int32))[None],
        image_grid_thw=torch.tensor(grids),
    )
    plain = processing.prompt == "raw" and not processing.grid_positions
    expected = np.arange(len(ids))[:, None].repeat(3, 1) if plain else positions[:, 0].T
    np.testing.assert_array_equal(row.positions, expected)


@given(
    st.sampled_from([RAW, CHAT, dataclasses.replace(RAW, grid_positions=True)]),
    st.lists(st.tuples(st.integers(2, 150), st.integers(2, 150)), min_size=1, max_size=3),
)
@settings(max_examples=36)
def test_rows_equal_transformers(qwen2_vl_folder, torch_model, processing, sizes):
    pictures = [picture(width, height, i) for i, (width, height) in enumerate(sizes)]
    one = item("<|image_1|>\nis left of <|image_2|> in the picture", *pictures)
    check_row(qwen2_vl_folder, processing, one, torch_model)


KINDS = {
    "RGBA": encoded(noise(40, 23, "RGBA")),
    "L": encoded(noise(40, 23, "L")),
    "P": encoded(noise(40, 23).quantize(16), transparency=3),
    "JPEG": encoded(noise(40, 23), "JPEG"),
}


@for_each("kind", KINDS)
def test_every_kind_of_image(qwen2_vl_folder, torch_model, kind):
    one = Item("<|image_1|>\nwhat?", (Media("a", KINDS[kind]),))
    check_row(qwen2_vl_folder, RAW, one, torch_model)


def test_normalised_bytes_are_the_processors_pixels(qwen2_vl_folder):
    one = item("<|image_1|>", picture(60, 41))
    backbone = opened(qwen2_vl_folder)
    row = backbone.preprocess(one)
    pixels = jax.eval_shape(backbone.make_model, jax.random.key(0)).pixels
    mean, std = (np.repeat(x, 16) for x in (pixels.mean, pixels.std))
    normal = (row.patches.reshape(-1, 48) * pixels.scale - mean) / std
    processor = AutoImageProcessor.from_pretrained(qwen2_vl_folder, backend="pil")
    image = Image.open(io.BytesIO(one.media[0].data))
    theirs = processor([image], return_tensors="np")["pixel_values"].reshape(-1, 3, 2, 16)
    np.testing.assert_allclose(
        normal[: len(theirs)], theirs[:, :, 0].reshape(-1, 48), atol=1e-6, rtol=0
    )

    # Rows and columns follow vision start also in raw text. Of two images, the one that stands
    # after the token; the other is numbered like text.
    backbone = opened(qwen2_vl_folder, RAW)
    one = item(f"{START}<|image_1|>{END} or <|image_2|>", picture(40, 23, 0), picture(60, 41, 1))
    row = backbone.preprocess(one)
    counts = [(row.patch_position[..., 0] == i).sum() // 4 for i in range(2)]
    first, second = np.split(np.flatnonzero(row.slot[:, 0] >= 0), [counts[0]])
    assert len(set(row.positions[first, 0])) == 1 < len(set(row.positions[first, 1]))
    assert (row.positions[second] == row.positions[second, :1]).all()
    assert (np.diff(row.positions[second, 0]) == 1).all()
    height, width = 3, 5  # 40 x 23 pixels in tokens of 8 x 8
    assert counts[0] == height * width
    after = row.positions[first[-1] + 1]
    assert after.tolist() == [row.positions[first[0], 0] + width] * 3


def test_rows_fit_the_layout_and_survive_pickling(qwen2_vl_folder):
    # Rows fit the layout.
    backbone = opened(qwen2_vl_folder)
    items = [Item("a text"), item("<|image_1|>", picture(100, 100), picture(20, 9, 1))]
    shapes = BatchShapes((Bucket(256, 5),), backbone.layout, 2, 2)
    groups, _ = fill_buckets([backbone.preprocess(one) for one in items], shapes)
    assert groups[0].patches.shape[-2:] == (256, 48)
    assert (groups[0].patch_position[0, 0] == -1).all()
    numbers = groups[0].patch_position[0, 1, :, :, 0]
    assert (numbers[0] >= 0).all() and (numbers == 0).sum() == 400 - 400 % 16  # two tiles
    assert (numbers[2] == 1).sum() == 2 * 3 * 4 and (numbers[3:] == -1).all()

    # It survives pickling.
    preprocess = opened(qwen2_vl_folder).preprocess
    one = item("<|image_1|>\na text", picture(60, 41))
    ours, theirs = preprocess(one), pickle.loads(pickle.dumps(preprocess))(one)
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    np.testing.assert_array_equal(ours.patches, theirs.patches)

    # Text rows.
    for processing in (RAW, CHAT):
        row = opened(qwen2_vl_folder, processing).preprocess(Item("a red circle"))
        np.testing.assert_array_equal(
            row.positions, np.arange(len(row.tokens))[:, None].repeat(3, 1)
        )
        assert row.patches is None and row.patch_position is None and (row.slot == -1).all()

    # Orphans are counted and left out.
    row = opened(qwen2_vl_folder).preprocess(Item("<|image_1|>\na text"))
    assert row.unmatched_markers == 1 and row.patches is None
    assert row.tokens.tolist() == opened(qwen2_vl_folder).preprocess(Item("a text")).tokens.tolist()


@for_each(
    "size, tokens, tiles",
    [((224, 224), 64, 1), ((336, 336), 144, 3), ((672, 672), 576, 9), ((1344, 1344), 2304, 36)],
)
def test_tokens_and_tiles_at_real_sizes(real, size, tokens, tiles):
    row = real.preprocess(item("<|image_1|>", picture(*size)))
    assert (row.slot >= 0).sum() == tokens and len(row.patches) == tiles
    assert row.patches.shape[1:] == (256, 588)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Geometry of the published models, limits included."""
    folder = write_qwen2_vl(
        tmp_path_factory.mktemp("real"), patch=14, min_pixels=3136, max_pixels=12845056
    )
    return opened(folder, max_length=4096)


def test_a_fixed_resolution_comes_first_and_items_that_are_no_rows_are_cut_or_named(
    qwen2_vl_folder, real
):
    backbone = opened(qwen2_vl_folder, dataclasses.replace(RAW, image_size=(40, 24)))
    one = noise(90, 33)
    direct = opened(qwen2_vl_folder).preprocess(
        item("x", Media("a", encoded(one.resize((24, 40)))))
    )
    row = backbone.preprocess(item("x", Media("a", encoded(one))))
    np.testing.assert_array_equal(row.patches, direct.patches)
    assert (row.slot >= 0).sum() == 15

    # So does one with a name.
    named, sized = (
        opened(qwen2_vl_folder, dataclasses.replace(RAW, **{key: size})).preprocess
        for key, size in {"resolution": "low", "image_size": (128, 128)}.items()
    )
    one = item("x", Media("a", encoded(one)))
    np.testing.assert_array_equal(named(one).patches, sized(one).patches)

    # A row that is too long.
    short = dataclasses.replace(
        real.preprocess, prompt=dataclasses.replace(real.preprocess.prompt, max_length=600)
    )
    text = " ".join(["a red circle"] * 20)
    row = short(item(f"<|image_1|>\n{text}", picture(672, 672)))
    assert len(row.tokens) == len(row.positions) == len(row.slot) == 600
    assert row.truncated > 0 and (row.slot >= 0).sum() == 576
    with pytest.raises(ValueError, match="are 2305 tokens, and max_length is 600"):
        short(item(f"<|image_1|>\n{text}", picture(1344, 1344)))

    # Items that are no rows are named.
    preprocess = opened(qwen2_vl_folder).preprocess
    with pytest.raises(ValueError, match=r"'a text' with image '0.png': .*1 x 300 .* a line"):
        preprocess(item("a text", picture(300, 1)))
    with pytest.raises(ValueError, match="'b.png' is missing"):
        preprocess(Item("a text", (Media("b.png"),)))
