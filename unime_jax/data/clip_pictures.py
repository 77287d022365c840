"""Animations (GIF, WebP, PNG) and zip files of pictures as clips, by Pillow."""

import contextlib
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Sequence

from PIL import Image

from unime_jax.data import clip_headers, images
from unime_jax.data.clip_facts import (
    MAX_FRAMES,
    ClipError,
    ClipFacts,
    check_frames,
    check_indices,
    check_seconds,
    refusals,
)

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif"),
    *(".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx"),
)
_SHORTEST = 10  # milliseconds; frames that say so, or less, are shown for 100, as in browsers
_USUAL = 100


def picture_names(names: Sequence[str]) -> list[str]:
    """Those that end as picture files do and are not hidden, numbers in them by their value."""
    kept = []
    for name in names:
        last = re.split(r"[/\\]", name)[-1]
        ending = "." + last.rpartition(".")[2].lower()
        if ending in SUFFIXES and not last.startswith(".") and not name.startswith("__MACOSX/"):
            kept.append(name)
    return sorted(kept, key=_natural)


@contextlib.contextmanager
def opened_animation(data: bytes, max_pixels: int) -> Iterator["Animation"]:
    """An animated image file; raises ClipError or what Pillow raises."""
    durations = clip_headers.durations(data)
    images.check(data, max_pixels=max_pixels)
    yield Animation(data, durations)


@contextlib.contextmanager
def opened_archive(data: bytes, max_pixels: int) -> Iterator["Archive"]:
    """A zip file of pictures; raises ClipError or what zipfile and Pillow raise."""
    if data.count(b"PK\x01\x02") > MAX_FRAMES:  # before a list of them is made
        raise ClipError(f"a zip file of more than {MAX_FRAMES} files, which is the limit")
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        clip = Archive(file, max_pixels)
        yield clip


class Animation:
    """An animated image file; Pillow lays each of its frames on those before."""

    def __init__(self, data: bytes, durations: Sequence[int]) -> None:
        check_frames(len(durations))
        total = sum(time if time > _SHORTEST else _USUAL for time in durations)
        check_seconds(total / 1000)
        self._data = data
        rate = 1000 * len(durations) / total if len(durations) > 1 else None
        with self._opened() as file:
            # A PNG may show another picture where animations are not known.
            self._first = int(bool(file.info.get("default_image")))
            self.facts = ClipFacts(len(durations), rate, *file.size)

    def frames(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """As `Clip.frames`."""
        check_indices(indices, self.facts.frames)
        with self._opened() as file:  # anew, as not every file can be wound back
            for index in indices:
                with refusals():
                    try:
                        file.seek(int(index) + self._first)
                        image = images.to_rgb(file.copy())
                    except EOFError as error:
                        raise ClipError(f"cut off: there is no frame {index}") from error
                yield image

    def _opened(self) -> Image.Image:
        return Image.open(io.BytesIO(self._data), formats=("GIF", "WEBP", "PNG"))


class Archive:
    """A zip file of pictures, in the order of their names; all have the size of the first."""

    def __init__(self, file: zipfile.ZipFile, max_pixels: int) -> None:
        self._file, self._max_pixels = file, max_pixels
        self._names = picture_names(list(dict.fromkeys(file.namelist())))
        if not self._names:
            raise ClipError("a zip file without pictures; their names end in .jpg, .png and so on")
        check_frames(len(self._names))
        self.facts = ClipFacts(len(self._names), _comment_rate(file), *self._decoded(0).size)
        check_seconds(len(self._names) / (self.facts.fps or math.inf))

    def frames(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """As `Clip.frames`."""
        check_indices(indices, self.facts.frames)
        for index in indices:
            with refusals():
                image = self._decoded(int(index))
                if image.size != (self.facts.width, self.facts.height):
                    raise ClipError(
                        f"{self._names[index]!r} has {image.width} x {image.height} pixels, the"
                        f" first frame {self.facts.width} x {self.facts.height}; frames of a clip"
                        " have one size"
                    )
            yield image

    def _decoded(self, index: int) -> Image.Image:
        name = self._names[index]
        with self._file.open(name) as file:
            data = file.read(images.MAX_BYTES + 1)  # whatever size the zip file says it has
        try:
            return images.decode(data, max_pixels=self._max_pixels)
        except images.ImageError as error:
            raise ClipError(f"{name[:100]!r}: {error}") from error


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Numbers are compared by value, and before letters."""
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return [(False, int(p), p) if p[0] in "0123456789" else (True, 0, p) for p in parts]


def _comment_rate(file: zipfile.ZipFile) -> float | None:
    """The rate that `clips.archive` wrote into the comment; other comments are no matter."""
    try:
        rate = json.loads(file.comment)["fps"]
    except (ValueError, TypeError, KeyError):
        return None
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        return None
    return float(rate) if 0 < rate < math.inf else None
