"""Rows of the LLaVA-OneVision preprocessor against transformers' tokenizer and processor."""

import functools
import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from tests.backbones.tiny_folders import HUB_TEMPLATE, QWEN2_TEMPLATE, write_folder
from unime_jax.backbones import anyres, prompts
from unime_jax.backbones.preprocess import LlavaOnevisionPreprocessor, to_rgb
from unime_jax.batch import Item

MARKED = "<|image_1|>\nRepresent the given image for classification\n"
NEW_TEMPLATE = (  # of transformers' newer conversion script, shortened in the same way
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("onevision"))


@pytest.fixture(scope="module")
def preprocess(folder):
    return LlavaOnevisionPreprocessor.from_folder(folder, max_length=256)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def blending(tmp_path_factory):
    """Tiles of 30 pixels, no multiple of patch 7; up to 6 x 6 of them in maps of at most 2."""
    folder = write_folder(tmp_path_factory.mktemp("large"), tile=30, grid=6, max_tiles=2)
    return folder, LlavaOnevisionPreprocessor.from_folder(folder, max_length=512)


@pytest.fixture(scope="module")
def image_processors(folder, preprocess, blending):
    """Pairs of ours and transformers'."""
    theirs = [AutoImageProcessor.from_pretrained(f, backend="pil") for f in (folder, blending[0])]
    return list(zip((preprocess, blending[1]), theirs, strict=True))


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    bands = Image.new(mode, (1, 1)).getbands()
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, len(bands)), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if len(bands) == 1 else pixels, mode)


def picture(width: int = 40, height: int = 23) -> Item:
    return Item(MARKED, "a.png", encoded(noise(width, height)))


@functools.cache
def reference(folder) -> LlavaOnevisionProcessor:
    """transformers' processor, without the video half that needs torchvision."""
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    processor.tokenizer = AutoTokenizer.from_pretrained(folder)
    processor.vision_feature_select_strategy = "full"
    processor.image_token = "<image>"
    return processor


def check_row(folder, preprocess, item: Item) -> None:
    """Ids, slots and patches of an item with an image against transformers' own steps."""
    processor, row = reference(folder), preprocess(item)
    processor.num_image_tokens = preprocess.side**2
    processor.vision_aspect_ratio = f"anyres_max_{preprocess.max_tiles}"
    image = Image.open(io.BytesIO(item.image))
    pixels = processor.image_processor([image], return_tensors="np")
    placeholders = processor.replace_image_token(pixels, 0)
    text = preprocess.rendered(item)
    assert text.count("<image>") == 1
    ids = processor.tokenizer(text.replace("<image>", placeholders))["input_ids"]
    assert row.tokens.tolist() == ids
    assert row.tokens.dtype == row.slot.dtype == row.positions.dtype == np.int32
    np.testing.assert_array_equal(row.positions[:, 0], np.arange(len(ids)))
    np.testing.assert_array_equal(row.slot[:, 0] >= 0, row.tokens == preprocess.image_token_id)
    assert row.slot.max() <= row.patches.shape[0] * row.patches.shape[1]
    # What the device computes from the bytes is what the processor gives.
    tiles = pixels["pixel_values"][0]
    side, patch = preprocess.side, preprocess.patch
    assert row.patches.dtype == np.uint8
    assert row.patches.shape == (len(tiles), side * side, 3 * patch * patch)
    mean, std = (np.repeat(x, patch**2) for x in (preprocess.image_mean, preprocess.image_std))
    normalised = (row.patches * preprocess.rescale_factor - mean) / std
    for n in range(side * side):
        y, x = divmod(n, side)
        window = tiles[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
        np.testing.assert_allclose(normalised[:, n], window.reshape(len(tiles), -1), atol=1e-6)


# Prompts


def test_prompts_are_those_unime_v2_trains_with(preprocess):
    # The strings are recorded from the original code with the hub's template.
    assert preprocess.rendered(picture()) == (
        "<|im_start|>user <image>\nRepresent the given image for classification"
        "<|im_end|><|im_start|>assistant\n"
    )
    assert preprocess.rendered(Item("tabby, tabby cat")) == (
        "<|im_start|>user \ntabby, tabby cat<|im_end|><|im_start|>assistant\n"
    )
    question = "Find a Wikipedia image that answers this question: Where is it?"
    assert preprocess.rendered(Item(f"<|image_1|>\n{question}\n")) == (
        f"<|im_start|>user \n{question}<|im_end|><|im_start|>assistant\n"
    )


def test_the_checkpoints_own_template_is_used(tmp_path):
    folder = write_folder(tmp_path, template=NEW_TEMPLATE)
    preprocess = LlavaOnevisionPreprocessor.from_folder(folder, max_length=99)
    assert preprocess.rendered(picture()) == (
        "<|im_start|>user\n<image>\nRepresent the given image for classification"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    (folder / "chat_template.jinja").write_text(HUB_TEMPLATE)  # preferred to the .json
    preprocess = LlavaOnevisionPreprocessor.from_folder(folder, max_length=99)
    assert preprocess.rendered(Item("x")) == "<|im_start|>user \nx<|im_end|><|im_start|>assistant\n"


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.booleans())
def test_the_frame_is_what_the_template_renders(tokenizer, text, image):
    prefix, suffix = prompts.frame(tokenizer, HUB_TEMPLATE, image=image)
    content = [{"type": "image"}] * image + [{"type": "text", "text": text}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=HUB_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered == prefix + text + suffix


@pytest.mark.parametrize(
    "template, message",
    [
        (QWEN2_TEMPLATE, "list of image and text parts"),
        (HUB_TEMPLATE.replace("part['text']", "(part['text'] | upper)"), "list of image and text"),
        (HUB_TEMPLATE.replace("part['text']", "(part['text'] | trim | e)"), "changes the text"),
        (HUB_TEMPLATE.replace("'<image>'", "'<image><image>'"), "2 times with one"),
    ],
)
def test_a_template_that_is_no_frame_is_an_error(tmp_path, template, message):
    folder = write_folder(tmp_path, template=template)
    with pytest.raises(ValueError, match=message):
        LlavaOnevisionPreprocessor.from_folder(folder, max_length=99)


# Rows


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.booleans())
def test_rows_equal_transformers(folder, preprocess, blending, width, height, blend):
    check_row(*(blending if blend else (folder, preprocess)), picture(width, height))


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (1, 1), (28, 28), (301, 300), (3, 2)])
def test_rows_of_extreme_images_equal_transformers(folder, preprocess, size):
    check_row(folder, preprocess, picture(*size))


