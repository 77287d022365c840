"""Rows of LLaVA-OneVision and LLaVA-NeXT against transformers' tokenizers and processors."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.backbones.images import encoded, noise
from tests.backbones.llava_cases import (
    GOLDEN,
    MARKED,
    NAMES,
    NEXT_CANVASES,
    case,
    check_row,
    picture,
    several,
)
from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.tables import for_each
from unime_jax.backbones import open_backbone
from unime_jax.backbones.llava import anyres
from unime_jax.batch import Item, Media
from unime_jax.export import row_facts


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.sampled_from(NAMES))
def test_rows_equal_transformers(llavas, width, height, name):
    check_row(llavas[name], picture(width, height))


@for_each("name", NAMES)
@for_each("size", [(1, 200), (200, 1), (1, 1), (28, 28), (301, 300), (124, 175)])
def test_rows_of_extreme_images_equal_transformers(llavas, name, size):
    check_row(llavas[name], picture(*size))


@for_each("name", NAMES)
@for_each("sizes", [((40, 23), (41, 43)), ((1, 50), (28, 28), (90, 60))])
def test_several_images_of_an_item(llavas, name, sizes):
    """LLaVA-OneVision cuts none of them into tiles, LLaVA-NeXT all."""
    text = "<|image_1|>\nis <|image_2|>\nbeside it? <|image_3|>"
    case, item = llavas[name], several(*sizes, text=text)
    check_row(case, item)
    row = case.preprocess(item)
    assert row.unmatched_markers == 3 - len(sizes)
    patches = case.preprocess.side**2
    if name in ("onevision", "blending"):
        assert len(row.patches) == len(sizes)
        expected = [[*range(1 + n * patches, 1 + (n + 1) * patches), 0] for n in range(len(sizes))]
        assert row.slot[row.slot[:, 0] >= 0, 0].tolist() == sum(expected, [])
        return
    # Each image's slots are those it would have alone, in its own part of the table.
    alone = [case.preprocess(several(size)) for size in sizes]
    start, expected = 0, []
    for one in alone:
        own = one.slot[one.slot[:, 0] >= 0, 0]
        expected += np.where(own == anyres.NEWLINE, own, own + start).tolist()
        start += len(one.patches) * patches
    assert row.slot[row.slot[:, 0] >= 0, 0].tolist() == expected
    assert len(row.patches) * patches == start


@for_each("name, image", [("onevision", noise(50, 31)), ("blending", noise(900, 600))])
def test_slots_and_weights_stand_where_the_image_tokens_are(llavas, name, image):
    preprocess = llavas[name].preprocess
    row = preprocess(Item(MARKED, (Media("a.png", encoded(image)),)))
    slot, weight = anyres.image_slots(
        image.height,
        image.width,
        pinpoints=preprocess.pinpoints,
        tile=preprocess.tile,
        side=preprocess.side,
        max_tiles=preprocess.max_tiles,
    )
    at = row.tokens == preprocess.prompt.image_token_id
    np.testing.assert_array_equal(row.slot[at], slot)
    facts = row_facts.facts(llavas[name].backbone, Item(MARKED, (Media("a.png", encoded(image)),)))
    assert facts["image_tokens"] == np.sum(at)
    assert preprocess.slots_per_token == (4 if name == "blending" else 1)
    if name == "blending":
        np.testing.assert_array_equal(row.slot_weight[at], weight)
        assert not row.slot_weight[~at].any() and (weight < 1).any()
    else:
        assert weight is row.slot_weight is None


def test_slots_of_uncut_images_and_max_length_of_the_backbone(llavas):
    # Uncut images are not blended.
    row = llavas["blending"].preprocess(several((40, 23), (41, 43)))
    at = row.slot[:, 0] >= 0
    np.testing.assert_array_equal(row.slot_weight[at], np.tile([1, 0, 0, 0], (at.sum(), 1)))

    # The longest length is that of open_backbone.
    folder, item = llavas["next-raw"].folder, picture()
    needed = len(llavas["next-raw"].preprocess(item).tokens)
    assert open_backbone(str(folder), max_length=needed).preprocess(item).truncated == 0
    assert open_backbone(str(folder), max_length=needed - 3).preprocess(item).truncated == 3
    with pytest.raises(ValueError, match="'a.png': its image tokens.* max_length is 30; raise it"):
        open_backbone(str(folder), max_length=30).preprocess(item)


@for_each("name", NAMES)
def test_rows_of_texts_fit_the_layout_and_survive_pickling(llavas, name):
    # Rows of texts.
    preprocess = llavas[name].preprocess
    item = Item("a red circle, \u4e2d\u6587 \U0001f600 e\u0301 </s>")
    row = preprocess(item)
    ids = llavas[name].processor.tokenizer(preprocess.prompt.rendered(item))["input_ids"]
    assert row.tokens.tolist() == ids
    assert row.patches is None
    assert row.slot.shape == (len(ids), preprocess.slots_per_token)
    assert (row.slot == anyres.TEXT).all()
    assert row.truncated == row.unmatched_markers == 0
    # All rows of a family have the same arrays.
    assert (row.slot_weight is not None) is (name == "blending")
    assert row.slot_weight is None or row.slot_weight.shape == row.slot.shape

    # Rows of all kinds fit the layout.
    layout = llavas[name].backbone.layout
    for item in (picture(), several((40, 23), (41, 43)), Item("text")):
        row = llavas[name].preprocess(item)
        assert row.positions.shape[1] == layout.axes == 1
        assert row.slot.shape[1] == layout.slots
        assert (row.slot_weight is not None) is layout.blended
        assert row.patch_position is None and not layout.positioned
        if row.patches is not None:
            assert row.patches.shape[1:] == (layout.patches, layout.patch_bytes)

    # A preprocessor survives pickling.
    copy = pickle.loads(pickle.dumps(llavas[name].preprocess))
    ours, theirs = llavas[name].preprocess(picture()), copy(picture())
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    np.testing.assert_array_equal(ours.patches, theirs.patches)


def test_markers_without_an_image_are_left_out_and_missing_files_named(llavas):
    # Orphans are left out and counted.
    for name in NAMES:
        row = llavas[name].preprocess(Item(MARKED))
        plain = llavas[name].preprocess(Item(MARKED.replace("<|image_1|>\n", "")))
        assert row.tokens.tolist() == plain.tokens.tolist()
        assert (row.unmatched_markers, plain.unmatched_markers) == (1, 0)
        assert row.patches is None and (row.slot == anyres.TEXT).all()

    # Missing and broken images are errors that name the path.
    for name in ("onevision", "next-raw"):
        preprocess = llavas[name].preprocess
        with pytest.raises(ValueError, match="the image file 'gone.png' is missing"):
            preprocess(Item(MARKED, (Media("gone.png"),)))
        with pytest.raises(ValueError, match="the image 'bad.png' cannot be read"):
            preprocess(Item(MARKED, (Media("bad.png", b"no image"),)))


@for_each("name", NAMES)
@for_each("images", [0, 1, 2])
def test_rows_are_cut_to_the_longest_length(llavas, name, images):
    preprocess = llavas[name].preprocess
    text = MARKED + "a red circle left of a blue square, and a very long text after it. " * 3
    item = several((40, 23), (41, 43), text=text) if images == 2 else Item(text)
    item = several((40, 23), text=text) if images == 1 else item
    whole = preprocess(item)
    limit = len(whole.tokens) - 40
    prompt = dataclasses.replace(preprocess.prompt, max_length=limit)
    short = dataclasses.replace(preprocess, prompt=prompt)(item)
    assert len(short.tokens) == limit and short.truncated == 40 and whole.truncated == 0
    assert short.tokens[-1] == whole.tokens[-1]
    at, before = short.slot[:, 0] >= 0, whole.slot[:, 0] >= 0
    np.testing.assert_array_equal(short.slot[at], whole.slot[before])
    np.testing.assert_array_equal(at, short.tokens == preprocess.prompt.image_token_id)
    np.testing.assert_array_equal(short.positions[:, 0], np.arange(limit))
    if whole.slot_weight is not None:
        np.testing.assert_array_equal(short.slot_weight[at], whole.slot_weight[before])
    if images:
        np.testing.assert_array_equal(short.patches, whole.patches)


def palette(**options) -> bytes:
    return encoded(noise(40, 23).quantize(16), **options)


KINDS = {  # greys of 16 bits aside, of which transformers makes white: see test_images.py
    "RGBA": encoded(noise(40, 23, "RGBA")),
    "LA": encoded(noise(40, 23, "LA")),
    "L": encoded(noise(40, 23, "L")),
    "L-transparent": encoded(noise(40, 23, "L"), transparency=7),
    "1": encoded(noise(40, 23, "L").convert("1")),
    "CMYK": encoded(noise(40, 23, "CMYK"), "JPEG"),
    "JPEG": encoded(noise(40, 23), "JPEG"),
    "P": palette(),
    "P-transparent": palette(transparency=3),
    "GIF": palette(format="GIF", transparency=3),
}


@for_each("name", ["onevision", "next-raw"])
@for_each("kind", KINDS)
def test_every_kind_of_image_becomes_the_processors_pixels(llavas, name, kind):
    preprocess, processor = llavas[name].preprocess, llavas[name].processor.image_processor
    row = preprocess(Item(MARKED, (Media("a", KINDS[kind]),)))
    with Image.open(io.BytesIO(KINDS[kind])) as image:
        pixels = processor([image], do_rescale=False, do_normalize=False, return_tensors="np")
    tiles = pixels["pixel_values"][0].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(row.patches, anyres.cut_patches(tiles, preprocess.patch))


# Real sizes


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The published geometry of both families, but for the sizes of the layers."""
    onevision = write_folder(tmp_path_factory.mktemp("ov384"), tile=384, patch=14, grid=6)
    next = write_llava_next(
        tmp_path_factory.mktemp("next336"),
        decoder="mistral",
        tile=336,
        patch=14,
        pinpoints=NEXT_CANVASES,
    )
    return {"onevision": case(onevision), "next": case(next)}


