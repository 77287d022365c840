"""Clips in prompts: places in chat templates and raw texts, words, order, and truncation."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.backbones.tiny_qwen3 import write_qwen3_vl
from tests.tables import for_each
from unime_jax.backbones.preprocessing.clip_places import ClipTokens
from unime_jax.backbones.preprocessing.open_prompts import open_prompt
from unime_jax.backbones.preprocessing.system_prompt import open_any_prompt
from unime_jax.batch import Item, Media

PLACE = "<|vision_start|><|video_pad|><|vision_end|>"
WORDS = "".join(f"<{t}.0 seconds>{PLACE}" for t in range(2))


def item(text, kinds, **more):
    """An item with media of kinds "i" and "c"."""
    kind = {"i": "image", "c": "clip"}
    media = tuple(Media(f"{n}.{k}", b"bytes", kind[k]) for n, k in enumerate(kinds))
    return Item(text, media, **more)


def opened(folder, style, make=open_prompt, **more):
    config = json.loads((folder / "config.json").read_text())
    return make(
        folder,
        AutoTokenizer.from_pretrained(folder),
        image_token_id=config.get("image_token_id") or config["image_token_index"],
        clip_token_id=config.get("video_token_id") or config["video_token_index"],
        vocab_size=448,
        style=style,
        max_length=more.pop("max_length", 1000),
        missing_images="strip",
        **more,
    )


@pytest.fixture(scope="module")
def folders(prompt_folders, tmp_path_factory):
    return prompt_folders | {"qwen3_vl": write_qwen3_vl(tmp_path_factory.mktemp("qwen3_vl"))}


@for_each("family", ["onevision", "qwen2_vl", "qwen3_vl"])
@for_each("kinds", ["c", "cc", "ic", "ci", "icic", "i"])
def test_a_turn_is_what_the_template_writes(folders, family, kinds):
    folder = folders[family]
    prompt = opened(folder, "chat")
    given = item("What moves?", kinds)
    content = [{"type": {"i": "image", "c": "video"}[kinds[n]]} for n in prompt.order(given)]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": [*content, {"type": "text", "text": "What moves?"}]}],
        chat_template=json.loads((folder / "chat_template.json").read_text())["chat_template"],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert prompt.rendered(given) == expected
    first = "i" if family == "onevision" else "c"
    assert [kinds[n] for n in prompt.order(given)] == sorted(kinds, key=lambda k: k != first)


def test_tokens_of_places_repeat_in_the_order_of_the_prompt_after_the_instruction(folders):
    prompt = opened(folders["onevision"], "chat")
    found = prompt(item("x", "ci"), [ClipTokens("<video>", (5,)), 3])
    assert found.counts == (3, 5)
    tokens, is_image = prompt.expand(found.ids, found.counts)
    video = AutoTokenizer.from_pretrained(folders["onevision"]).convert_tokens_to_ids("<video>")
    assert list(tokens[is_image]) == [prompt.image_token_id] * 3 + [video] * 5

    # The instruction is before the clip in a system turn.
    prompt = opened(folders["qwen3_vl"], "system", open_any_prompt, clip_place=PLACE)
    rendered = prompt.rendered(item("b", "c", prefix="Find it"))
    assert rendered.index("Find it.") < rendered.index(PLACE) < rendered.index("b<|im_end|>")
    assert "NULL" not in prompt.rendered(item("", "c"))


@for_each("style", ["chat", "raw", "verbatim"])
def test_words_take_the_place_of_a_clip_with_what_is_around_it(folders, style):
    prompt = opened(folders["qwen3_vl"], style, clip_place=PLACE)
    tokenizer = AutoTokenizer.from_pretrained(folders["qwen3_vl"])
    clips = [ClipTokens(WORDS, (2, 3)), 4, ClipTokens(PLACE, (1,))]
    given = item("a <|image_1|> b <|video_9|><|image_3|>", "cic")
    ids = prompt(given, clips).ids
    order = [0, 2, 1] if style == "chat" else [0, 1, 2]
    assert prompt.order(given) == order
    text = tokenizer.decode(ids)
    one = "<|image_pad|>"
    if style == "chat":
        expected = f"<|im_start|>user\n{WORDS}{PLACE}<|vision_start|>{one}<|vision_end|>a b"
    else:
        expected = f"a {WORDS} b {one}{PLACE}"
    assert expected.replace(" ", "") in text.replace(" ", "")
    tokens, is_image = prompt.expand(ids, prompt(given, clips).counts)
    assert is_image.sum() == 2 + 3 + 4 + 1


@given(words=st.integers(0, 30), room=st.integers(0, 12), style=st.sampled_from(["chat", "raw"]))
def test_words_of_a_clip_are_never_cut(folders, words, room, style):
    prompt = opened(folders["qwen3_vl"], style, clip_place=PLACE)
    text = "<|video_1|><|video_2|>" + " a" * words
    tokens = [ClipTokens(WORDS, (2, 3))] * 2
    least = len(prompt(item("<|video_1|><|video_2|> a", "cc"), tokens).ids) + 6
    short = dataclasses.replace(prompt, max_length=least + room)
    found = short(item(text, "cc"), tokens)
    ids, is_image = short.expand(found.ids, found.counts)
    assert len(ids) <= least + room
    kept = prompt.tokenizer.decode(list(map(int, found.ids)), skip_special_tokens=False)
    assert kept.replace(" ", "").count(WORDS.replace(" ", "")) == 2
    assert is_image.sum() == 10
    narrow = dataclasses.replace(prompt, max_length=least - 2)
    with pytest.raises(ValueError, match="its clip tokens, prompt template and last token are"):
        narrow(item(text, "cc"), tokens)


def test_templates_without_clips_and_clips_as_images(folders):
    folder = folders["mistral"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image = json.loads((folder / "config.json").read_text())["image_token_index"]
    same = dict(image_token_id=image, clip_token_id=image, vocab_size=448, max_length=99)
    chat = open_prompt(folder, tokenizer, style="chat", **same)
    with pytest.raises(ValueError, match=r"item 'x' with clip '0.c'.*no places for clips; take"):
        chat(item("x", "c"), [ClipTokens("<image>", (3,))])
    verbatim = open_prompt(folder, tokenizer, style="verbatim", **same)
    found = verbatim(item("Represent it.", "c"), [ClipTokens("<image>", (3,))])
    assert "<image>\nRepresent it." in verbatim.rendered(item("Represent it.", "c"))
    assert found.counts == (3,) and found.ids.count(image) == 1
