"""Prompts against strings recorded from the original code, and what holds of every prompt."""

import dataclasses
import json
import pathlib
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.backbones.tiny_families import MISTRAL_TEMPLATE, write_llava_next, write_qwen2_vl
from tests.backbones.tiny_folders import HUB_TEMPLATE, QWEN2_TEMPLATE, write_folder
from unime_jax.backbones.preprocessing import chat_frames
from unime_jax.backbones.preprocessing.prompts import Prompt, open_prompt
from unime_jax.batch import Item, Media

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "prompts" / "rendered.json"
NEW_TEMPLATE = (  # of transformers' newer conversion script, shortened to a user turn
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PROMPTS = [
    (family, style)
    for family in ("onevision", "mistral", "vicuna", "qwen2_vl")
    for style in ("chat", "verbatim", "raw")
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "onevision": write_folder(tmp_path_factory.mktemp("onevision")),
        "mistral": write_llava_next(tmp_path_factory.mktemp("mistral"), decoder="mistral"),
        "vicuna": write_llava_next(tmp_path_factory.mktemp("vicuna"), decoder="llama"),
        "qwen2_vl": write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")),
    }


def opened(folder, style, max_length=10_000) -> Prompt:
    config = json.loads((folder / "config.json").read_text())
    image_token_id = config.get("image_token_id") or config.get("image_token_index")
    return open_prompt(
        folder,
        AutoTokenizer.from_pretrained(folder),
        image_token_id=image_token_id,
        vocab_size=448,
        style=style,
        max_length=max_length,
    )


@pytest.fixture(scope="module")
def every_prompt(folders):
    return {(family, style): opened(folders[family], style) for family, style in PROMPTS}


def item(text: str, images: int = 0) -> Item:
    """An item with so many images, which a prompt does not look into."""
    return Item(text, tuple(Media(f"{i}.png", b"bytes") for i in range(images)))


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


def test_unime_v1_llava_on_images(every_prompt):
    (entry,) = recorded("llava_16", "retrieval", "image")
    prompt = every_prompt["mistral", "chat"]
    marked = item("<|image_1|>\nSummary above image in one word:", 1)
    plain = item("Summary above image in one word:", 1)
    assert [prompt.rendered(marked)] == [prompt.rendered(plain)] == entry["rendered"]


def test_unime_v1_llava_on_texts(every_prompt):
    (entry,) = recorded("llava_16", "retrieval", "text")
    found = [
        every_prompt["mistral", "chat"].rendered(
            item(f"{text}\nSummary above sentence in one word:")
        )
        for text in entry["inputs"]
    ]
    assert found == entry["rendered"]


@pytest.mark.parametrize("family, backbone", [("mistral", "llava_next"), ("qwen2_vl", "qwen2_vl")])
def test_vlm2vec_on_mmeb(every_prompt, family, backbone):
    (entry,) = recorded(backbone, "MMEB")
    prompt = every_prompt[family, "raw"]
    missing_images = 0
    for text, image, expected in zip(
        entry["inputs"], entry["has_image"], entry["rendered"], strict=True
    ):
        if not image:  # the originals leave a marker's token in a text without image: we do not
            missing_images += expected.count(prompt.image_token)
            expected = expected.replace(prompt.image_token + "\n", "")
        assert prompt.rendered(item(text, image)) == expected
    assert missing_images == 1


@pytest.mark.parametrize("family, backbone", [("mistral", "llava_next"), ("qwen2_vl", "qwen2_vl")])
def test_vlm2vec_on_mmeb_with_its_orphans(every_prompt, family, backbone):
    """A marker without an image stays an image token, which is then a token like any other."""
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
            found.orphan_images == missing_images == (prompt.image_token in expected and not image)
        )


def test_unime_v2_qwen2_vl_on_captions(every_prompt):
    prompt = every_prompt["qwen2_vl", "raw"]
    (entry,) = recorded("qwen2_vl", "Flickr30K", "image")
    marked = item("<|image_1|> Find an image caption describing the given image.", 1)
    assert [prompt.rendered(marked)] == entry["rendered"]
    (entry,) = recorded("qwen2_vl", "Flickr30K", "text")
    assert [prompt.rendered(item(text)) for text in entry["rendered"]] == entry["rendered"]


@pytest.mark.parametrize(
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


# Chat templates


def test_without_a_template_file_the_tokenizers_is_used(tmp_path, folders):
    folder = write_qwen2_vl(tmp_path)
    (folder / "chat_template.json").unlink()
    expected = opened(folders["qwen2_vl"], "chat")
    assert opened(folder, "chat").frames == expected.frames
    settings_file = folder / "tokenizer_config.json"
    settings_of = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps({**settings_of, "chat_template": None}))
    with pytest.raises(ValueError, match="has no chat template"):
        opened(folder, "chat")
    assert opened(folder, "raw").frames == ()  # which has no need of one


