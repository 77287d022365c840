"""Rows of LLaVA-OneVision and LLaVA-NeXT against transformers' tokenizers and processors."""

import dataclasses
import io
import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    ProcessorMixin,
)

from tests.backbones.images import encoded, noise
from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from unime_jax.backbones import Backbone, Processing, open_backbone
from unime_jax.backbones.llava import anyres
from unime_jax.backbones.llava.rows import LlavaPreprocessor
from unime_jax.backbones.preprocessing.images import decode_images
from unime_jax.batch import Item, Media

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MARKED = "<|image_1|>\nRepresent the given image for classification\n"
NEXT_CANVASES = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
RAW, CHAT = Processing(prompt="raw"), Processing(prompt="chat")


@dataclasses.dataclass(frozen=True)
class Case:
    """A folder as we open it, and its processor in transformers."""

    folder: pathlib.Path
    backbone: Backbone
    processor: ProcessorMixin

    @property
    def preprocess(self) -> LlavaPreprocessor:
        return self.backbone.preprocess

    def __repr__(self) -> str:
        return f"Case({self.folder.name})"


def case(folder: pathlib.Path, processing: Processing | None = None) -> Case:
    backbone = open_backbone(str(folder), max_length=10_000, processing=processing)
    config = json.loads((folder / "config.json").read_text())
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if config["model_type"] == "llava_onevision":
        processor = LlavaOnevisionProcessor(
            image_processor=image_processor,
            tokenizer=tokenizer,
            video_processor=LlavaOnevisionVideoProcessor(),
            num_image_tokens=backbone.preprocess.side**2,
            vision_feature_select_strategy="full",
            vision_aspect_ratio=config["vision_aspect_ratio"],
        )
    else:
        processor = LlavaNextProcessor(
            image_processor=image_processor,
            tokenizer=tokenizer,
            patch_size=backbone.preprocess.patch,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    return Case(folder, backbone, processor)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """ "blending" has tiles of 30 pixels, no multiple of its patch, and shrinks its maps."""

    def folder(name):
        return tmp_path_factory.mktemp(name)

    return {
        "onevision": case(write_folder(folder("onevision"))),
        "blending": case(write_folder(folder("blending"), tile=30, grid=6, max_tiles=2)),
        "next-raw": case(write_llava_next(folder("next-raw"), decoder="mistral")),
        "next-chat": case(write_llava_next(folder("next-chat"), decoder="mistral"), CHAT),
        "vicuna": case(
            write_llava_next(folder("vicuna"), tile=30, pinpoints=((30, 60), (60, 30), (60, 60))),
            CHAT,
        ),
    }


NAMES = ["onevision", "blending", "next-raw", "next-chat", "vicuna"]


def picture(width: int = 40, height: int = 23) -> Item:
    return Item(MARKED, (Media("a.png", encoded(noise(width, height))),))


def several(*sizes: tuple[int, int], text: str = MARKED) -> Item:
    media = (Media(f"{i}.png", encoded(noise(*size, seed=i))) for i, size in enumerate(sizes))
    return Item(text, tuple(media))


def tiles_of(preprocess: LlavaPreprocessor, image: Image.Image, images: int) -> int:
    if images > 1 and not preprocess.tiles_of_many:
        return 1
    return anyres.count_tiles(
        image.height, image.width, pinpoints=preprocess.pinpoints, tile=preprocess.tile
    )


def check_row(case: Case, item: Item) -> None:
    """Ids, slots and patches of an item with images against transformers' processor."""
    preprocess, row = case.preprocess, case.preprocess(item)
    images = decode_images(item, None)
    inputs = case.processor(
        images=[images], text=[preprocess.prompt.rendered(item)], return_tensors="np"
    )
    assert row.tokens.tolist() == inputs["input_ids"][0].tolist()
    assert row.tokens.dtype == row.slot.dtype == row.positions.dtype == np.int32
    np.testing.assert_array_equal(row.positions[:, 0], np.arange(len(row.tokens)))
    is_image = row.tokens == preprocess.prompt.image_token_id
    np.testing.assert_array_equal((row.slot >= 0).all(axis=1), is_image)
    assert (row.slot[~is_image] == anyres.TEXT).all()
    # What the device computes from the bytes is what the processor gives.
    counts = [tiles_of(preprocess, image, len(images)) for image in images]
    every = inputs["pixel_values"]
    tiles = np.concatenate([own[:count] for own, count in zip(every, counts, strict=True)])
    assert not any(own[count:].any() for own, count in zip(every, counts, strict=True))
    side, patch = preprocess.side, preprocess.patch
    assert row.patches.dtype == np.uint8
    assert row.patches.shape == (len(tiles), side * side, 3 * patch * patch)
    assert row.slot.max() <= len(tiles) * side * side
    pixels = case.processor.image_processor
    mean, std = (np.repeat(x, patch**2) for x in (pixels.image_mean, pixels.image_std))
    normalised = (row.patches * pixels.rescale_factor - mean) / std
    for n in range(side * side):
        y, x = divmod(n, side)
        window = tiles[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
        np.testing.assert_allclose(normalised[:, n], window.reshape(len(tiles), -1), atol=1e-6)


# Rows


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.sampled_from(NAMES))
def test_rows_equal_transformers(cases, width, height, name):
    check_row(cases[name], picture(width, height))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 200), (200, 1), (1, 1), (28, 28), (301, 300), (124, 175)])
