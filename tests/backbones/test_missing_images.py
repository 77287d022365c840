"""What becomes of image markers without an image, in families and in exported folders."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_llava_qwen import write_llava_qwen
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.models.oracle import EXACT, packed, pair_of, picture, torch_hidden
from tests.tables import for_each
from unime_jax import backbones
from unime_jax.backbones import Processing
from unime_jax.backbones.preprocessing import processing
from unime_jax.batch import Item, Media

FOLDERS = {
    "llava_onevision": write_folder,
    "llava_next": write_llava_next,
    "llava_qwen": write_llava_qwen,
    "qwen2_vl": write_qwen2_vl,
}
SUPPORTED = {
    "llava_onevision": {"strip", "token", "image"},
    "llava_next": {"strip", "token"},
    "llava_qwen": {"strip", "image"},
    "qwen2_vl": {"strip", "token"},
}
ORPHAN = Item("<|image_1|>\nFind a Wikipedia image that answers this question: Where is it?\n")


@for_each("family", FOLDERS)
def test_a_family_without_a_choice_says_so(tmp_path, family):
    folder = FOLDERS[family](tmp_path)
    for missing_images in ("strip", "token", "image"):
        choice = Processing(prompt="raw", missing_images=missing_images)
        if missing_images in SUPPORTED[family]:
            backbone = backbones.open_backbone(str(folder), max_length=512, processing=choice)
            assert len(backbone.caveats) >= (missing_images != "strip")
            assert not backbone.caveats or not backbone.loads_in_transformers
            continue
        with pytest.raises(
            ValueError, match=f'missing_images is "{missing_images}"; this family supports'
        ):
            backbones.open_backbone(str(folder), max_length=512, processing=choice)


@for_each(  # LLaVA's decoders take tokens alike
    "family",
    ["llava_onevision", "llava_next", "qwen2_vl"],
    quick=["llava_onevision", "qwen2_vl"],
)
def test_an_orphan_token_is_transformers_embedding_of_it(tmp_path, family):
    """In a batch with images, too, whose tokens it must not take."""
    choice = Processing(prompt="raw", missing_images="token")
    pair = pair_of(FOLDERS[family](tmp_path), processing=choice)
    image = picture(30, 40, 0)
    items = [
        Item("<|image_1|>\nRepresent the given image.", (Media("a.png", image),)),
        ORPHAN,
        Item("Where is it?"),
    ]
    inputs, numbers = packed(pair, items, 256, 8)
    run = jax.jit(lambda x: pair.model(x, EXACT))
    embeddings = np.asarray(run(inputs))[numbers]
    last = np.stack([torch_hidden(pair, item)[-1] for item in items])
    expected = last / np.linalg.norm(last, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    stripped = dataclasses.replace(choice, missing_images="strip")
    opened = backbones.open_backbone(str(pair.backbone.folder), max_length=512, processing=stripped)
    other, numbers = packed(dataclasses.replace(pair, backbone=opened), items, 256, 8)
    without = np.asarray(run(other))[numbers[1]]
    assert np.abs(without - embeddings[1]).max() > 1e-3
    assert opened.preprocess(ORPHAN).unmatched_markers == 1


def test_what_takes_the_place_of_an_image_in_chat_templates(tmp_path):
    # Qwen2-VL's positions of an orphan. Plain, also where images have rows and columns.
    choice = Processing(prompt="raw", missing_images="token", grid_positions=True)
    backbone = backbones.open_backbone(
        str(write_qwen2_vl(tmp_path)), max_length=512, processing=choice
    )
    row = backbone.preprocess(ORPHAN)
    assert (row.positions == np.arange(len(row.tokens))[:, None]).all()
    both = Item("<|image_1|> and <|image_2|>", (Media("a.png", picture(60, 90, 0)),))
    row = backbone.preprocess(both)
    assert row.unmatched_markers == 1 and (row.slot[-1, 0], row.slot[0, 0]) == (-1, 0)
    assert len(set(row.positions[-1])) == 1 and (np.ptp(row.positions, axis=1) > 0).any()

    # An image of zeros in a chat template. LLaVA-OneVision's own prompt, with one more image.
    (tmp_path := tmp_path / "next").mkdir()
    choice = Processing(prompt="chat", missing_images="image")
    backbone = backbones.open_backbone(
        str(write_folder(tmp_path)), max_length=512, processing=choice
    )
    assert backbone.layout.positioned
    prompt = backbone.preprocess.prompt
    assert prompt.rendered(ORPHAN).startswith("<|im_start|>user <image>\nFind a")
    row = backbone.preprocess(ORPHAN)
    slots = row.slot[row.slot[:, 0] >= 0, 0]
    np.testing.assert_array_equal(slots, [*range(1, 17), 0])
    assert row.unmatched_markers == 1 and (row.patch_position == -1).all()


@for_each("missing_images", ["strip", "token", "image"])
def test_the_choice_is_recorded(tmp_path, missing_images):
    choice = Processing(prompt="verbatim", missing_images=missing_images)
    processing.write(tmp_path, choice)
    assert processing.read(tmp_path) == choice
    assert len(processing.caveats(choice)) == (missing_images != "strip")


def test_folders_from_before_there_was_a_choice(tmp_path):
    processing.write(tmp_path, Processing(prompt="chat", missing_images="image"))
    file = tmp_path / processing.FILE
    record = json.loads(file.read_text())
    del record["missing_images"]
    file.write_text(json.dumps(record))
    assert processing.read(tmp_path) == Processing(prompt="chat", missing_images="strip")


@for_each("missing_images", ["token", "image"])
@for_each("name", [processing.FILE, "config.json"])
def test_folders_exported_when_the_key_was_called_orphans(tmp_path, name, missing_images):
    """In embedder.json, or where another library has saved the folder in config.json alone."""
    (tmp_path / "config.json").write_text("{}")
    choice = Processing(prompt="chat", missing_images=missing_images)
    processing.write(tmp_path, choice)
    for file in (tmp_path / processing.FILE, tmp_path / "config.json"):
        record = json.loads(file.read_text())
        inner = record.get(processing.KEY, record)
        inner["orphans"] = inner.pop("missing_images")
        file.write_text(json.dumps(record))
    if name == "config.json":
        (tmp_path / processing.FILE).unlink()
    assert processing.read(tmp_path) == choice
