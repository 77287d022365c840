"""Prompts against strings recorded from the original code, and the places of images in them."""

import dataclasses
import json
import pathlib
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backbones.tiny_folders import HUB_TEMPLATE, write_folder
from tests.backbones.tiny_prompts import PROMPTS, item, opened
from tests.tables import for_each

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "prompts" / "rendered.json"
NEW_TEMPLATE = (  # of transformers' newer conversion script, shortened to a user turn
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


# The originals' strings


def recorded(backbone: str, use: str, modality: str = "") -> list[dict]:
    found = [
        entry
        for entry in json.loads(GOLDEN.read_text())
        if entry["backbone"] == backbone
        and entry["use"].startswith(use)
        and modality in entry["modality"]
    ]
    assert found, (backbone, use)
    return found


def test_prompts_of_unime_are_the_recorded_ones(every_prompt):
    # UniME-V1 with LLaVA on images.
    (entry,) = recorded("llava_16", "retrieval", "image")
    prompt = every_prompt["mistral", "chat"]
    marked = item("<|image_1|>\nSummary above image in one word:", 1)
    plain = item("Summary above image in one word:", 1)
    assert [prompt.rendered(marked)] == [prompt.rendered(plain)] == entry["rendered"]

    # UniME-V1 with LLaVA on texts.
    (entry,) = recorded("llava_16", "retrieval", "text")
    found = [
        every_prompt["mistral", "chat"].rendered(
            item(f"{text}\nSummary above sentence in one word:")
        )
        for text in entry["inputs"]
    ]
    assert found == entry["rendered"]

    # UniME-V2 with Qwen2-VL on captions.
    prompt = every_prompt["qwen2_vl", "raw"]
    (entry,) = recorded("qwen2_vl", "Flickr30K", "image")
    marked = item("<|image_1|> Find an image caption describing the given image.", 1)
    assert [prompt.rendered(marked)] == entry["rendered"]
    (entry,) = recorded("qwen2_vl", "Flickr30K", "text")
    assert [prompt.rendered(item(text)) for text in entry["rendered"]] == entry["rendered"]


@for_each("family, backbone", [("mistral", "llava_next"), ("qwen2_vl", "qwen2_vl")])
def test_vlm2vec_on_mmeb_without_and_with_its_orphans(every_prompt, family, backbone):
    # A marker without an image is left out.
    (entry,) = recorded(backbone, "MMEB")
    prompt = every_prompt[family, "raw"]
    unmatched = 0
    for text, image, expected in zip(
        entry["inputs"], entry["has_image"], entry["rendered"], strict=True
    ):
        if not image:  # the originals leave a marker's token in a text without image: we do not
            unmatched += expected.count(prompt.image_token)
            expected = expected.replace(prompt.image_token + "\n", "")
        assert prompt.rendered(item(text, image)) == expected
    assert unmatched == 1

    # Or it stays an image token, which is then a token like any other.
    (entry,) = recorded(backbone, "MMEB")
    prompt = dataclasses.replace(every_prompt[family, "raw"], missing_images="token")
    for text, image, expected in zip(
        entry["inputs"], entry["has_image"], entry["rendered"], strict=True
    ):
        assert prompt.rendered(item(text, image)) == expected
        found = prompt(item(text, image), [6] * image)
        tokens, is_image = prompt.expand(found.ids, [6] * image)
        assert is_image.sum() == 6 * image
        missing_images = (tokens == prompt.image_token_id).sum() - 6 * image
        assert (
            found.unmatched_markers
            == missing_images
            == (prompt.image_token in expected and not image)
        )


@for_each(
    "template, key",
    [
        (HUB_TEMPLATE, "rendered_with_hub_template"),
        (NEW_TEMPLATE, "rendered_with_new_conversion_script"),
    ],
)
def test_unime_v2_llava_onevision(tmp_path, template, key):
    prompt = opened(write_folder(tmp_path, template=template), "chat")
    entries = recorded("llava_onevision", "training")
    assert len(entries) == 3
    for entry in entries:
        (text,), (image,) = entry["inputs"], entry["has_image"]
        assert prompt.rendered(item(text, image)) == entry[key]
    # What is recorded of the caption benchmarks goes through the same chat template afterwards.
    for entry in recorded("llava_onevision", "Flickr30K"):
        for text in entry["rendered"]:
            image = "<image>" in text
            prefix, suffix = prompt.frames[image]
            bare = text.replace("<image>", "").strip()
            assert prompt.rendered(item(text, image)) == prefix + bare + suffix


# Images and their markers


def test_markers_without_an_image_are_counted_and_prompts_survive_pickling(every_prompt):
    # They are left out and counted.
    prompt = every_prompt["onevision", "chat"]
    plain = prompt(item("Where is it?"), [])
    for text, count in (
        ("<|image_1|>\nWhere is it?\n", 1),
        ("Where is it?<|image_1|>", 1),
        ("<|image_12|>Where is it?", 1),
        ("<image>\nWhere is it?", 1),
        ("<|image_1|>\n<|image_1|> Where is it?", 2),
        ("<im<image>age>Where is it?", 2),
        ("<|image_<|image_1|>1|>Where is it?", 2),
    ):
        found = prompt(item(text), [])
        assert found.ids == plain.ids
        assert found.unmatched_markers == count
    assert plain.unmatched_markers == prompt(item("<|image_1|>\nx", 1), [4]).unmatched_markers == 0
    assert prompt(item("<|image_1|>\n<image>\nx", 1), [4]).unmatched_markers == 1
    assert prompt(item("no marker", 1), [4]).unmatched_markers == 0

    # A raw prompt that is empty without them is an error.
    prompt = every_prompt["qwen2_vl", "raw"]
    for text in ("", "<|image_1|>\n"):
        with pytest.raises(ValueError, match="no text and no image, so no token to pool"):
            prompt(item(text), [])
    assert prompt(item("", 1), [4]).ids

    # Prompts survive pickling.
    for prompt in every_prompt.values():
        copy = pickle.loads(pickle.dumps(prompt))
        assert copy(item("<|image_1|>\nx", 1), [4]) == prompt(item("<|image_1|>\nx", 1), [4])


@for_each(
    "text, images, expected, missing_images",
    [
        ("<|image_1|>\nx\n", 1, "@\nx\n", 0),
        (" compare <|image_1|> with <|image_2|>.", 2, " compare @ with @.", 0),
        ("@ or <|image_7|>", 2, "@ or @", 0),  # in their order
        ("x", 1, "@\nx", 0),
        ("a <|image_1|> b", 3, "@\n@\na @ b", 0),
        ("a <|image_1|>\nb <|image_2|>\nc", 1, "a @\nb c", 1),
        ("<|image_1|>\n<|image_1|>\nx", 1, "@\nx", 1),
        ("<im<|image_1|>age> x <|image_2|>", 1, "<im@age> x ", 1),
        ("<|image_1|>", 0, "", 1),
    ],
)
@for_each("family", ["mistral", "qwen2_vl"])
def test_raw_images_stand_where_their_markers_are(
    every_prompt, family, text, images, expected, missing_images
):
    prompt = every_prompt[family, "raw"]
    text, expected = (x.replace("@", prompt.image_token) for x in (text, expected))
    assert prompt.rendered(item(text, images)) == expected
    if expected:
        assert prompt(item(text, images), [1] * images).unmatched_markers == missing_images


MARKERS = ("<|image_1|>", "<|image_2|>", "<image>")
WORDS = (
    "a",
    " ",
    "\n",
    "x\ny",
    "\u4e2d",
    "\U0001f600",
    "[/INST]",
    "<im",
    "age>",
    "<|image_",
    "1|>",
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PROMPTS), st.lists(st.sampled_from(MARKERS + WORDS)), st.integers(0, 3))
def test_every_image_has_one_token_whatever_the_text(every_prompt, key, pieces, images):
    prompt, counts = every_prompt[key], [5, 2, 9][:images]
    pieces = [prompt.image_token if piece == "<image>" else piece for piece in pieces]
    text = "".join([*pieces, "."])
    rendered = prompt.rendered(item(text, images))
    assert rendered.count(prompt.image_token) == images
    assert not re.search(r"<\|image_\d+\|>", rendered)
    found = prompt(item(text, images), counts)
    tokens, is_image = prompt.expand(found.ids, counts)
    assert tokens.dtype == np.int32
    assert is_image.sum() == sum(counts)
    assert not found.truncated
    markers = sum(text.count(x) for x in ("<|image_1|>", "<|image_2|>", prompt.image_token))
    assert found.unmatched_markers >= max(0, markers - images)
    # Expanding ids is tokenising the text in which every image token is written out.
    written = re.split(f"({re.escape(prompt.image_token)})", rendered)
    long = "".join(piece * (counts[i // 2] if i % 2 else 1) for i, piece in enumerate(written))
    assert tokens.tolist() == prompt.tokenizer.encode(long).ids


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(PROMPTS),
    st.sampled_from(("token", "image")),
    st.lists(st.sampled_from(MARKERS + WORDS), max_size=12),
    st.integers(0, 3),
)
def test_orphans_that_are_kept_come_last(every_prompt, key, missing_images, pieces, images):
    """They are image tokens as those of images are, and none of their expanded tokens."""
    prompt = dataclasses.replace(every_prompt[key], missing_images=missing_images)
    pieces = [prompt.image_token if piece == "<image>" else piece for piece in pieces]
    markers = re.findall(
        rf"<\|image_\d+\|>|{re.escape(prompt.image_token)}", "".join([*pieces, "."])
    )
    this, counts = item("".join([*pieces, "."]), images), [5, 2, 9][:images]
    kept = max(0, len(markers) - images)
    if images + kept > 8 and key[1] == "chat":
        with pytest.raises(ValueError, match="has places for"):
            prompt.rendered(this)
        return
    assert prompt.empty_places(this) == kept
    assert every_prompt[key].empty_places(this) == 0
    assert prompt.rendered(this).count(prompt.image_token) == images + kept
    found = prompt(this, counts)
    assert found.unmatched_markers >= kept
    tokens, is_image = prompt.expand(found.ids, counts)
    assert (tokens == prompt.image_token_id).sum() == sum(counts) + kept
    places = np.flatnonzero(tokens == prompt.image_token_id)
    np.testing.assert_array_equal(places[: sum(counts)], np.flatnonzero(is_image))
    zeros = prompt.expand(found.ids, [*counts, *[17] * kept])[1]
    assert zeros.sum() == sum(counts) + 17 * kept


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(("<|image_1|>", "<image>", "\n", "a", " "))), st.integers(0, 3))
def test_raw_texts_change_only_at_markers(every_prompt, pieces, images):
    prompt = every_prompt["mistral", "raw"]
    left, expected, skip = images, "", False
    for piece in pieces:
        if piece in MARKERS:
            expected += "<image>" if left > 0 else ""
            skip, left = left <= 0, left - 1
        elif piece == "\n" and skip:
            skip = False
        else:
            expected, skip = expected + piece, False
    expected = "<image>\n" * max(0, left) + expected
    assert prompt.rendered(item("".join(pieces), images)) == expected
    if expected:
        assert prompt(item("".join(pieces), images), [1] * images).unmatched_markers == max(
            0, -left
        )


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([f for f, _ in PROMPTS]), st.text(max_size=30), st.integers(0, 1))
def test_chat_texts_are_stripped(every_prompt, family, text, images):
    prompt = every_prompt[family, "chat"]
    prefix, suffix = prompt.frames[images]
    if "<image>" not in text and "<|image_" not in text:
        assert prompt.rendered(item(text, images)) == prefix + text.strip() + suffix