@pytest.mark.parametrize(
    "template, message",
    [
        (QWEN2_TEMPLATE, "list of image and text parts"),
        (HUB_TEMPLATE.replace("part['text']", "(part['text'] | upper)"), "list of image and text"),
        (HUB_TEMPLATE.replace("part['text']", "(part['text'] | trim | e)"), "changes the text"),
        (HUB_TEMPLATE.replace("'<image>'", "'<image><image>'"), "for 1 images .* '<image>' 2 time"),
        (HUB_TEMPLATE + "<image>", "for 0 images .* '<image>' 1 time"),
    ],
)
def test_a_template_that_is_no_frame_is_an_error(tmp_path, template, message):
    folder = write_folder(tmp_path, template=template)
    with pytest.raises(ValueError, match=message):
        opened(folder, "chat")


def test_an_image_token_that_is_a_word_is_an_error(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders["onevision"])
    with pytest.raises(ValueError, match=r"image token of config.json is 3.*not an added"):
        open_prompt(
            folders["onevision"],
            tokenizer,
            image_token_id=3,
            vocab_size=448,
            style="raw",
            max_length=9,
        )


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.integers(0, 3), st.sampled_from(["onevision", "mistral"]))
def test_the_frame_is_what_the_template_renders(folders, text, images, family):
    template = {"onevision": HUB_TEMPLATE, "mistral": MISTRAL_TEMPLATE}[family]
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    prefix, suffix = chat_frames.frame(tokenizer, template, images=images)
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered == prefix + text + suffix


def test_a_template_for_one_image_only(tmp_path, every_prompt):
    one = HUB_TEMPLATE.replace("{{ '<image>' }}", "{% if loop.first %}{{ '<image>' }}{% endif %}")
    prompt = opened(write_folder(tmp_path, template=one), "chat")
    prompt(item("x", 1), [4])
    with pytest.raises(ValueError, match=r"item 'x'.* has 2 images; .* has places for 1$"):
        prompt(item("x", 2), [4, 4])
    for family in ("onevision", "mistral", "vicuna", "qwen2_vl"):
        several = every_prompt[family, "chat"]
        assert several(item("x", 3), [4, 4, 4]).ids.count(several.image_token_id) == 3


