"""vLLM's chat form of an embedding request: messages as one item, with its images read."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from unime_jax.data.chat_messages import Instructed, conversation
from unime_jax.serve.errors import RequestError
from unime_jax.serve.settings import Limits

_PLACE = re.compile(r"messages\[\d+\](\.content\[\d+\])?")


def item_of(messages: Any, limits: Limits, read_image: Callable[[str, str], bytes]) -> Instructed:
    """The item and the instruction of a chat, as `Embedder.encode` has them, but for paths.

    Raises:
      RequestError: it is no chat of an item, or an image cannot be read.
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
    images = 0
    turns = []
    for number, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            where = f"messages[{number}].content"
            parts = [
                _read(part, f"{where}[{place}]", read_image) for place, part in enumerate(content)
            ]
            images += sum("image" in part for part in parts)
            message = message | {"content": parts}
        turns.append(message)
        if images > limits.images:
            raise RequestError(
                f"messages have {images} images, the limit is {limits.images}",
                param="messages",
                code="too_many_images",
            )
    try:
        return conversation(turns)
    except (TypeError, ValueError) as error:
        place = _PLACE.match(str(error))
        raise RequestError(str(error), param=place[0] if place else "messages") from error


def _read(part: Any, where: str, read_image: Callable[[str, str], bytes]) -> Mapping[str, Any]:
    """A part, of which an image's URL has become the content of its file."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "image_url"):
        raise RequestError(
            f'{where} must be {{"type": "text", "text": ...}} or {{"type": "image_url",'
            ' "image_url": {"url": ...}}; no other parts are embedded here',
            param=where,
        )
    if kind == "text":
        return part
    value = part.get("image_url")
    if isinstance(value, str):  # as vLLM takes it, too
        value = {"url": value}
    url = value.get("url") if isinstance(value, dict) else None
    if not isinstance(url, str) or not url:
        raise RequestError(f'{where}.image_url must be {{"url": ...}}', param=f"{where}.image_url")
    if set(value) - {"url", "detail"} or value.get("detail", "auto") != "auto":
        raise RequestError(
            f"{where}.image_url may have a url alone: images are taken as the model was trained",
            param=f"{where}.image_url",
        )
    return {"type": "image", "image": read_image(url, f"{where}.image_url")}
