"""The body of POST /v1/embeddings: OpenAI's fields, vLLM's `messages`, and prompts; checked."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from unime_jax.batch import MediaKind
from unime_jax.data.user_inputs import UserInput
from unime_jax.serve import chat_messages
from unime_jax.serve.errors import RequestError
from unime_jax.serve.settings import Limits

FIELDS = (
    "input", "messages", "model", "encoding_format", "dimensions", "user", "truncate_prompt_tokens",
    "prompt", "prompt_name", "suffix",
)  # fmt: skip
# Fields of vLLM that clients send as a matter of course: accepted where they ask for what is done.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (None,),
    "add_special_tokens": (None, True),
    "embed_dtype": (None, "float32"),
    "endianness": (None, "native", "little"),
    "normalize": (None, True),
    "priority": (None, 0),
    "use_activation": (None, True),
}
UNREAD = ("request_id",)  # changes no embedding


@dataclasses.dataclass(frozen=True)
class EmbeddingRequest:
    """What a request asks for.

    Attributes:
      items: user inputs, none of them a path or a URL.
      fields: where each item stands in the body, as "input[3]".
      prompt, prompt_name, suffix: as of `Embedder.encode`.
      dimensions: numbers of an embedding; None: as the model has it.
      base64: whether embeddings are base64 of little-endian float32, or lists of numbers.
      truncates: whether texts that are too long are cut, and not refused.
    """

    items: list[UserInput]
    fields: list[str]
    prompt: str | None
    prompt_name: str | None
    suffix: str
    dimensions: int | None
    base64: bool
    truncates: bool


def read(
    body: bytes, model: str, limits: Limits, read_media: Callable[[str, str, MediaKind], bytes]
) -> EmbeddingRequest:
    """The request of a body.

    Args:
      model: name of the model that is served.
      read_media: the content of an image or clip, by its URL and the field's name.

    Raises:
      RequestError: it is no such request; the message names the field.
    """
    values = _object(body)
    for key, value in values.items():
        if key in FIXED and not any(value is one or value == one for one in FIXED[key]):
            allowed = json.dumps(FIXED[key][-1])
            raise RequestError(
                f"{key} is {_short(value)}; it must be {allowed} here, or be left out", param=key
            )
        if key not in FIELDS and key not in FIXED and key not in UNREAD:
            raise RequestError(
                f"{key} is no field of this server's requests; they are {', '.join(FIELDS)}",
                param=key,
                code="unknown_field",
            )
    _text(values, "user")
    named = _text(values, "model")
    if named is not None and named != model:
        raise RequestError(
            f"the model {_short(named)} is not here; this server has {json.dumps(model)}",
            status=404,
            param="model",
            code="model_not_found",
        )
    prompt, name = _text(values, "prompt"), _text(values, "prompt_name")
    if prompt is not None and name is not None:
        raise RequestError("prompt and prompt_name are both given; give one", param="prompt_name")
    form = values.get("encoding_format")
    if form not in (None, "float", "base64"):
        raise RequestError(
            f'encoding_format is {_short(form)}; it must be "float" or "base64"',
            param="encoding_format",
        )
    instruction, items, fields = _items(values, limits, read_media)
    if instruction is not None:
        if prompt is not None or name is not None:
            raise RequestError(
                "messages have a system message, which is the prompt; leave out prompt and"
                " prompt_name",
                param="messages[0]",
            )
        prompt = instruction
    return EmbeddingRequest(
        items,
        fields,
        prompt,
        name,
        _text(values, "suffix") or "",
        _dimensions(values),
        form == "base64",
        _truncates(values),
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise RequestError(f"the body is {_kind(values)}; it must be a JSON object")
    return values


def _items(
    values: Mapping[str, Any], limits: Limits, read_media: Callable[[str, str, MediaKind], bytes]
) -> tuple[str | None, list[UserInput], list[str]]:
    """The instruction of a chat, items, and where each one stands."""
    given, messages = values.get("input"), values.get("messages")
    if (given is None) == (messages is None):
        count = "neither of them" if given is None else "both"
        raise RequestError(
            f"a request has input (texts) or messages (a chat, as of vLLM); here is {count}",
            param="input",
        )
    if messages is not None:
        chat = chat_messages.item_of(messages, limits, read_media)
        return chat.instruction, [chat.user_input], ["messages"]
    if isinstance(given, str):
        return None, [given], ["input"]
    if not isinstance(given, list) or not given:
        raise RequestError(
            f"input is {_kind(given)}; it must be a text, or a list of texts that is not empty",
            param="input",
        )
    if len(given) > limits.items:
        raise RequestError(
            f"input has {len(given)} items, the limit is {limits.items}; send several requests",
            param="input",
            code="too_many_items",
        )
    for number, item in enumerate(given):
        if _is_tokens(item):
            raise RequestError(
                "input holds token ids; send texts, as tokens depend on the model's own tokenizer"
                " and prompt",
                param="input" if isinstance(item, int) else f"input[{number}]",
                code="token_ids",
            )
        if not isinstance(item, str):
            raise RequestError(
                f"input[{number}] is {_kind(item)}; it must be a text. Images are sent in messages",
                param=f"input[{number}]",
            )
    return None, list(given), [f"input[{number}]" for number in range(len(given))]


def _is_tokens(item: Any) -> bool:
    def is_id(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    return is_id(item) or (isinstance(item, list) and bool(item) and all(map(is_id, item)))


def _dimensions(values: Mapping[str, Any]) -> int | None:
    value = values.get("dimensions")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise RequestError(
            f"dimensions is {_short(value)}; it must be a whole number from 1 on",
            param="dimensions",
        )
    return value


def _truncates(values: Mapping[str, Any]) -> bool:
    value = values.get("truncate_prompt_tokens")
    if value is None:
        return False
    if value != -1 or isinstance(value, bool | float):
        raise RequestError(
            f"truncate_prompt_tokens is {_short(value)}; it may be -1, to cut texts at the model's"
            " longest length, or be left out, to refuse longer ones",
            param="truncate_prompt_tokens",
        )
    return True


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{key} is {_kind(value)}; it must be a text", param=key)
    return value


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    return f"a text, {_short(value)}" if isinstance(value, str) else _short(value)


def _short(value: Any) -> str:
    """A JSON value, or its beginning, in a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
