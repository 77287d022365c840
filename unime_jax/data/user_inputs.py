"""Items as users of `Embedder` write them: checked, split by modality, and their media read."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from PIL import Image

from unime_jax.batch import Item
from unime_jax.data import user_media
from unime_jax.data.image_markers import without_markers
from unime_jax.data.image_urls import ImageUrls
from unime_jax.data.strange_texts import text_fault
from unime_jax.data.user_media import ClipSource, ImageSource, UserClip

# A text, an image, or {"text": ..., "image": ..., "video": ...}; keys may be left out.
UserInput: TypeAlias = (
    str
    | Image.Image
    | Mapping[str, str | ImageSource | ClipSource | Sequence[ImageSource | ClipSource]]
)

# What UniME's first stage asks after an image and after a sentence (section 3.2.2).
IMAGE_SUFFIX = "Summary above image in one word:"
TEXT_SUFFIX = "\nSummary above sentence in one word:"

_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tiff", ".webp"),
    *(".mp4", ".avi", ".mov", ".wmv", ".flv", ".mkv"),
)
_KEYS = ("text", "image", "video")


def text_and_media(
    user_input: UserInput, urls: ImageUrls | None = None
) -> tuple[str, Sequence[ImageSource | UserClip]]:
    """Text, images and then clips of a user's input, checked, but for their files.

    Clips may also stand among the images, each as a `UserClip`, as in messages. `urls` are the
    limits under which images and clips are fetched; None: none is.

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
            ' "text", "image" and "video"'
        )
    unknown = [key for key in user_input if key not in _KEYS]
    if unknown or not user_input:
        hint = "; messages are a list, each with a role" if "role" in user_input else ""
        raise ValueError(
            f'its keys are {list(user_input)}; they must be "text", "image" or "video"{hint}'
        )
    text = user_input.get("text", "")
    if not isinstance(text, str):
        raise TypeError(f'"text" is a {type(text).__name__}; it must be a str, or be left out')
    _check_text(text)
    clips = tuple(map(UserClip, _listed(user_input.get("video", ()))))
    sources = _listed(user_input.get("image", ())) + clips
    if not sources and "text" not in user_input:
        empty = " and ".join(f'"{key}"' for key in user_input)
        raise ValueError(f'{empty} is an empty list, and there is no "text"')
    for source in sources:
        user_media.check(source, urls)
    return text, sources


@dataclasses.dataclass(frozen=True)
class PromptedInput:
    """A user's input, or its text or media alone, between a prompt and a suffix.

    Attributes:
      number: of the user's input among those of a call.
      urls: limits under which its media are fetched; None: none is.
    """

    number: int
    user_input: UserInput
    prompt: str
    suffix: str
    urls: ImageUrls | None = None

    def item(self) -> Item:
        """With its media read, see `to_item`."""
        return to_item(self.user_input, self.prompt, self.suffix, self.urls)


def split_modalities(
    number: int,
    user_input: UserInput,
    image_suffix: str,
    text_suffix: str,
    urls: ImageUrls | None = None,
) -> list[PromptedInput]:
    """A user input's media alone, then its text alone, stripped, as far as it has them.

    Beside media, the text loses its markers `<|image_1|>`.
    """
    text, sources = text_and_media(user_input, urls)
    modalities = []
    if sources:
        shown: Mapping[str, Any] = {"image": sources}
        modalities.append(PromptedInput(number, shown, "", image_suffix, urls))
        text, _ = without_markers(text)
    text = text.strip()
    if text or not sources:
        modalities.append(PromptedInput(number, text, "", text_suffix))
    return modalities


def names_media(user_input: UserInput) -> bool:
    """Whether a user's input is a str that sentence-transformers would open as an image or a video.

    These are files that exist and URLs, with such an ending, and data URIs of images.
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


def _listed(given: Any) -> tuple[Any, ...]:
    """The sources of a key, which is one or a list."""
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def to_item(
    user_input: UserInput, prompt: str = "", suffix: str = "", urls: ImageUrls | None = None
) -> Item:
    """A user's input as an item, its media read, or fetched within the limits `urls`.

    Raises:
      TypeError, ValueError: as `text_and_media`, or an image or clip cannot be read or fetched.
    """
    text, sources = text_and_media(user_input, urls)
    media = tuple(user_media.read(source, urls) for source in sources)
    return Item(text, media, prefix=prompt, suffix=suffix)