def test_rows_of_extreme_images_equal_transformers(cases, name, size):
    check_row(cases[name], picture(*size))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [((40, 23), (41, 43)), ((1, 50), (28, 28), (90, 60))])
def test_several_images_of_an_item(cases, name, sizes):
    """LLaVA-OneVision cuts none of them into tiles, LLaVA-NeXT all."""
    text = "<|image_1|>\nis <|image_2|>\nbeside it? <|image_3|>"
    case, item = cases[name], several(*sizes, text=text)
    check_row(case, item)
    row = case.preprocess(item)
    assert row.orphan_images == 3 - len(sizes)
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


@pytest.mark.parametrize(
    "name, image", [("onevision", noise(50, 31)), ("blending", noise(900, 600))]
)
def test_slots_and_weights_stand_where_the_image_tokens_are(cases, name, image):
    preprocess = cases[name].preprocess
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
    assert preprocess.slots_per_token == (4 if name == "blending" else 1)
    if name == "blending":
        np.testing.assert_array_equal(row.slot_weight[at], weight)
        assert not row.slot_weight[~at].any() and (weight < 1).any()
    else:
        assert weight is row.slot_weight is None


def test_uncut_images_are_not_blended(cases):
    row = cases["blending"].preprocess(several((40, 23), (41, 43)))
    at = row.slot[:, 0] >= 0
    np.testing.assert_array_equal(row.slot_weight[at], np.tile([1, 0, 0, 0], (at.sum(), 1)))


@pytest.mark.parametrize("name", NAMES)
def test_text_rows(cases, name):
    preprocess = cases[name].preprocess
    item = Item("a red circle, \u4e2d\u6587 \U0001f600 e\u0301 </s>")
    row = preprocess(item)
    ids = cases[name].processor.tokenizer(preprocess.prompt.rendered(item))["input_ids"]
    assert row.tokens.tolist() == ids
    assert row.patches is None
    assert row.slot.shape == (len(ids), preprocess.slots_per_token)
    assert (row.slot == anyres.TEXT).all()
    assert row.truncated == row.orphan_images == 0
    # All rows of a family have the same arrays.
    assert (row.slot_weight is not None) is (name == "blending")
    assert row.slot_weight is None or row.slot_weight.shape == row.slot.shape


@pytest.mark.parametrize("name", NAMES)
def test_rows_fit_the_layout(cases, name):
    layout = cases[name].backbone.layout
    for item in (picture(), several((40, 23), (41, 43)), Item("text")):
        row = cases[name].preprocess(item)
        assert row.positions.shape[1] == layout.axes == 1
        assert row.slot.shape[1] == layout.slots
        assert (row.slot_weight is not None) is layout.blended
        assert row.patch_position is None and not layout.positioned
        if row.patches is not None:
            assert row.patches.shape[1:] == (layout.patches, layout.patch_bytes)


