"""Encoded images of noise, and items of them."""

import io

import numpy as np
from PIL import Image

from unime_jax.batch import Item, Media


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image whose every byte is drawn at random."""
    bands = Image.new(mode, (1, 1)).getbands()
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, len(bands)), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if len(bands) == 1 else pixels, mode)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(width: int, height: int, seed: int = 0) -> Media:
    """An encoded image, named after its seed."""
    return Media(f"{seed}.png", encoded(noise(width, height, seed=seed)))


def item(text: str, *images: Media) -> Item:
    """An item with images."""
    return Item(text, images)
