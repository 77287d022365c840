"""Chat templates as frames: what they write around a text, and templates that are none."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.backbones.tiny_families import MISTRAL_TEMPLATE, write_llava_next
from tests.backbones.tiny_folders import HUB_TEMPLATE, QWEN2_TEMPLATE, write_folder
from tests.backbones.tiny_prompts import item, opened
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.tables import for_each
from unime_jax.backbones.preprocessing import chat_frames
from unime_jax.backbones.preprocessing.open_prompts import open_prompt


def test_without_a_template_file_the_tokenizers_is_used(tmp_path, prompt_folders):
    folder = write_qwen2_vl(tmp_path)
    (folder / "chat_template.json").unlink()
    expected = opened(prompt_folders["qwen2_vl"], "chat")
    assert opened(folder, "chat").frames == expected.frames
    settings_file = folder / "tokenizer_config.json"
    settings_of = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps({**settings_of, "chat_template": None}))
    with pytest.raises(ValueError, match="has no chat template"):
        opened(folder, "chat")
    assert opened(folder, "raw").frames == ()  # which has no need of one


@for_each(
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


def test_an_image_token_that_is_a_word_is_an_error(prompt_folders):
    tokenizer = AutoTokenizer.from_pretrained(prompt_folders["onevision"])
    with pytest.raises(ValueError, match=r"image token of config.json is 3.*not an added"):
        open_prompt(
            prompt_folders["onevision"],
            tokenizer,
            image_token_id=3,
            vocab_size=448,
            style="raw",
            max_length=9,
        )


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.integers(0, 3), st.sampled_from(["onevision", "mistral"]))
def test_the_frame_is_what_the_template_renders(prompt_folders, text, images, family):
    template = {"onevision": HUB_TEMPLATE, "mistral": MISTRAL_TEMPLATE}[family]
    tokenizer = AutoTokenizer.from_pretrained(prompt_folders[family])
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
        assert several(item("x", 8), [1] * 8).ids.count(several.image_token_id) == 8
        with pytest.raises(ValueError, match=r" has 9 images; .* has places for 8$"):
            several(item("x", 9), [1] * 9)


@for_each("written", [True, False])
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
