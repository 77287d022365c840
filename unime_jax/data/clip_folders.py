"""Clips that a data set names by paths: a video's file, or a folder of frames, as one file."""

import os
import re

from unime_jax import files
from unime_jax.data import clips
from unime_jax.data.images import ImageError, read_below

FRAMES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif")


def read_clip_below(folder: str | os.PathLike[str], path: str) -> bytes:
    """The content of a clip's file below a folder; of a folder of frames, an archive of them.

    Frames are the images of the folder, but for hidden ones, in the order of their names, in which
    numbers count as numbers. They have no rate.

    Raises:
      OSError: it cannot be opened.
      ImageError: as `read_below`, or the folder has no frames.
    """
    place = files.as_path(folder) / path
    leaves = os.path.isabs(path) or ".." in re.split(r"[/\\]", path) or "\0" in path
    if leaves or not place.is_dir():
        return read_below(folder, path, max_bytes=clips.MAX_BYTES)  # says what is wrong
    names = [entry.name for entry in place.iterdir() if entry.name.lower().endswith(FRAMES)]
    names = sorted((name for name in names if not name.startswith(".")), key=_natural)
    if not names:
        raise ImageError(f"{path!r} is a folder without frames: images {', '.join(FRAMES)}")
    return clips.archive([read_below(folder, f"{path}/{name}") for name in names], None)


def _natural(name: str) -> list[tuple[int, str]]:
    """A name by its parts; frame_10 comes after frame_9."""
    parts = re.split(r"(\d+)", name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
