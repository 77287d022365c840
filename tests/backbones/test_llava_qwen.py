"""LLaVE's folders: prompts, ids, pixels and layout against those of the original code."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.backbones.images import encoded, noise
from tests.backbones.tiny_llava_qwen import TOWER, write_llava_qwen
from tests.tables import for_each
from unime_jax import backbones
from unime_jax.backbones import Processing
from unime_jax.backbones.llava import llava_config, llava_qwen_config
from unime_jax.batch import Item, Media

A = (Media("a.png", b"x"),)
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "llave"
PROMPTS = json.loads((GOLDEN / "prompts" / "input_ids.json").read_text())["rows"]
LAYOUT = json.loads((GOLDEN / "layout" / "layout.json").read_text())["rows"]
TILES = json.loads((GOLDEN / "processor" / "tiles.json").read_text())["images"]
VERBATIM = Processing(prompt="verbatim")


@pytest.fixture(scope="module")
def backbone():
    return backbones.open_backbone(str(GOLDEN / "model"), max_length=4096)


@pytest.fixture(scope="module")
def preprocess(backbone):
    return backbone.preprocess


def opened(folder, processing=None, max_length=512):
    return backbones.open_backbone(str(folder), max_length=max_length, processing=processing)


def rewritten(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@for_each("row", PROMPTS)
def test_recorded_ids(preprocess, row):
    image = "<image>" in row["user_content_after_preprocess"]
    item = Item(row["text"], (Media("a.png", b"bytes"),) if image else ())
    prompt = preprocess.prompt
    ids = prompt(item, [1] * image).ids
    assert [-200 if token == prompt.image_token_id else token for token in ids] == row["input_ids"]
    assert row["user_content_after_preprocess"] in prompt.rendered(item)


def test_prompts_end_as_the_originals(preprocess, tmp_path):
    # The final line end is pooled.
    assert preprocess(Item("A cat")).tokens[-3:].tolist() == [198, 258, 198]

    # Raw has no turn.
    folder = write_llava_qwen(tmp_path)
    raw = opened(folder, Processing(prompt="raw")).preprocess.prompt
    assert raw.rendered(Item("a <|image_1|>", A)) == "a <image>"


@for_each(
    "item, expected",
    [
        # Nothing but the markers is ours to change, unless a single image is not in front.
        (Item(" a \n"), " a \n"),
        (Item("a", A), "<image>\na"),
        (Item("<|image_1|> a\n", A), "<image> a\n"),
        (Item("a <|image_1|>\n", A), "<image>\na"),
        (Item("\n<|image_1|> ", A), "<image>"),
        (Item("a <|image_1|> b", A, suffix="\nA word: "), "<image>\na  b\nA word: "),
        (Item("of <|image_1|> ", A, prefix=" A "), "<image>\nA of"),
        (Item("<|image_1|>a<|image_2|>\n", A * 2), "<image>a<image>\n"),
        (Item("a <|image_1|><|image_2|> ", A * 2), "a <image><image> "),
        (Item("a", A * 2), "<image>\n<image>\na"),
        (Item("a <|image_1|>\nb "), "a b "),
    ],
)  # fmt: skip
def test_images_in_a_text(preprocess, item, expected):
    before, after = preprocess.prompt.frames[0]
    assert preprocess.prompt.rendered(item) == before + expected + after


@for_each("entry", TILES)
def test_recorded_tiles(preprocess, entry):
    """The base tile is stretched; the others lie on black."""
    data = (GOLDEN / "processor" / entry["image"]).read_bytes()
    row = preprocess(Item("<|image_1|>\n", (Media(entry["image"], data),)))
    strip = np.asarray(Image.open(GOLDEN / "processor" / entry["tiles_image"]).convert("RGB"))
    tiles = strip.reshape(-1, 384, 384, 3)[:, :378, :378].reshape(-1, 27, 14, 27, 14, 3)
    expected = tiles.transpose(0, 1, 3, 5, 2, 4).reshape(-1, 729, 588)
    np.testing.assert_array_equal(row.patches, expected)


@for_each("grids", ["(1x1),...,(2x2)", "(1x1),...,(6x6)"])
def test_recorded_layout(tmp_path_factory, grids):
    """Token counts of all recorded sizes, canvases named as grids."""
    folder = tmp_path_factory.mktemp("grids")
    for file in ("tokenizer.json", "siglip_vision_config.json", "config.json"):
        (folder / file).write_text((GOLDEN / "model" / file).read_text())
    preprocess = opened(rewritten(folder, image_grid_pinpoints=grids)).preprocess
    rows = [row for row in LAYOUT if row["grid"] == grids]
    assert len(rows) > 5
    for row in rows:
        slot, _ = preprocess.image_slots(row["height"], row["width"], 1)
        assert len(slot) == row["visual_tokens"], row


def test_canvases_are_width_and_height_and_an_image_token_of_its_own_is_kept(tmp_path, backbone):
    """The original lists (width, height), and of equals takes the first."""
    folder = write_llava_qwen(tmp_path)
    assert opened(folder).preprocess.pinpoints == ((28, 28), (56, 28), (28, 56), (56, 56))
    listed = rewritten(folder, image_grid_pinpoints=[[56, 28], [28, 84]])
    assert opened(listed).preprocess.pinpoints == ((28, 56), (84, 28))
    assert opened(rewritten(folder, image_grid_pinpoints="(2x1),...,(3x2)")).preprocess.pinpoints \
        == ((28, 56), (56, 56), (28, 84), (56, 84))  # fmt: skip

    # An image token of its own is kept, where the tokenizer has one already, as those of LLaVA-
    # OneVision's repositories may.
    (tmp_path := tmp_path / "token").mkdir()
    folder = write_llava_qwen(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    for token, content in ((259, "<video>"), (260, "<image>")):
        added = {"id": token, "content": content, "special": True} | flags
        tokenizer["added_tokens"].append(added)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert opened(folder).preprocess.prompt.image_token_id == 260


def test_the_published_tower_is_known_and_another_must_be_described(tmp_path):
    # The published tower. 26 of the 27 layers of SigLIP so400m, its shapes and the projector's.
    folder = write_llava_qwen(tmp_path)
    (folder / "siglip_vision_config.json").unlink()
    backbone = opened(rewritten(folder, mm_hidden_size=1152, image_aspect_ratio="anyres_max_4"))
    config = llava_qwen_config.read_config(folder)
    tower = llava_config.tower_config(llava_qwen_config.convert_config(folder, config, 259, 260))
    assert (tower.num_layers, tower.num_heads, tower.hidden_act) == (26, 16, "gelu_pytorch_tanh")
    assert (tower.hidden_size, tower.intermediate_size, tower.layer_norm_eps) == (1152, 4304, 1e-6)
    assert backbone.layout.patches == 729 and backbone.layout.patch_bytes == 588
    assert backbone.preprocess.max_tiles == 4

    # An unknown tower and missing keys are said.
    (tmp_path := tmp_path / "next").mkdir()
    folder = rewritten(write_llava_qwen(tmp_path), mm_vision_tower="openai/clip-vit-large")
    (folder / "siglip_vision_config.json").unlink()
    with pytest.raises(ValueError, match="mm_vision_tower is 'openai/clip-vit-large', whose sizes"):
        opened(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["mm_hidden_size"], config["image_grid_pinpoints"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks image_grid_pinpoints, mm_hidden_size"):
        opened(folder)


@for_each(
    "changes, message",
    [
        ({"mm_vision_tower": "openai/clip-vit-large"}, None),  # the folder says what it is
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type is 'flat'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"mm_hidden_size": 33}, "mm_hidden_size is 33"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio is 'pad'"),
        ({"image_grid_pinpoints": "none"}, "'none' names no grids"),
        ({"image_grid_pinpoints": [[30, 28]]}, "must be multiples of"),
        ({"vocab_size": 259}, "<image> is token 259 and vocab_size is 259; resize"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
    ],
)
def test_what_is_not_done_is_said(tmp_path, changes, message):
    folder = rewritten(write_llava_qwen(tmp_path), **changes)
    if message is None:
        assert opened(folder).layout.patches == (TOWER["image_size"] // TOWER["patch_size"]) ** 2
        return
    with pytest.raises(ValueError, match=message):
        opened(folder)


def test_markers_without_an_image(tmp_path):
    # Orphans. Left out, or an image of zeros; there is no token that could stand for an image.
    folder = write_llava_qwen(tmp_path)
    with pytest.raises(ValueError, match='missing_images is "token"; this family supports .*image'):
        opened(folder, Processing(prompt="verbatim", missing_images="token"))
    text, image = "<|image_1|>\nFind it.", encoded(noise(30, 64))
    rows = {
        missing_images: opened(
            folder, Processing(prompt="verbatim", missing_images=missing_images)
        ).preprocess
        for missing_images in ("strip", "image")
    }
    for item in (
        Item("Find it."),
        Item(text, (Media("a.png", image),)),
    ):  # none is missing: no difference
        a, b = (row(item) for row in rows.values())
        np.testing.assert_array_equal(a.tokens, b.tokens)
        assert a.unmatched_markers == b.unmatched_markers == 0
        assert a.patch_position is None
    assert (b.patch_position == 0).all()
    a, b = (row(Item(text)) for row in rows.values())
    assert a.unmatched_markers == b.unmatched_markers == 1
    assert a.patches is None and (a.slot == -1).all()
    assert b.patches.shape[0] == 1 and (b.patch_position == -1).all()
    slots = [*range(1, 17), 0]  # one tile and a newline
    np.testing.assert_array_equal(b.slot[b.slot[:, 0] >= 0, 0], slots)
    assert len(b.tokens) == len(a.tokens) + 18  # and the line end after the marker

    # A marker too many. The first one is the image's.
    (tmp_path := tmp_path / "next").mkdir()
    folder = write_llava_qwen(tmp_path)
    preprocess = opened(folder, Processing(prompt="verbatim", missing_images="image")).preprocess
    row = preprocess(Item("<|image_1|> or <|image_1|>", (Media("a.png", encoded(noise(28, 28))),)))
    assert row.unmatched_markers == 1 and len(row.patches) == 3
    assert (row.patch_position[:2] == 0).all() and (row.patch_position[2] == -1).all()
    slot = row.slot[row.slot[:, 0] >= 0, 0]
    np.testing.assert_array_equal(slot[-17:], [*range(33, 49), 0])
    assert slot[:16].tolist() == list(range(1, 17)) and len(slot) == 16 + 4 * 5 + 17