def test_slots_and_weights_stand_where_the_image_tokens_are(preprocess, blending):
    for family, image in ((preprocess, noise(50, 31)), (blending[1], noise(900, 600))):
        row = family(Item(MARKED, "a.png", encoded(image)))
        slot, weight = anyres.image_slots(
            image.height,
            image.width,
            pinpoints=family.pinpoints,
            tile=family.tile,
            side=family.side,
            max_tiles=family.max_tiles,
        )
        at = row.tokens == family.image_token_id
        np.testing.assert_array_equal(row.slot[at], slot)
        assert (row.slot[~at] == anyres.TEXT).all()
        if weight is not None:
            np.testing.assert_array_equal(row.slot_weight[at], weight)
            assert not row.slot_weight[~at].any()
    assert preprocess.slots_per_token == 1 and blending[1].slots_per_token == 4


def test_text_rows(tokenizer, preprocess, blending):
    item = Item("a red circle, \u4e2d\u6587 \U0001f600 e\u0301 <|im_end|>")
    row = preprocess(item)
    ids = tokenizer(preprocess.rendered(item))["input_ids"]
    assert row.tokens.tolist() == ids
    assert row.patches is None and row.slot_weight is None
    assert row.slot.shape == (len(ids), 1) and (row.slot == anyres.TEXT).all()
    assert row.truncated == row.orphan_images == 0
    blended = blending[1](Item("a red circle"))  # all rows of a family have the same arrays
    assert blended.slot_weight.shape == blended.slot.shape == (len(blended.tokens), 4)


def test_markers_without_an_image_are_left_out_and_counted(preprocess):
    plain = preprocess(Item("Where is it?"))
    for text, count in (
        ("<|image_1|>\nWhere is it?\n", 1),
        ("Where is it?<|image_1|>", 1),
        ("<image>\nWhere is it?", 1),
        ("<|image_1|>\n<|image_1|> Where is it?", 2),
        ("<im<image>age>Where is it?", 2),
    ):
        row = preprocess(Item(text))
        assert row.tokens.tolist() == plain.tokens.tolist()
        assert row.orphan_images == count
    assert preprocess(picture()).orphan_images == 0
    twice = preprocess(Item("<|image_1|>\n<image>\nx", "a.png", picture().image))
    assert twice.orphan_images == 1


def test_missing_and_broken_images_are_errors_that_name_the_path(preprocess):
    with pytest.raises(ValueError, match="'gone.png': the image file is missing"):
        preprocess(Item(MARKED, "gone.png"))
    data = encoded(noise(40, 40))
    for broken in (b"no image", data[:200]):
        with pytest.raises(ValueError, match="'bad.png': the image cannot be read"):
            preprocess(Item(MARKED, "bad.png", broken))


def test_it_survives_pickling(preprocess):
    copy = pickle.loads(pickle.dumps(preprocess))
    ours, theirs = preprocess(picture()), copy(picture())
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    np.testing.assert_array_equal(ours.patches, theirs.patches)


# Pixels


def sixteen_bit() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 2**16, (23, 40), dtype=np.uint16)
    return encoded(Image.fromarray(pixels))


def palette(**options) -> bytes:
    return encoded(noise(40, 23).quantize(16), **options)