@for_each("name", ["onevision", "next"])
@for_each("size", [(1, 200), (300, 301), (1240, 1754), (336, 336)])
def test_real_geometry_equals_transformers(real, name, size):
    check_row(real[name], picture(*size))


@for_each("name, side, expected", [("next", 336, 1176), ("onevision", 384, 1485)])
def test_tokens_of_a_square_image(real, name, side, expected):
    row = real[name].preprocess(picture(side, side))
    assert (row.slot[:, 0] >= 0).sum() == expected


@for_each("name", ["onevision", "next"])
@for_each("image", ["a.png", "b.png"])
def test_legacy_padding(real, name, image):
    """Pixels of transformers 4.48, recorded."""
    family = {"onevision": "llava_onevision", "next": "llava_next"}[name]
    strip = Image.open(GOLDEN / "hf_legacy" / f"{image[0]}_{family}.png").convert("RGB")
    tile = real[name].preprocess.tile
    tiles = np.asarray(strip).reshape(-1, tile, tile, 3)
    item = Item(MARKED, (Media(image, (GOLDEN / "hf_legacy" / image).read_bytes()),))
    processing = dataclasses.replace(real[name].backbone.processing, legacy_padding=True)
    legacy = open_backbone(str(real[name].folder), max_length=10_000, processing=processing)
    row = legacy.preprocess(item)
    np.testing.assert_array_equal(row.patches, anyres.cut_patches(tiles, 14))
    today = real[name].preprocess(item)  # the tokens are the same, the pixels only where it is even
    np.testing.assert_array_equal(row.slot, today.slot)
    odd = (name, image) in (("onevision", "a.png"), ("next", "b.png"))
    assert odd is not np.array_equal(row.patches, today.patches)
