"""Items of an evaluation as other libraries take them: text without image markers, PIL images."""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image

from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import Item
from unime_jax.data import images
from unime_jax.data.ahead import map_ahead
from unime_jax.data.image_markers import without_markers
from unime_jax.data.user_lists import sum_of_parts
from unime_jax.operations import watchdog

WINDOW = 16  # batches whose images are decoded at a time


@dataclasses.dataclass(frozen=True)
class PeerInput:
    """An item's text and its images, in RGB and upright.

    Attributes:
      name: of the item, for errors.
      text: None where there are images and no text.
    """

    name: str
    text: str | None
    images: tuple[Image.Image, ...] = ()

    @property
    def has_both(self) -> bool:
        return self.text is not None and bool(self.images)


def peer_input(item: Item) -> PeerInput:
    """An item with its images decoded.

    Markers `<|image_1|>` are left out of the text, each with one line end after it, and then white
    space around what remains. A text without markers is as the data have it.

    Raises:
      ValueError: it has a clip, or an image that cannot be decoded.
    """
    text, markers = without_markers(item.prefix + item.text + item.suffix)
    if markers:
        text = text.strip()
    pictures = []
    for media in item.media:
        if media.kind != "image" or media.data is None:
            raise ValueError(f"{name_of(item)}: models of other libraries are given images only")
        try:
            pictures.append(images.decode(media.data))
        except images.ImageError as error:
            raise ValueError(f"{name_of(item)}: {error}") from error
    return PeerInput(name_of(item), text if text or not pictures else None, tuple(pictures))


def encode_windows(
    items: Sequence[Item],
    encode: Callable[[Sequence[PeerInput]], Float[np.ndarray, "m D"]],
    *,
    batch_size: int,
) -> Float32[np.ndarray, "n D"]:
    """Embeddings of items, of which a few batches are in memory.

    Threads decode the next ones while `encode` is at work.

    Raises:
      ValueError: as `peer_input` and `encode`.
    """
    parts = []
    size = WINDOW * batch_size
    inputs = map_ahead(lambda number: peer_input(items[number]), range(len(items)), ahead=size)
    with contextlib.closing(inputs):
        for window in _windows(inputs, size):
            parts.append(np.asarray(encode(window), np.float32))
            watchdog.progress()
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def by_modality(
    inputs: Sequence[PeerInput],
    encode: Callable[[Sequence[PeerInput]], Float[np.ndarray, "m D"]],
) -> Float32[np.ndarray, "n D"]:
    """Embeddings of texts, of images, and of items of both, each in a call of its own, in order."""
    numbers: dict[tuple[bool, bool], list[int]] = {}
    for number, given in enumerate(inputs):
        numbers.setdefault((given.text is None, bool(given.images)), []).append(number)
    parts = {tuple(n): encode([inputs[i] for i in n]) for n in numbers.values()}
    order = np.argsort(np.concatenate([np.array(n) for n in parts]))
    return np.concatenate([np.asarray(part, np.float32) for part in parts.values()])[order]


def sum_of_modalities(
    inputs: Sequence[PeerInput],
    encode: Callable[[Sequence[PeerInput]], Float[np.ndarray, "m D"]],
) -> Float32[np.ndarray, "n D"]:
    """Late fusion: the embedding of an item with text and images is their sum, scaled to length 1.

    Text and images are scaled to length 1 before they are added.
    """
    parts: list[PeerInput] = []
    numbers: list[int] = []
    for number, given in enumerate(inputs):
        modalities = [given]
        if given.has_both:
            alone = PeerInput(given.name, given.text)
            modalities = [dataclasses.replace(given, text=None), alone]
        parts += modalities
        numbers += [number] * len(modalities)
    vectors = np.asarray(encode(parts), np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return sum_of_parts(vectors / np.maximum(norms, 1e-12), numbers, len(inputs))


def refused_both(given: PeerInput) -> ValueError:
    """The error of an item with text and images, for a model that takes either."""
    return ValueError(
        f"{given.name}: this model embeds a text or an image, not both at once; late fusion"
        " (config.late_fusion=True, or late_fusion=True in a call) adds their embeddings"
    )


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages by name."""
    return {package: importlib.metadata.version(package) for package in packages}


def _windows(inputs: Iterable[PeerInput], size: int) -> Iterator[list[PeerInput]]:
    window: list[PeerInput] = []
    for given in inputs:
        window.append(given)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window
