"""Chat messages as items: the item that they stand for, and what has no meaning for an embedder."""

import pytest

from tests.tables import for_each
from unime_jax.data.chat_messages import Instructed, conversation, is_conversation

URL = "https://a.org/b.png"


def user(*parts, **more):
    return {"role": "user", "content": list(parts)} | more


def text(value="red"):
    return {"type": "text", "text": value}


def url(value=URL, **more):
    return {"type": "image_url", "image_url": {"url": value} | more}


SYSTEM = {"role": "system", "content": [text("Find "), text("it: ")]}
ITEM = {"text": "a red circle", "image": [URL, b"png", "data:image/png;base64,AA=="]}
PARTS = [
    url(detail="auto"),
    text("a red"),
    {"type": "image", "image": b"png"},
    {"type": "image_url", "image_url": "data:image/png;base64,AA=="},
    text(" circle"),
]
EMPTY = {"role": "assistant", "content": [text("")]}
BAD = {
    "no user": ([SYSTEM], "there is no user message"),
    "assistant": ([user(text()), {"role": "assistant", "content": "yes"}], "answers nothing"),
    "tool": ([{"role": "tool", "content": "1"}, user(text())], r"messages\[0\] .* calls no tools"),
    "role": ([{"role": "me", "content": "a"}], "the role 'me'; it must be"),
    "two": ([user(text()), user(text())], r"messages\[1\] is a second user message"),
    "late": ([user(text()), SYSTEM], "there may be one, the first of all"),
    "picture": ([{"role": "system", "content": [url()]}, user(text())], "only texts are allowed"),
    "tools": ([user(text(), tool_calls=[])], r"messages\[0\] has \['tool_calls'\]"),
    "content": ([{"role": "user", "content": None}], "its content is a NoneType"),
    "part": ([user("red")], r"messages\[0\].content\[0\] is a str; it must be a dict"),
    "audio": ([user(text(), {"type": "audio_url"})], r"content\[1\] has the type 'audio_url'"),
    "keys": ([user({"type": "text"})], "has the keys"),
    "text": ([user(text(3))], "its text is a int"),
    "detail": ([user(url(detail="low"))], "its image_url has a detail"),
    "more": ([user(url(format="png"))], r"its image_url has \['format'\]"),
    "path": ([user(url("/etc/passwd"))], "its URL is '/etc/passwd'; it must be an http"),
    "file": ([user(url("file:///etc/passwd"))], 'Of a file here, write {"type": "image"'),
    "none": ([user(url(None))], "its URL is a NoneType"),
}


@for_each("name", BAD)
def test_messages_are_one_item_and_what_means_nothing_is_an_error(name):
    messages, message = BAD[name]
    assert is_conversation(messages)
    with pytest.raises((TypeError, ValueError), match=message):
        conversation(messages)

    assert conversation([SYSTEM, user(*PARTS)]) == Instructed("Find it: ", ITEM)
    assert conversation([SYSTEM, user(*PARTS), EMPTY])[1] == ITEM
    developer = {"role": "developer", "content": "Find "}
    plain = {"role": "user", "content": "red"}
    assert conversation([developer, plain]) == ("Find ", {"text": "red", "image": []})
    assert conversation((plain,))[0] is None
    for other in ([], [{"text": "a"}], ["a", plain], plain, "user", [[plain]]):
        assert not is_conversation(other)
