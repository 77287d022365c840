"""Encoded images to RGB, as transformers' processors read them."""

import io

import numpy as np
from PIL import Image

from unime_jax.backbones.prompts import name_of
from unime_jax.batch import Item


def open_pictures(item: Item, size: tuple[int, int] | None) -> list[Image.Image]:
    """All images of an item in RGB, each first resized to `size` (height, width) if given.

    The aspect is not kept and the filter is Pillow's bicubic: the fixed resolutions of VLM2Vec and
    UniME, whose images only then go to the processor.

    Raises:
      ValueError: an image is missing or cannot be read.
    """
    images = []
    for path, data in item.pictures:
        if not data:
            raise ValueError(f"{name_of(item)}: the image file {path!r} is missing")
        try:
            with Image.open(io.BytesIO(data)) as file:
                image = to_rgb(file)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{name_of(item)}: the image {path!r} cannot be read: {error}"
            ) from error
        images.append(image.resize((size[1], size[0])) if size else image)
    return images


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as transformers' processor makes it: transparency is laid on white, EXIF is ignored.

    But of grey values with 16 bits the upper eight are taken, as Pillow does with colours. What it
    does with greys is to cut them off at 255, which leaves all but the darkest picture white.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