@pytest.mark.parametrize(
    "data",
    [
        encoded(noise(40, 23, "RGBA")),
        encoded(noise(40, 23, "LA")),
        encoded(noise(40, 23, "L")),
        encoded(noise(40, 23, "L"), transparency=7),
        encoded(noise(40, 23, "L").convert("1")),
        encoded(noise(40, 23, "CMYK"), "JPEG"),
        encoded(noise(40, 23), "JPEG"),
        sixteen_bit(),
        palette(),
        palette(transparency=3),
        palette(format="GIF", transparency=3),
    ],
    ids=[
        "RGBA",
        "LA",
        "L",
        "L-transparent",
        "1",
        "CMYK",
        "JPEG",
        "I;16",
        "P",
        "P-transparent",
        "GIF",
    ],
)
def test_every_kind_of_image_becomes_the_processors_pixels(folder, preprocess, data):
    check_row(folder, preprocess, Item(MARKED, "a", data))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 9))
def test_tiles_are_byte_for_byte_the_processors(image_processors, width, height, seed):
    for preprocess, processor in image_processors:
        image = noise(width, height, seed=seed)
        tiles = processor([image], do_rescale=False, do_normalize=False, return_tensors="np")
        tiles = tiles["pixel_values"][0]
        assert tiles.dtype == np.uint8
        row = preprocess(Item("", "a", encoded(image)))
        np.testing.assert_array_equal(
            row.patches, anyres.cut_patches(tiles.transpose(0, 2, 3, 1), preprocess.patch)
        )


def test_rgb_images_are_not_changed():
    image = noise(5, 4)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(image))


# Truncation


@settings(max_examples=80, deadline=None)
@given(
    st.text(st.sampled_from("a bz\n\u4e2d\U0001f600e\u0301<"), max_size=120),
    st.booleans(),
    st.integers(0, 90),
)
def test_only_text_is_shortened(preprocess, text, image, room):
    item = Item(text, "a.png", picture().image) if image else Item(text)
    whole = preprocess(item)
    bare = preprocess(Item("", item.image_path, item.image))
    limit = len(bare.tokens) + 1 + room  # template and text may meet in one token
    short = LlavaOnevisionPreprocessor(**{**vars_of(preprocess), "max_length": limit})(item)
    assert len(short.tokens) == min(limit, len(whole.tokens))
    assert short.truncated == len(whole.tokens) - len(short.tokens)
    kept = len(short.tokens)
    suffix = len(preprocess.tokenizer.encode(preprocess.text_frame[1]).ids)
    assert short.tokens[-suffix:].tolist() == whole.tokens[-suffix:].tolist()
    assert short.tokens[: kept - suffix].tolist() == whole.tokens[: kept - suffix].tolist()
    np.testing.assert_array_equal(short.slot[short.slot >= 0], whole.slot[whole.slot >= 0])
    np.testing.assert_array_equal(short.positions[:, 0], np.arange(kept))


def vars_of(preprocess) -> dict:
    return {name: getattr(preprocess, name) for name in preprocess.__dataclass_fields__}


def test_a_row_that_cannot_be_short_enough_is_an_error(folder):
    bare = LlavaOnevisionPreprocessor.from_folder(folder, max_length=999)
    needed = len(bare(Item("", "a.png", picture().image)).tokens)
    short = LlavaOnevisionPreprocessor.from_folder(folder, max_length=needed - 1)
    message = f"'a.png': its image tokens and prompt template alone are {needed} tokens"
    with pytest.raises(ValueError, match=message):
        short(Item("", "a.png", picture().image))
    with pytest.raises(ValueError, match="its prompt template alone"):
        LlavaOnevisionPreprocessor.from_folder(folder, max_length=3)(Item("a b"))


# Folders


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(tmp_path, name):
    (write_folder(tmp_path) / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        LlavaOnevisionPreprocessor.from_folder(tmp_path, max_length=99)


@pytest.mark.parametrize(
    "file, key, value",
    [
        ("config.json", "model_type", "llava_next"),
        ("config.json", "vision_aspect_ratio", "square"),
        ("config.json", "vision_feature_select_strategy", "default"),
        ("config.json", "image_grid_pinpoints", [[28, 30]]),
        ("config.json", "image_token_index", 3),
        ("preprocessor_config.json", "image_grid_pinpoints", [[28, 28]]),
        ("preprocessor_config.json", "size", {"height": 14, "width": 14}),
        ("preprocessor_config.json", "do_convert_rgb", False),
    ],
)
def test_a_wrong_key_is_named(tmp_path, file, key, value):
    path = write_folder(tmp_path) / file
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=rf"(?s){file}.*{key}|{key}.*{file}"):
        LlavaOnevisionPreprocessor.from_folder(tmp_path, max_length=99)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        LlavaOnevisionPreprocessor.from_folder(tmp_path / "nowhere", max_length=99)


def test_neither_torch_nor_torchvision_is_needed(folder):
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'tensorflow'): sys.modules[name] = None\n"
        "from unime_jax.backbones.preprocess import LlavaOnevisionPreprocessor as P\n"
        "from unime_jax.batch import Item\n"
        "print(len(P.from_folder(sys.argv[1], max_length=99)(Item('x')).tokens))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) > 5