def test_orphans_are_left_out_and_counted(cases):
    for name in NAMES:
        row = cases[name].preprocess(Item(MARKED))
        plain = cases[name].preprocess(Item(MARKED.replace("<|image_1|>\n", "")))
        assert row.tokens.tolist() == plain.tokens.tolist()
        assert (row.orphan_images, plain.orphan_images) == (1, 0)
        assert row.patches is None and (row.slot == anyres.TEXT).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_rows_are_cut_to_the_longest_length(cases, name, images):
    preprocess = cases[name].preprocess
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


def test_max_length_is_that_of_open_backbone(cases):
    folder, item = cases["next-raw"].folder, picture()
    needed = len(cases["next-raw"].preprocess(item).tokens)
    assert open_backbone(str(folder), max_length=needed).preprocess(item).truncated == 0
    assert open_backbone(str(folder), max_length=needed - 3).preprocess(item).truncated == 3
    with pytest.raises(ValueError, match="'a.png': its image tokens.* max_length is 30; raise it"):
        open_backbone(str(folder), max_length=30).preprocess(item)


def test_missing_and_broken_images_are_errors_that_name_the_path(cases):
    for name in ("onevision", "next-raw"):
        preprocess = cases[name].preprocess
        with pytest.raises(ValueError, match="the image file 'gone.png' is missing"):
            preprocess(Item(MARKED, (Media("gone.png"),)))
        with pytest.raises(ValueError, match="the image 'bad.png' cannot be read"):
            preprocess(Item(MARKED, (Media("bad.png", b"no image"),)))


@pytest.mark.parametrize("name", NAMES)
def test_it_survives_pickling(cases, name):
    copy = pickle.loads(pickle.dumps(cases[name].preprocess))
    ours, theirs = cases[name].preprocess(picture()), copy(picture())
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    np.testing.assert_array_equal(ours.patches, theirs.patches)


def palette(**options) -> bytes:
    return encoded(noise(40, 23).quantize(16), **options)


