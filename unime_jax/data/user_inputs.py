"""Items as users of `Embedder` write them: checked, split by modality, and their images read."""

import dataclasses
import io
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from unime_jax.batch import Item, Media
from unime_jax.data import image_urls, images
from unime_jax.data.image_markers import without_markers
from unime_jax.data.image_urls import ImageUrls
from unime_jax.data.strange_texts import text_fault

# An image's path, URL, content of its file, or pixels (an array is uint8 [height, width, 3]).
ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
# A text, an image, or {"text": ..., "image": ...}; either key may be left out.
UserInput: TypeAlias = str | Image.Image | Mapping[str, str | ImageSource | Sequence[ImageSource]]

# What UniME's first stage asks after an image and after a sentence (section 3.2.2).
IMAGE_SUFFIX = "Summary above image in one word:"
TEXT_SUFFIX = "\nSummary above sentence in one word:"

_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tiff", ".webp")
_loading = threading.Lock()  # two threads must not read the file of one lazily opened image


def text_and_images(
    user_input: UserInput, urls: ImageUrls | None = None
) -> tuple[str, Sequence[ImageSource]]:
    """Text and images of a user's input, checked, but for the images' files.

    `urls` are the limits under which images are fetched; None: none is.

    Raises:
      TypeError, ValueError: it is no item; the message says what is wrong with it.
    """
    if isinstance(user_input, str):
        _check_text(user_input)
        return user_input, ()
    if isinstance(user_input, Image.Image):
        return "", (user_input,)
    if not isinstance(user_input, Mapping):
        raise TypeError(
            f"a {type(user_input).__name__} is no item; an item is a str, a PIL image, or a dict of"
            ' "text" and "image"'
        )
    unknown = [key for key in user_input if key not in ("text", "image")]
    if unknown or not user_input:
        hint = "; messages are a list, each with a role" if "role" in user_input else ""
        raise ValueError(
            f'its keys are {list(user_input)}; they must be "text", "image" or both{hint}'
        )
    text, given = user_input.get("text", ""), user_input.get("image", ())
    if not isinstance(text, str):
        raise TypeError(f'"text" is a {type(text).__name__}; it must be a str, or be left out')
    _check_text(text)
    sources: Sequence[Any] = given if isinstance(given, list | tuple) else (given,)
    if not sources and "text" not in user_input:
        raise ValueError('"image" is an empty list, and there is no "text"')
    for source in sources:
        _check_image(source, urls)
    return text, sources


@dataclasses.dataclass(frozen=True)
class PromptedInput:
    """A user's input, or its text or images alone, between a prompt and a suffix.

    Attributes:
      number: of the user's input among those of a call.
      urls: limits under which its images are fetched; None: none is.
    """

    number: int
    user_input: UserInput
    prompt: str
    suffix: str
    urls: ImageUrls | None = None

    def item(self) -> Item:
        """With its images read, see `to_item`."""
        return to_item(self.user_input, self.prompt, self.suffix, self.urls)


def split_modalities(
    number: int,
    user_input: UserInput,
    image_suffix: str,
    text_suffix: str,
    urls: ImageUrls | None = None,
) -> list[PromptedInput]:
    """A user input's images alone, then its text alone, stripped, as far as it has them.

    Beside images, the text loses its markers `<|image_1|>`.
    """
    text, sources = text_and_images(user_input, urls)
    modalities = []
    if sources:
        modalities.append(PromptedInput(number, {"image": sources}, "", image_suffix, urls))
        text, _ = without_markers(text)
    text = text.strip()
    if text or not sources:
        modalities.append(PromptedInput(number, text, "", text_suffix))
    return modalities


def names_image(user_input: UserInput) -> bool:
    """Whether a user's input is a str that sentence-transformers would open as an image.

    These are files that exist, URLs with an image's ending, and data URIs.
    """
    if not isinstance(user_input, str):
        return False
    if user_input.startswith(("http://", "https://")) and " " not in user_input:
        return user_input.partition("?")[0].partition("#")[0].lower().endswith(_ENDINGS)
    if user_input.startswith("data:image/"):
        return True
    return user_input.lower().endswith(_ENDINGS) and os.path.isfile(user_input)


def _check_text(text: str) -> None:
    if fault := text_fault(text):
        raise ValueError(f"{fault}; embed its parts, or cut it")


def _check_image(image: ImageSource, urls: ImageUrls | None) -> None:
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
    elif isinstance(image, str) and image_urls.is_url(image) and urls is None:
        raise ValueError(
            f"{image_urls.named(image)} is a URL, and nothing is fetched unless it is asked for:"
            " Embedder.from_pretrained(..., image_urls=unime_jax.ImageUrls()). Or download the"
            " image, and give its path or its bytes"
        )


def to_item(
    user_input: UserInput, prompt: str = "", suffix: str = "", urls: ImageUrls | None = None
) -> Item:
    """A user's input as an item, its images read, or fetched within the limits `urls`.

    Raises:
      TypeError, ValueError: as `text_and_images`, or an image cannot be read or fetched.
    """
    text, sources = text_and_images(user_input, urls)
    media = tuple(_read(source, urls) for source in sources)
    return Item(text, media, prefix=prompt, suffix=suffix)


def _read(image: ImageSource, urls: ImageUrls | None) -> Media:
    """An image as the bytes of a file; PNG, which loses nothing, where it came as pixels."""
    if isinstance(image, bytes):
        return Media("", image)
    try:
        if isinstance(image, str) and image_urls.is_data_url(image):
            return Media("", image_urls.decode_data(image))
        if isinstance(image, str) and urls is not None and image_urls.is_url(image):
            return Media(image_urls.named(image), image_urls.fetch(image, urls))
        if isinstance(image, str | os.PathLike):
            return Media(os.fspath(image), images.read(image))
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
    return Media("", file.getvalue())
