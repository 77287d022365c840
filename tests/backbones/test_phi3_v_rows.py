"""Rows of Phi-3.5-Vision: layouts, pixels and token ids as recorded from the original."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.backbones.images import item, picture
from tests.backbones.tiny_phi3_v import GOLDEN
from tests.tables import for_each
from unime_jax.backbones import Processing, open_backbone
from unime_jax.backbones.phi3_v import hd_transform
from unime_jax.batch import Item, Media

PROCESSOR = GOLDEN / "processor"
RAW, CHAT = Processing(prompt="raw", crops=4), Processing(prompt="chat", crops=4)


def opened(folder, processing=None, max_length=4096):
    return open_backbone(str(folder), max_length=max_length, processing=processing)


@for_each("recorded", json.loads((PROCESSOR / "layout.json").read_text()))
def test_recorded_layouts(recorded):
    size = recorded["height"], recorded["width"]
    canvas = hd_transform.canvas_of(size, crops=recorded["num_crops"], tile=336)
    assert list(canvas.grid) == recorded["crop_grid_hw"]
    assert [336 * side for side in canvas.grid] == recorded["hd_size_hw"]
    slots = hd_transform.slots(canvas.grid, 24, 0)
    assert len(slots) == recorded["num_img_tokens"]
    rows, columns = canvas.grid
    patches = np.sort(slots[slots >= hd_transform.FIRST])  # each once
    np.testing.assert_array_equal(patches, 2 + np.arange(144 * (rows * columns + 1)))
    assert np.sum(slots == hd_transform.LINE_END) == 12 * (rows + 1)
    assert np.sum(slots == hd_transform.CROPS_END) == 1


RECORDED = json.loads((PROCESSOR / "pixels.json").read_text())["images"]


@for_each("recorded", RECORDED)
def test_recorded_canvases_to_the_byte(phi3_v_golden, recorded):
    """Through the whole preprocessor."""
    data = (PROCESSOR / recorded["image"]).read_bytes()
    row = opened(phi3_v_golden, Processing(prompt="raw", crops=recorded["num_crops"])).preprocess(
        Item("<|image_1|>", (Media(recorded["image"], data),))
    )
    expected = np.asarray(Image.open(PROCESSOR / recorded["hd_image"]).convert("RGB"))
    rows, columns = (side // 336 for side in expected.shape[:2])
    assert len(row.patches) == 1 + rows * columns and not row.patches[0].any()
    pixels = row.patches[1:].reshape(rows, columns, 24, 24, 3, 14, 14)
    found = pixels.transpose(0, 2, 5, 1, 3, 6, 4).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
    assert np.all(row.patch_position[0] == [0, -1, -1])
    for tile, place in enumerate(row.patch_position[1:]):
        line, column = divmod(tile, columns)
        np.testing.assert_array_equal(place[0], [0, 24 * line, 24 * column])
        np.testing.assert_array_equal(place[25], [0, 24 * line + 1, 24 * column + 1])
    assert np.sum(row.slot >= 0) == recorded["num_img_tokens"]


def unrolled(runs):
    """Token ids, -k for a token of image k."""
    return [x for run in runs for x in ([run[0]] * run[1] if isinstance(run, list) else [run])]


@for_each("recorded", json.loads((PROCESSOR / "interleave.json").read_text())["rows"])
def test_recorded_token_ids(phi3_v_golden, recorded):
    """Pieces of text with their own BOS each, images by number."""
    sizes = recorded["images_wh"] or []
    images = [picture(width, height, i) for i, (width, height) in enumerate(sizes)]
    preprocess = opened(
        phi3_v_golden, Processing(prompt="raw", crops=recorded["num_crops"])
    ).preprocess
    row = preprocess(item(recorded["prompt"], *images))
    expected = np.array(unrolled(recorded["input_ids_rle"]))
    is_image = row.slot[:, 0] >= 0
    np.testing.assert_array_equal(is_image, expected < 0)
    np.testing.assert_array_equal(row.tokens[~is_image], expected[~is_image])
    assert not row.tokens[is_image].any()
    first = 0
    for number, (width, height) in enumerate(sizes):
        canvas = hd_transform.canvas_of((height, width), crops=recorded["num_crops"], tile=336)
        found = row.slot[expected == -1 - number, 0]
        np.testing.assert_array_equal(found, hd_transform.slots(canvas.grid, 24, first))
        first += 1 + canvas.grid[0] * canvas.grid[1]
    assert first == (0 if row.patches is None else len(row.patches))
    assert row.truncated == row.unmatched_markers == 0


SENTENCE = "Summary above sentence in one word:"
IMAGE = "Summary above image in one word:"


def test_chat_prompts_are_unimes_a_bos_before_each_piece_and_cut_inside(phi3_v_folder):
    # Chat prompts are UniME's.
    prompt = opened(phi3_v_folder, CHAT).preprocess.prompt
    text = prompt.rendered(item(f"A dog.\n{SENTENCE}"))
    assert text == f"<|user|>\nA dog.\n{SENTENCE}<|end|>\n<|assistant|>\n"
    text = prompt.rendered(item(f"<|image_1|>\n{IMAGE}", picture(9, 9)))
    assert text == f"<|user|>\n<|image_1|>\n{IMAGE}<|end|>\n<|assistant|>\n"
    text = prompt.rendered(item("compare", picture(9, 9), picture(8, 9)))
    assert text == "<|user|>\n<|image_1|>\n<|image_2|>\ncompare<|end|>\n<|assistant|>\n"

    # Chat tokens begin each piece with a BOS. As the tokenizer makes of each piece alone; its
    # special tokens take the line end along.
    preprocess = opened(phi3_v_folder, CHAT).preprocess
    row = preprocess(item(IMAGE, picture(28, 28)))
    backend = preprocess.prompt.tokenizer
    before, after = (
        backend.encode(piece).ids for piece in ("<|user|>\n", f"\n{IMAGE}<|end|>\n<|assistant|>\n")
    )
    images = len(row.tokens) - len(before) - len(after)
    assert row.tokens.tolist() == before + [0] * images + after
    assert before[0] == after[0] == backend.token_to_id("<s>") and images == 27  # 2 x 2 crops

    # Long texts are cut inside: never image tokens, the template, or what is pooled.
    preprocess = opened(phi3_v_folder, CHAT, max_length=80).preprocess
    one = item("word " * 100, picture(28, 28))
    row, short = preprocess(one), preprocess(item("word", picture(28, 28)))
    assert len(row.tokens) == 80 and row.truncated > 50
    np.testing.assert_array_equal(row.tokens[-2:], short.tokens[-2:])
    assert np.sum(row.slot >= 0) == 27
    with pytest.raises(ValueError, match="image tokens, prompt template .* max_length is 30"):
        opened(phi3_v_folder, CHAT, max_length=30).preprocess(one)


def places(folder, text, count):
    """The rendered text of an item with so many images, and how many are missing."""
    preprocess = opened(folder, RAW).preprocess
    one = item(text, *(picture(9, 9, i) for i in range(count)))
    row = preprocess(one)
    shown = preprocess.prompt.shown(one)
    assert np.sum(row.slot >= 0) == 27 * len(shown)  # a square image is 2 x 2 crops
    assert (0 if row.patches is None else len(row.patches)) == 5 * count
    return preprocess.prompt.rendered(one), row.unmatched_markers


@for_each(
    "text, count, rendered, missing_images",
    [
        ("<|image_2|> then <|image_1|>", 2, "<|image_2|> then <|image_1|>", 0),
        ("<|image_1|> and <|image_1|>", 1, "<|image_1|> and <|image_1|>", 0),
        ("no place", 2, "<|image_1|>\n<|image_2|>\nno place", 0),
        ("<|image_2|> only", 2, "<|image_1|>\n<|image_2|> only", 0),
        ("<|image_1|>\nan orphan", 0, "an orphan", 1),
        ("<|image_1|> <|image_3|>\n<|image_01|>", 1, "<|image_1|> ", 2),
        ("<|image<|image_7|>_1|>", 1, "<|image_1|>", 1),
        ("<|image_12|><|image_1|>", 1, "<|image_1|>", 1),
    ],
)
def test_numbers_of_images_count(phi3_v_folder, text, count, rendered, missing_images):
    assert places(phi3_v_folder, text, count) == (rendered, missing_images)


def test_canvases_at_their_edges(phi3_v_folder):
    # Canvases at their edges. As many crops as are allowed, the last line that is an image, and
    # white on both sides.
    grids = {
        crops: hd_transform.canvas_of((10, 20), crops=crops, tile=56).grid for crops in (1, 2, 7, 8)
    }
    assert grids == {1: (1, 1), 2: (1, 2), 7: (2, 3), 8: (2, 4)}
    assert hd_transform.canvas_of((1, 224), crops=4, tile=56) == ((1, 4), (1, 224))
    assert hd_transform.canvas_of((224, 1), crops=4, tile=56) == ((4, 1), (224, 1))
    with pytest.raises(ValueError, match="of 225 x 1 pixels .* cannot be shrunk to 224 pixels"):
        hd_transform.canvas_of((1, 225), crops=4, tile=56)
    canvas = hd_transform.canvas_of((1, 3), crops=1, tile=6)  # two lines: two above, two below
    assert canvas == ((1, 1), (2, 6))
    black = hd_transform.cut_crops(Image.new("RGB", (3, 1)), canvas, 6)
    assert np.flatnonzero(black[0, :, 0, 0] == 0).tolist() == [2, 3]
    odd = hd_transform.canvas_of((2, 4), crops=1, tile=6)
    assert odd.image == (3, 6)
    black = hd_transform.cut_crops(Image.new("RGB", (4, 2)), odd, 6)
    assert np.flatnonzero(black[0, :, 0, 0] == 0).tolist() == [1, 2, 3]

    # Lines are no images.
    preprocess = opened(phi3_v_folder, RAW).preprocess
    with pytest.raises(ValueError, match="3000 x 1 pixels .* nothing of its height"):
        preprocess(item("", picture(1, 3000)))

    # Processing of a run counts in worker processes too
    # Image size and crops.
    preprocess = opened(
        phi3_v_folder, Processing(prompt="raw", image_size=(20, 40), crops=8)
    ).preprocess
    row = preprocess(item("", picture(31, 7)))
    assert len(row.patches) == 1 + 2 * 4
    own = opened(phi3_v_folder, Processing(prompt="raw")).preprocess
    assert len(own(item("", picture(7, 7))).patches) == 1 + 4  # preprocessor_config.json says 4
    with pytest.raises(ValueError, match="resolution is 'mid'.*Phi-3.5-Vision never resizes"):
        opened(phi3_v_folder, Processing(prompt="raw", resolution="mid"))

    # Preprocessors are picklable.
    preprocess = opened(phi3_v_folder, CHAT).preprocess
    one = item("<|image_1|> a", picture(20, 30))
    a, b = preprocess(one), pickle.loads(pickle.dumps(preprocess))(one)
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