KINDS = {  # greys of 16 bits aside, of which transformers makes white: see test_pictures.py
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


@pytest.mark.parametrize("name", ["onevision", "next-raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_the_processors_pixels(cases, name, kind):
    preprocess, processor = cases[name].preprocess, cases[name].processor.image_processor
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


@pytest.mark.parametrize("name", ["onevision", "next"])
@pytest.mark.parametrize("size", [(1, 200), (300, 301), (1240, 1754), (336, 336)])
def test_real_geometry_equals_transformers(real, name, size):
    check_row(real[name], picture(*size))


@pytest.mark.parametrize("name, side, expected", [("next", 336, 1176), ("onevision", 384, 1485)])
def test_tokens_of_a_square_image(real, name, side, expected):
    row = real[name].preprocess(picture(side, side))
    assert (row.slot[:, 0] >= 0).sum() == expected


@pytest.mark.parametrize("name", ["onevision", "next"])
@pytest.mark.parametrize("image", ["a.png", "b.png"])
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


# Processing


@pytest.mark.parametrize("name", ["onevision", "next-raw", "next-chat"])
def test_a_fixed_resolution_is_a_resize_before_everything_else(cases, name):
    """As in the originals: the processor sees an image that already has the size."""
    case = cases[name]
    processing = dataclasses.replace(case.backbone.processing, image_size=(56, 30))
    fixed = open_backbone(str(case.folder), max_length=10_000, processing=processing)
    item = several((40, 23), (128, 97))
    resized = [
        image.resize((30, 56), Image.Resampling.BICUBIC) for image in decode_images(item, None)
    ]
    media = tuple(Media(f"{i}.png", encoded(image)) for i, image in enumerate(resized))
    for ours, theirs in (
        (fixed.preprocess(item), case.preprocess(Item(MARKED, media))),
        (fixed.preprocess(several((40, 23))), case.preprocess(Item(MARKED, media[:1]))),
    ):
        for field in ("tokens", "slot", "patches"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


def test_pinpoints_of_a_run_replace_the_checkpoints(cases):
    for name in ("onevision", "next-raw"):
        case, pinpoints = cases[name], ((28, 28),)
        processing = dataclasses.replace(case.backbone.processing, pinpoints=pinpoints)
        backbone = open_backbone(str(case.folder), max_length=10_000, processing=processing)
        assert len(backbone.preprocess(picture(120, 90)).patches) == 2
        assert backbone.config_changes == {"image_grid_pinpoints": pinpoints}
        assert backbone.image_processor_changes == {"image_grid_pinpoints": pinpoints}
        assert case.backbone.config_changes == case.backbone.image_processor_changes == {}
        wrong = dataclasses.replace(processing, pinpoints=((28, 30),))
        with pytest.raises(ValueError, match="^pinpoints are .* multiples of .* 28"):
            open_backbone(str(case.folder), max_length=99, processing=wrong)


# Folders


def write(name: str, folder: pathlib.Path) -> pathlib.Path:
    return write_folder(folder) if name == "onevision" else write_llava_next(folder)


@pytest.mark.parametrize("name", ["onevision", "next"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(tmp_path, name, file):
    (write(name, tmp_path) / file).unlink()
    with pytest.raises(ValueError, match=f"{tmp_path} has no {file}"):
        open_backbone(str(tmp_path), max_length=99)


WRONG = [
    ("onevision", "config.json", "vision_aspect_ratio", "square"),
    ("onevision", "config.json", "vision_feature_select_strategy", "default"),
    ("onevision", "config.json", "image_grid_pinpoints", [[28, 30]]),
    ("onevision", "config.json", "image_grid_pinpoints", []),
    ("onevision", "config.json", "image_token_index", 3),
    ("onevision", "config.json", "projector_hidden_act", "softmax"),
    ("onevision", "preprocessor_config.json", "image_grid_pinpoints", [[28, 28]]),
    ("onevision", "preprocessor_config.json", "size", {"height": 14, "width": 14}),
    ("onevision", "preprocessor_config.json", "do_convert_rgb", False),
    ("onevision", "preprocessor_config.json", "image_mean", None),
    ("next", "config.json", "vision_feature_select_strategy", "full"),
    ("next", "config.json", "vision_feature_layer", [-2, -1]),
    ("next", "config.json", "vision_feature_layer", 0),
    ("next", "config.json", "vision_feature_layer", -4),
    ("next", "preprocessor_config.json", "size", {"shortest_edge": 14}),
    ("next", "preprocessor_config.json", "crop_size", {"height": 14, "width": 14}),
    ("next", "preprocessor_config.json", "crop_size", None),
    ("next", "preprocessor_config.json", "do_normalize", False),
]


@pytest.mark.parametrize("name, file, key, value", WRONG)
def test_a_wrong_key_is_named(tmp_path, name, file, key, value):
    path = write(name, tmp_path) / file
    content = {**json.loads(path.read_text()), key: value}
    if value is None:
        del content[key]
    path.write_text(json.dumps(content))
    key = "image token" if key == "image_token_index" else key
    with pytest.raises(ValueError, match=rf"(?s){file}.*{key}|{key}.*{file}"):
        open_backbone(str(tmp_path), max_length=99)


@pytest.mark.parametrize("name", ["onevision", "next"])
def test_a_newer_folder_has_its_image_processor_in_processor_config(tmp_path, name):
    folder = write(name, tmp_path)
    before = open_backbone(str(folder), max_length=999).preprocess(picture())
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    after = open_backbone(str(folder), max_length=999).preprocess(picture())
    np.testing.assert_array_equal(before.patches, after.patches)
    np.testing.assert_array_equal(before.tokens, after.tokens)


def test_the_families_own_processing(cases):
    assert cases["onevision"].backbone.processing == CHAT
    assert cases["next-raw"].backbone.processing == RAW


def test_neither_torch_nor_torchvision_is_needed(cases):
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'tensorflow'): sys.modules[name] = None\n"
        "from unime_jax.backbones import open_backbone\n"
        "from unime_jax.batch import Item, Media\n"
        "image = open(sys.argv[1], 'rb').read()\n"
        "for folder in sys.argv[2:]:\n"
        "    preprocess = open_backbone(folder, max_length=9999).preprocess\n"
        "    print(len(preprocess(Item('x', (Media('a.png', image),))).tokens))"
    )
    folders = [str(cases[name].folder) for name in ("onevision", "next-raw")]
    image = GOLDEN / "hf_legacy" / "a.png"
    found = subprocess.run(
        [sys.executable, "-c", program, str(image), *folders],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [int(x) > 16 for x in found.stdout.split()] == [True, True]
