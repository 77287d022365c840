"""Truncation of prompts: text loses its end, and nothing else is cut."""

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.backbones.tiny_prompts import PROMPTS, item
from tests.tables import for_each
from unime_jax.backbones.preprocessing.open_prompts import open_prompt


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


@for_each("key", PROMPTS)
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


def test_limits_of_the_tokenizers_own_are_lifted(prompt_folders):
    tokenizer = AutoTokenizer.from_pretrained(prompt_folders["mistral"])
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=500)
    image = tokenizer.convert_tokens_to_ids("<image>")
    prompt = open_prompt(
        prompt_folders["mistral"],
        tokenizer,
        image_token_id=image,
        vocab_size=448,
        style="raw",
        max_length=99,
    )
    text = "a red circle left of a blue square"
    expected = AutoTokenizer.from_pretrained(prompt_folders["mistral"])(text)["input_ids"]
    assert prompt(item(text), []).ids == expected
