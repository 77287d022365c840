"""Decoded images of an item, in the size that a run fixes."""

from PIL import Image

from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import Item
from unime_jax.data.images import ImageError, decode, to_rgb

__all__ = ["open_pictures", "to_rgb"]


def open_pictures(item: Item, size: tuple[int, int] | None) -> list[Image.Image]:
    """All images of an item in RGB, each first resized to `size` (height, width) if given.

    The aspect is not kept and the filter is Pillow's bicubic: the fixed resolutions of VLM2Vec and
    UniME, whose images only then go to the processor.

    Raises:
      ValueError: an image is missing.
      ImageError: it cannot be decoded; a ValueError, too.
    """
    images = []
    for path, data in item.pictures:
        if not data:
            raise ValueError(f"{name_of(item)}: the image file {path!r} is missing")
        try:
            image = decode(data)
        except ImageError as error:
            raise ImageError(
                f"{name_of(item)}: the image {path!r} cannot be read: {error}"
            ) from error
        images.append(image.resize((size[1], size[0])) if size else image)
    return images
