"""Decoded images of an item, in the size that a run fixes."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from PIL import Image

from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import Item
from unime_jax.data.images import ImageError, decode, to_rgb
from unime_jax.data.quarantine import MediaError, place_of

__all__ = ["decode_images", "for_each_image", "to_rgb"]

T = TypeVar("T")

NO_CLIPS = (  # of families that take none
    "this model reads images and texts; LLaVA-OneVision, LLaVE, Qwen2-VL, Qwen2.5-VL and Qwen3-VL"
    " take clips, too"
)
CAP = 1344  # pixels; VLM2Vec's longest side
# (height, width) of all images; "capped": of those with a side longer than `CAP`, which become
# squares of that side; None: they keep theirs.
FixedSize = tuple[int, int] | Literal["capped"] | None


def decode_images(item: Item, size: FixedSize) -> list[Image.Image]:
    """All images of an item in RGB, each first resized to `size` if that asks for it.

    The aspect is not kept and the filter is Pillow's bicubic: the fixed resolutions of VLM2Vec and
    UniME, whose images only then go to the processor.

    Raises:
      MediaError: an image is missing, or is a clip, or cannot be decoded: then an ImageError is its
        cause. The message names the item and the image.
    """
    for number, media in enumerate(item.media):
        if media.kind != "image":
            raise refusal(item, number, f"{media.path!r} is a {media.kind}; {NO_CLIPS}")
    return [decode_image(item, number, size) for number in range(len(item.media))]


def decode_image(item: Item, number: int, size: FixedSize) -> Image.Image:
    """One of an item's media, an image, as of `decode_images`."""
    media = item.media[number]
    if not media.data:
        raise refusal(item, number, f"the image file {media.path!r} is missing")
    try:
        image = decode(media.data)
    except ImageError as error:
        reason = f"the image {media.path!r} cannot be read: {error}"
        raise refusal(item, number, reason) from error
    return _resized(image, size)


def _resized(image: Image.Image, size: FixedSize) -> Image.Image:
    if size == "capped":
        size = (CAP, CAP) if max(image.size) > CAP else None
    return image.resize((size[1], size[0])) if size else image


def for_each_image(
    item: Item, images: Sequence[Image.Image], function: Callable[[Image.Image], T]
) -> list[T]:
    """A function's results for an item's decoded images.

    Raises:
      MediaError: the function raises ValueError. The message names the item and the image.
    """
    results = []
    for number, image in enumerate(images):
        try:
            results.append(function(image))
        except ValueError as error:
            raise refusal(item, number, str(error)) from error
    return results


def refusal(item: Item, number: int, reason: str) -> MediaError:
    """The error of one of an item's media; its message names the item and the medium."""
    place = place_of(item, number)
    which = f", {place}" if len(item.media) > 1 else ""
    return MediaError(f"{name_of(item)}{which}: {reason}", item.media[number].path, place)