@pytest.mark.parametrize("written", [True, False])
def test_the_bos_comes_once(tmp_path, written):
    """Whether the chat template writes it or the tokenizer adds it."""
    folder = write_llava_next(tmp_path, decoder="mistral")
    template = "{{ bos_token }}" * written + MISTRAL_TEMPLATE
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    ids = opened(folder, "chat")(item("a b"), []).ids
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert ids == tokenizer("[INST] a b [/INST]")["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert opened(folder, "raw")(item("a b"), []).ids == tokenizer("a b")["input_ids"]


# Images and their markers


def test_markers_without_an_image_are_left_out_and_counted(every_prompt):
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
        assert found.orphan_images == count
    assert plain.orphan_images == prompt(item("<|image_1|>\nx", 1), [4]).orphan_images == 0
    assert prompt(item("<|image_1|>\n<image>\nx", 1), [4]).orphan_images == 1
    assert prompt(item("no marker", 1), [4]).orphan_images == 0


@pytest.mark.parametrize(
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
@pytest.mark.parametrize("family", ["mistral", "qwen2_vl"])
def test_raw_images_stand_where_their_markers_are(
    every_prompt, family, text, images, expected, missing_images
):
    prompt = every_prompt[family, "raw"]
    text, expected = (x.replace("@", prompt.image_token) for x in (text, expected))
    assert prompt.rendered(item(text, images)) == expected
    if expected:
        assert prompt(item(text, images), [1] * images).orphan_images == missing_images


def test_an_empty_raw_prompt_is_an_error(every_prompt):
    prompt = every_prompt["qwen2_vl", "raw"]
    for text in ("", "<|image_1|>\n"):
        with pytest.raises(ValueError, match="no text and no image, so no token to pool"):
            prompt(item(text), [])
    assert prompt(item("", 1), [4]).ids


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
    assert found.orphan_images >= max(0, markers - images)
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
    assert found.orphan_images >= kept
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
        assert prompt(item("".join(pieces), images), [1] * images).orphan_images == max(0, -left)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([f for f, _ in PROMPTS]), st.text(max_size=30), st.integers(0, 1))
def test_chat_texts_are_stripped(every_prompt, family, text, images):
    prompt = every_prompt[family, "chat"]
    prefix, suffix = prompt.frames[images]
    if "<image>" not in text and "<|image_" not in text:
        assert prompt.rendered(item(text, images)) == prefix + text.strip() + suffix


# Truncation


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(PROMPTS),
    st.text(st.sampled_from("a bz\n\u4e2d\U0001f600e\u0301<"), max_size=80),
    st.lists(st.sampled_from(("", "<|image_1|>")), max_size=3),
    st.integers(1, 90),
)
def test_only_text_is_shortened(every_prompt, key, text, markers, limit):
    whole_prompt = every_prompt[key]
    text = "x " + text.join(["", *markers]) + text
    images = len(markers)
    counts = [7, 1, 3][:images]
    whole = whole_prompt(item(text, images), counts)
    length = len(whole_prompt.expand(whole.ids, counts)[0])

    def shortened(most):
        return dataclasses.replace(whole_prompt, max_length=most)(item(text, images), counts)

    try:
        short = shortened(limit)
    except ValueError as error:
        needed = int(re.search(r"last token are (\d+) tokens", str(error))[1])
        assert limit < needed
        bare = whole_prompt(item("x", images), counts)
        # Template and text may meet in a token at either end; a character may be four.
        assert needed <= len(whole_prompt.expand(bare.ids, counts)[0]) + 8
        limit, short = needed, shortened(needed)
    tokens, is_image = whole_prompt.expand(short.ids, counts)
    assert len(tokens) == min(limit, length)
    assert short.truncated == length - len(tokens)
    assert is_image.sum() == sum(counts)
    assert short.ids[-1] == whole.ids[-1]  # which is pooled
    # What is left are the template and the images, and of the text its beginning.
    place = {"chat": images, "verbatim": 0}
    prefix, suffix = whole_prompt.frames[place[key[1]]] if key[1] in place else ("", "")
    # Llama's tokenizer puts a space in front itself.
    end = len(whole_prompt.tokenizer.encode(suffix.strip(" "), add_special_tokens=False).ids) or 1
    assert short.ids[-end:] == whole.ids[-end:]

    def words(ids):
        return [i for i in ids[:-end] if i != whole_prompt.image_token_id]

    kept = words(short.ids)
    assert kept == words(whole.ids)[: len(kept)]
    begin = max(0, len(whole_prompt.tokenizer.encode(prefix).ids) - 1)
    assert short.ids[:begin] == whole.ids[:begin]


@pytest.mark.parametrize("key", PROMPTS)
def test_a_prompt_that_cannot_be_short_enough_is_an_error(every_prompt, key):
    prompt = every_prompt[key]
    message = (
        r"item 'x y z' with image '0.png': its image tokens, prompt template and last token are"
        r" (\d+) tokens, and max_length is 100; raise it, or process images at a lower resolution"
    )
    with pytest.raises(ValueError, match=message) as found:
        dataclasses.replace(prompt, max_length=100)(item("x y z", 1), [100])
    needed = int(re.search(message, str(found.value))[1])
    enough = dataclasses.replace(prompt, max_length=needed)(item("x y z", 1), [100])
    assert len(enough.ids) + 99 == needed
    if key[1] != "raw":
        message = r"its prompt template and last token are \d+ tokens.* is 3; raise it$"
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(prompt, max_length=3)(item("a b"), [])


def test_raw_text_after_the_image_is_cut_first(every_prompt):
    prompt = dataclasses.replace(every_prompt["qwen2_vl", "raw"], max_length=9)
    found = prompt(item("a b <|image_1|> c d e", 1), [4])
    text = prompt.tokenizer.decode(found.ids, skip_special_tokens=False)
    assert text == "a b <|image_pad|>e"
    assert found.truncated == 5


def test_limits_of_the_tokenizers_own_are_lifted(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders["mistral"])
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=500)
    image = tokenizer.convert_tokens_to_ids("<image>")
    prompt = open_prompt(
        folders["mistral"],
        tokenizer,
        image_token_id=image,
        vocab_size=448,
        style="raw",
        max_length=99,
    )
    text = "a red circle left of a blue square"
    expected = AutoTokenizer.from_pretrained(folders["mistral"])(text)["input_ids"]
    assert prompt(item(text), []).ids == expected


def test_it_survives_pickling(every_prompt):
    for prompt in every_prompt.values():
        copy = pickle.loads(pickle.dumps(prompt))
        assert copy(item("<|image_1|>\nx", 1), [4]) == prompt(item("<|image_1|>\nx", 1), [4])
