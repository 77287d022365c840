"""Lists of user inputs, as a call of `Embedder` takes them: checked, and joined after encoding."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, TypeVar, cast

import numpy as np
from absl import logging
from jaxtyping import Float32
from PIL import Image

from unime_jax.data.chat_messages import Instructed, Message, conversation, is_conversation
from unime_jax.data.image_urls import ImageUrls
from unime_jax.data.user_inputs import UserInput, names_media, text_and_media

T = TypeVar("T")
# What a call embeds as one: an item, or the messages of a conversation.
Embeddable: TypeAlias = UserInput | Sequence[Message]


def is_single(items: Embeddable | Iterable[Embeddable]) -> bool:
    """Whether these are one item, and not several; messages, each with a role, are one."""
    return isinstance(items, str | Mapping | Image.Image) or is_conversation(items)


def instructed(item: Embeddable) -> Instructed:
    """An item and the instruction of its messages; a plain item brings none.

    Raises:
      TypeError, ValueError: see `conversation`.
    """
    return conversation(item) if is_conversation(item) else Instructed(None, item)


def listed(
    items: Embeddable | Iterable[Embeddable],
    *,
    embeds_images: bool,
    urls: ImageUrls | None = None,
) -> list[Instructed]:
    """The items of a call, or its single item, checked, but for the files of media.

    Args:
      embeds_images: by the model; then a text that names an image or a video gets a warning.
      urls: limits under which images and clips are fetched; None: none is.

    Raises:
      TypeError, ValueError: an item is not as `UserInput`, nor messages; the message names it.
    """
    if isinstance(items, bytes):
        raise TypeError('items is a single bytes; write {"image": ...} for the content of a file')
    several = [cast(Embeddable, items)] if is_single(items) else cast(Iterable[Embeddable], items)
    pairs = []
    for index, item in enumerate(several):  # a wrong type shows now, not after hours of encoding
        pairs.append(naming(index, functools.partial(instructed, item)))
        naming(index, functools.partial(text_and_media, pairs[-1].user_input, urls))
    plain = [pair.user_input for pair in pairs]
    names = [index for index, item in enumerate(plain) if embeds_images and names_media(item)]
    if names:
        logging.warning(
            "%d of %d items are texts that name an image or a video, the first is items[%d], %r:"
            ' its name is embedded. Write {"image": name} or {"video": name} for what it shows, in'
            ' sentence-transformers, too (which opens such a str), or {"text": name} for the text',
            len(names),
            len(plain),
            names[0],
            str(plain[names[0]])[:200],
        )
    return pairs


def naming(index: int, call: Callable[[], T]) -> T:
    """`call()`, whose errors name the item by its index."""
    try:
        return call()
    except TypeError as error:
        raise TypeError(f"items[{index}]: {error}") from error
    except ValueError as error:
        raise ValueError(f"items[{index}]: {error}") from error


def sum_of_parts(
    vectors: Float32[np.ndarray, "parts D"], numbers: Sequence[int], count: int
) -> Float32[np.ndarray, "count D"]:
    """Sums of the parts' embeddings by the items' numbers; of several parts, scaled to length 1."""
    sums = np.zeros((count, vectors.shape[1]), np.float32)
    items = np.array(numbers, int)
    np.add.at(sums, items, vectors)
    several = np.bincount(items, minlength=count) > 1
    length = np.linalg.norm(sums[several], axis=1, keepdims=True)
    sums[several] /= np.maximum(length, 1e-12)
    return sums
