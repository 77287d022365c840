"""Texts that strangers wrote: bounded, and shown as nothing but text."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tables import for_each
from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import Item, Media
from unime_jax.data.items import Lines
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import to_example
from unime_jax.data.strange_texts import (
    MAX_BYTES,
    markdown,
    markdown_block,
    markdown_code,
    shown,
    text_fault,
)
from unime_jax.data.user_inputs import text_and_media
from unime_jax.evaluation.encoding.item_table import ItemTable

HUGE = "größe " * (MAX_BYTES // 8 + 1)
markdown_it = pytest.importorskip("markdown_it")

strange = st.text(
    st.sampled_from("ab1 `*_[]()<>#!|~&$\\{}%:;-=+.\n\r\t\"'/") | st.characters(codec=None)
)


def test_absurd_texts_are_refused_everywhere():
    # Absurd texts are refused everywhere.
    message = f"text of {len(HUGE.encode())} bytes, the limit is {MAX_BYTES}"
    assert text_fault(HUGE) == message and text_fault(HUGE[: MAX_BYTES // 2]) == ""
    assert text_fault("a" * MAX_BYTES) == "" != text_fault("a" * (MAX_BYTES + 1))
    assert f"text of {2 * MAX_BYTES} characters" in text_fault("a" * 2 * MAX_BYTES)
    for item in (HUGE, {"text": HUGE}, {"text": HUGE, "image": b"..."}):
        with pytest.raises(ValueError, match=f"{message}; embed its parts"):
            text_and_media(item)
    for row in ({"qry": HUGE, "pos_text": "a"}, {"qry": "a", "pos_text": HUGE.encode()}):
        with pytest.raises(BadExample, match=message):
            to_example("s", row)
    with pytest.raises(BadExample, match=message):
        Lines("l", [HUGE]).read(0)
    with pytest.raises(ValueError, match=f"^row 7: {message}"):
        ItemTable({}.__getitem__, "row {}".format).add((HUGE, ""), 7)

    # Half characters are refused. Python lets them in from JSON; no tokenizer takes them.
    with pytest.raises(
        BadExample, match="not valid Unicode: surrogates not allowed at character 1"
    ):
        to_example("s", {"qry": "a\ud800", "pos_text": "a"})
    with pytest.raises(ValueError, match="not valid Unicode"):
        text_and_media("a\udfff")


SHOWN = {
    "plain": "plain",
    "größe 左 👩\u200d👧 می\u200cخواهم": "größe 左 👩\u200d👧 می\u200cخواهم",
    "one\r\n\ttwo": "one two",
    "exe\u202egnp.jpg": "exe\\u202egnp.jpg",
    "\u2066a\u2069\u200e\u061c": "\\u2066a\\u2069\\u200e\\u061c",
    "\x1b[2J\x00\x07\x9b": "\\x1b[2J\\x00\\x07\\x9b",
    "\ud800\ufeff\U000e0041": "\\ud800\\ufeff\\U000e0041",
    "line\u2028line\u00a0": "line\\u2028line\u00a0",
}


@for_each("text", SHOWN)
def test_nothing_in_a_shown_text_is_hidden_or_acts(text):
    assert shown(text) == SHOWN[text]


@given(strange)
def test_a_shown_text_is_one_line_that_can_be_written(text):
    made = shown(text)
    assert made.encode() is not None and made.splitlines() in ([made], [])
    assert shown(made) == made
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]", made)


@given(strange, strange)
def test_names_in_messages_are_one_printable_line(text, path):
    assert name_of(Item(text, (Media(path, b"x"),))).isprintable()
    assert str(BadExample(text, path, path, "reason")).isprintable()


def plain(rendered: str) -> str:
    """The text of HTML without its tags."""
    return html.unescape(re.sub("<[^>]*>", "", rendered))


@given(strange)
def test_markdown_and_its_code_and_blocks_show_a_text_as_it_is(text):
    reader = markdown_it.MarkdownIt("gfm-like", {"linkify": False})
    rendered = reader.render(f"| a | b |\n|---|---|\n| x | y {markdown(text)} z |\n")
    assert rendered.count("<td>") == 2 and len(set(re.findall(r"</?(\w+)", rendered))) == 6
    cell = plain(re.findall("<td>(.*?)</td>", rendered, re.DOTALL)[1])
    assert cell.split() == f"y {shown(text)} z".split()

    # Markdown code and blocks show a text as it is
    reader = markdown_it.MarkdownIt("commonmark")
    rendered = reader.render(f"x {markdown_code(text)} y")
    if shown(text).strip():
        (code,) = re.findall("<code>(.*?)</code>", rendered, re.DOTALL)
        assert html.unescape(code).split() == shown(text).split()
    rendered = reader.render(f"{markdown_block(text)}\n\nafter")
    (block, rest) = re.fullmatch(
        "<pre><code>(.*?)</code></pre>\n(.*)", rendered, re.DOTALL
    ).groups()
    assert html.unescape(block) == "\n".join(map(shown, text.split("\n"))) + "\n"
    assert rest == "<p>after</p>\n"
