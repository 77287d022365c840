"""Chat messages, as OpenAI's and vLLM's APIs have them, as an item of an embedder.

    [{"role": "system", "content": "Find the same scene: "},
     {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://..."}},
                                  {"type": "text", "text": "by night"}]}]

Videos are such parts, too: {"type": "video", "video": ...} as `Embedder` takes them, or
{"type": "video_url", "video_url": {"url": ...}}. Images and videos keep their order.

The system message is the instruction: it goes directly before the text, where `prompt` goes, and
takes the place of one. Texts of several parts are joined as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from unime_jax.data import image_urls
from unime_jax.data.user_media import UserClip

# {"role": "system" or "user", "content": a text, or a list of parts}.
Message: TypeAlias = Mapping[str, Any]

_INSTRUCTING = ("system", "developer")
_WITHOUT_MEANING = {
    "assistant": "an embedder answers nothing; leave turns of the assistant out",
    "tool": "an embedder calls no tools; leave their turns out",
    "function": "an embedder calls no functions; leave their turns out",
}
_KEYS = {  # of a part, by its type
    "text": {"text"},
    "image": {"image"},
    "image_url": {"image_url"},
    "video": {"video"},
    "video_url": {"video_url"},
}


class Instructed(NamedTuple):
    """An item, and the instruction that it brings along.

    Attributes:
      instruction: text of the system message; None: there is none.
      user_input: the item without it; of messages, "text" and "image" of the user's, with videos
        among the images.
    """

    instruction: str | None
    user_input: Any


def is_conversation(given: object) -> TypeGuard[Sequence[Message]]:
    """Whether these are messages, and not items: every one of them has a role."""
    return (
        isinstance(given, list | tuple)
        and bool(given)
        and all(isinstance(message, Mapping) and "role" in message for message in given)
    )


def conversation(messages: Sequence[Message]) -> Instructed:
    """The item that messages stand for; parts are checked, but for texts and media themselves.

    An empty last turn of the assistant, by which chat APIs ask for its header, is left out.

    Raises:
      TypeError, ValueError: a message or part has no meaning for an embedder, or another form.
    """
    turns = list(messages)
    if len(turns) > 1 and turns[-1]["role"] == "assistant" and _is_empty(turns[-1]):
        turns.pop()
    instruction, user = None, None
    for number, message in enumerate(turns):
        where = f"messages[{number}]"
        role = message["role"]
        if role in _WITHOUT_MEANING:
            raise ValueError(f"{where} has the role {role!r}: {_WITHOUT_MEANING[role]}")
        if role not in (*_INSTRUCTING, "user"):
            raise ValueError(f'{where} has the role {role!r}; it must be "system" or "user"')
        if unknown := sorted(set(message) - {"role", "content"}):
            raise ValueError(f"{where} has {unknown}; a message has a role and a content")
        text, media = _content(where, message.get("content"))
        if role == "user":
            if user is not None:
                raise ValueError(f"{where} is a second user message; an item is one of them")
            user = {"text": text, "image": media}
            continue
        if instruction is not None or user is not None:
            raise ValueError(f"{where} is a system message; there may be one, the first of all")
        if media:
            kind = "a video" if isinstance(media[0], UserClip) else "an image"
            raise ValueError(f"{where} is a system message with {kind}; only texts are allowed")
        instruction = text
    if user is None:
        raise ValueError("there is no user message, so nothing to embed")
    return Instructed(instruction, user)


def _is_empty(message: Message) -> bool:
    content = message.get("content")
    if isinstance(content, list | tuple):
        return all(isinstance(part, Mapping) and part.get("text") == "" for part in content)
    return not content


def _content(where: str, content: Any) -> tuple[str, list[Any]]:
    """Text, and images and videos in their order, of a message's content."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list | tuple):
        raise TypeError(
            f"{where}: its content is a {type(content).__name__}; it must be a str or a list of"
            " parts"
        )
    texts, media = [], list[Any]()
    for number, part in enumerate(content):
        place = f"{where}.content[{number}]"
        if not isinstance(part, Mapping):
            raise TypeError(f"{place} is a {type(part).__name__}; it must be a dict with a type")
        kind = part.get("type")
        if kind not in _KEYS:
            raise ValueError(
                f"{place} has the type {kind!r}; an embedder takes {', '.join(map(repr, _KEYS))}"
            )
        if set(part) != _KEYS[kind] | {"type"}:
            raise ValueError(
                f'{place} has the keys {sorted(part)}; they must be "type" and {kind!r}'
            )
        if kind != "text":
            given = _url(place, kind, part[kind]) if kind.endswith("_url") else part[kind]
            media.append(UserClip(given) if kind.startswith("video") else given)
            continue
        if not isinstance(part["text"], str):
            raise TypeError(f"{place}: its text is a {type(part['text']).__name__}, no str")
        texts.append(part["text"])
    return "".join(texts), media


def _url(place: str, kind: str, given: Any) -> str:
    """The URL of a part, which never is a path: what users hand in names no file here."""
    what = kind.removesuffix("_url")
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - {"url", "detail"})
        if unknown or given.get("detail", "auto") != "auto":
            raise ValueError(
                f"{place}: its {kind} has {unknown or 'a detail'}; {what}s are taken as the"
                ' model was trained, so leave out all but "url"'
            )
        given = given.get("url")
    if not isinstance(given, str) or not (
        image_urls.is_url(given) or image_urls.is_data_url(given)
    ):
        said = repr(given[:100]) if isinstance(given, str) else f"a {type(given).__name__}"
        raise ValueError(
            f"{place}: its URL is {said}; it must be an http, https or data URL. Of a file here,"
            f' write {{"type": "{what}", "{what}": path}}'
        )
    return given
