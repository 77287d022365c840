"""vLLM's chat form of an embedding request: a user's message of texts and images as one item."""

from collections.abc import Callable
from typing import Any

from unime_jax.data.image_markers import without_markers
from unime_jax.data.user_inputs import UserInput
from unime_jax.serve.errors import RequestError
from unime_jax.serve.settings import Limits


def item_of(messages: Any, limits: Limits, read_image: Callable[[str, str], bytes]) -> UserInput:
    """The item of a chat of a single user message.

    Texts are joined by line ends. Images that stand after a text are marked in their place, unless
    the text has markers of its own; the others go where the model's prompt has them.

    Raises:
      RequestError: it is no such chat, or an image cannot be read.
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
        if not isinstance(message, dict):
            raise RequestError(f"{where} is no object of role and content", param=where)
        if message.get("role") != "user":
            raise RequestError(
                f"{where}.role is {str(message.get('role'))[:40]!r}; the model's own prompt goes"
                ' around a single message of the role "user". An instruction is written into its'
                " text, or sent as prompt",
                param=f"{where}.role",
            )
    if len(messages) > 1:
        raise RequestError(
            f"messages has {len(messages)} messages; an embedding is of a single one",
            param="messages",
        )
    return _item(messages[0].get("content"), "messages[0].content", limits, read_image)


def _item(
    content: Any, where: str, limits: Limits, read_image: Callable[[str, str], bytes]
) -> UserInput:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise RequestError(
            f"{where} must be a text, or a list of parts that is not empty", param=where
        )
    pieces: list[str] = []  # texts, and markers of images after them
    texts: list[str] = []
    images: list[bytes] = []
    for number, part in enumerate(content):
        at = f"{where}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
            pieces.append(part["text"])
        elif kind == "image_url":
            if len(images) == limits.images:
                raise RequestError(
                    f"{where} has more than {limits.images} images, which is the limit",
                    param=where,
                    code="too_many_images",
                )
            images.append(read_image(_url(part, at), f"{at}.image_url"))
            if texts:
                pieces.append(f"<|image_{len(images)}|>")
        else:
            raise RequestError(
                f'{at} must be {{"type": "text", "text": ...}} or {{"type": "image_url",'
                ' "image_url": {"url": ...}}; audio and video are not embedded',
                param=at,
            )
    _, markers = without_markers("\n".join(texts))
    text = "\n".join(texts if markers else pieces)
    if not images:
        return text
    return {"text": text, "image": images} if texts else {"image": images}


def _url(part: dict[str, Any], where: str) -> str:
    """The URL of a part; vLLM takes it with and without an object around it."""
    value = part.get("image_url")
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str) or not url:
        raise RequestError(f'{where}.image_url must be {{"url": ...}}', param=f"{where}.image_url")
    return url
