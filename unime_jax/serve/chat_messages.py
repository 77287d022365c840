"""vLLM's chat form of an embedding request: messages as one item, with its media read."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from unime_jax.batch import MediaKind
from unime_jax.data.chat_messages import Instructed, conversation
from unime_jax.serve.errors import RequestError
from unime_jax.serve.settings import Limits

_PLACE = re.compile(r"messages\[\d+\](\.content\[\d+\])?")


def item_of(
    messages: Any, limits: Limits, read_media: Callable[[str, str, MediaKind], bytes]
) -> Instructed:
    """The item and the instruction of a chat, as `Embedder.encode` has them, but for paths.

    Raises:
      RequestError: it is no chat of an item, or an image or video cannot be read.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError(
            "messages must be a list of messages that is not empty", param="messages"
        )
    if isinstance(messages[0], list):
        raise RequestError(
            "messages is a list of chats; a request has one, which is one embedding. Send a request"
            " for each: the server makes batches of them itself",
            param="messages",
        )
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"{where} must be an object of role and content", param=where)
    counts = {"image": 0, "video": 0}
    turns = []
    for number, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            where = f"messages[{number}].content"
            parts = [
                _read(part, f"{where}[{place}]", read_media) for place, part in enumerate(content)
            ]
            for kind in counts:
                counts[kind] += sum(kind in part for part in parts)
            message = message | {"content": parts}
        turns.append(message)
        for kind, limit in (("image", limits.images), ("video", limits.videos)):
            if counts[kind] > limit:
                raise RequestError(
                    f"messages have {counts[kind]} {kind}s, the limit is {limit}",
                    param="messages",
                    code=f"too_many_{kind}s",
                )
    try:
        return conversation(turns)
    except (TypeError, ValueError) as error:
        place = _PLACE.match(str(error))
        raise RequestError(str(error), param=place[0] if place else "messages") from error


def _read(
    part: Any, where: str, read_media: Callable[[str, str, MediaKind], bytes]
) -> Mapping[str, Any]:
    """A part, of which an image's or video's URL has become the content of its file."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "image_url", "video_url"):
        raise RequestError(
            f'{where} must be {{"type": "text", "text": ...}}, {{"type": "image_url",'
            ' "image_url": {"url": ...}}, or {"type": "video_url", "video_url": {"url": ...}}; no'
            " other parts are embedded here",
            param=where,
        )
    if kind == "text":
        return part
    what, field = kind.removesuffix("_url"), f"{where}.{kind}"
    value = part.get(kind)
    if isinstance(value, str):  # as vLLM takes it, too
        value = {"url": value}
    url = value.get("url") if isinstance(value, dict) else None
    if not isinstance(url, str) or not url:
        raise RequestError(f'{field} must be {{"url": ...}}', param=field)
    if set(value) - {"url", "detail"} or value.get("detail", "auto") != "auto":
        raise RequestError(
            f"{field} may have a url alone: {what}s are taken as the model was trained",
            param=field,
        )
    return {"type": what, what: read_media(url, field, "image" if what == "image" else "clip")}
