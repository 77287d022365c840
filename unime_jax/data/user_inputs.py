"""Items as users of `Embedder` write them: checked, split by modality, and their images read."""

import dataclasses
import io
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from unime_jax.batch import Item, Picture
from unime_jax.data import images
from unime_jax.data.image_markers import without_markers
from unime_jax.data.strange_texts import text_fault

# Of an image: its file, the file's content, or its pixels (an array is uint8 [height, width, 3]).
Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
# A text, an image, or {"text": ..., "image": ...}; either key may be left out.
UserInput: TypeAlias = str | Image.Image | Mapping[str, str | Source | Sequence[Source]]

# What UniME's first stage asks after an image and after a sentence (section 3.2.2).
IMAGE_SUFFIX = "Summary above image in one word:"
TEXT_SUFFIX = "\nSummary above sentence in one word:"

_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tiff", ".webp")
_loading = threading.Lock()  # two threads must not read the file of one lazily opened image


def parts(element: UserInput) -> tuple[str, Sequence[Source]]:
    """Text and images of an element, checked, but for the images' files.

    Raises:
      TypeError, ValueError: it is no item; the message says what is wrong with it.
    """
    if isinstance(element, str):
        _check_text(element)
        return element, ()
    if isinstance(element, Image.Image):
        return "", (element,)
    if not isinstance(element, Mapping):
        raise TypeError(
            f"a {type(element).__name__} is no item; an item is a str, a PIL image, or a dict of"
            ' "text" and "image"'
        )
    unknown = [key for key in element if key not in ("text", "image")]
    if unknown or not element:
        raise ValueError(f'its keys are {list(element)}; they must be "text", "image" or both')
    text, given = element.get("text", ""), element.get("image", ())
    if not isinstance(text, str):
        raise TypeError(f'"text" is a {type(text).__name__}; it must be a str, or be left out')
    _check_text(text)
    several: Sequence[Any] = given if isinstance(given, list | tuple) else (given,)
    if not several and "text" not in element:
        raise ValueError('"image" is an empty list, and there is no "text"')
    for image in several:
        _check(image)
    return text, several


@dataclasses.dataclass(frozen=True)
class Part:
    """One text or mix to embed: a user's item, by its number, or one modality of it."""

    number: int
    element: UserInput
    prompt: str
    suffix: str

    def item(self) -> Item:
        """With its images read, see `to_item`."""
        return to_item(self.element, self.prompt, self.suffix)


def split_modalities(
    number: int, element: UserInput, image_suffix: str, text_suffix: str
) -> list[Part]:
    """An element's images alone, then its text alone, stripped, as far as it has them.

    Beside images, the text loses its markers `<|image_1|>`.
    """
    text, sources = parts(element)
    modalities = []
    if sources:
        modalities.append(Part(number, {"image": sources}, "", image_suffix))
        text, _ = without_markers(text)
    text = text.strip()
    if text or not sources:
        modalities.append(Part(number, text, "", text_suffix))
    return modalities


def names_image(element: UserInput) -> bool:
    """Whether an element is a str that sentence-transformers would open as an image.

    These are files that exist, URLs with an image's ending, and data URIs.
    """
    if not isinstance(element, str):
        return False
    if element.startswith(("http://", "https://")) and " " not in element:
        return element.partition("?")[0].partition("#")[0].lower().endswith(_ENDINGS)
    if element.startswith("data:image/"):
        return True
    return element.lower().endswith(_ENDINGS) and os.path.isfile(element)


def _check_text(text: str) -> None:
    if fault := text_fault(text):
        raise ValueError(f"{fault}; embed its parts, or cut it")


def _check(image: Source) -> None:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"an image is an array of shape {image.shape} and dtype {image.dtype}; it must be"
                " uint8 [height, width, 3]"
            )
    elif not isinstance(image, str | os.PathLike | bytes | Image.Image):
        raise TypeError(
            f"an image is a {type(image).__name__}; it must be a path, bytes, a PIL image or a"
            " NumPy array, or a list of those"
        )
    elif isinstance(image, str | bytes) and not image:
        raise ValueError(f"an image is {image!r}; leave it out where there is none")


def to_item(element: UserInput, prompt: str = "", suffix: str = "") -> Item:
    """An element as an item, its images read.

    Raises:
      TypeError, ValueError: as `parts`, or an image cannot be read.
    """
    text, sources = parts(element)
    pictures = [_read(image) for image in sources]
    path, data = pictures[0] if pictures else Picture("", None)
    return Item(text, path, data, tuple(pictures[1:]), prefix=prompt, suffix=suffix)


def _read(image: Source) -> Picture:
    """An image as the bytes of a file; PNG, which loses nothing, where it came as pixels."""
    if isinstance(image, bytes):
        return Picture("", image)
    try:
        if isinstance(image, str | os.PathLike):
            return Picture(os.fspath(image), images.read(image))
        if isinstance(image, np.ndarray):
            pixels = Image.fromarray(image)
        else:
            images.check_size(*image.size)
            with _loading:
                image.load()
                pixels = images.to_rgb(image)  # which reads EXIF lazily, too
    except Exception as error:  # Pillow raises anything at a damaged file that is read only now
        raise ValueError(f"the image cannot be read: {error}") from error
    file = io.BytesIO()
    pixels.save(file, "PNG", compress_level=1)
    return Picture("", file.getvalue())
