"""The one decoder of clips: which files are read, up to what size, and as what frames.

As images.py is of images. Videos (MP4, MOV, WebM, Matroska, AVI) are decoded by PyAV, animations
(GIF, WebP, PNG) and zip files of pictures by Pillow. Which it is, a file's first bytes say: FFmpeg
never guesses, so that no playlist is followed and nothing but the bytes in memory is opened.
docs/video.md says the same to users.
"""

import contextlib
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unime_jax.data import clip_containers, clip_headers, clip_pictures, images
from unime_jax.data.clip_facts import (
    MAX_BYTES,
    MAX_FRAMES,
    MAX_PIXELS,
    MAX_SECONDS,
    Clip,
    ClipError,
    ClipFacts,
    check_frames,
    refusals,
)

__all__ = (
    "MAX_BYTES",
    "MAX_FRAMES",
    "MAX_PIXELS",
    "MAX_SECONDS",
    "Clip",
    "ClipError",
    "ClipFacts",
    "archive",
    "check",
    "opened",
)

FORMATS = "MP4, MOV, WebM, Matroska, AVI, an animated GIF, WebP or PNG, or a zip file of pictures"
_IMAGES = re.compile(rb"\xff\xd8|\x89PNG|RIFF....WEBP|....ftyp(?:avif|hei[cfx]|mif1)", re.DOTALL)


@contextlib.contextmanager
def opened(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Iterator[Clip]:
    """A clip's file, whose frames can be had while it is open.

    Sizes are read, and refused, before any frame is decoded. Whatever a decoder raises at damaged
    bytes comes out as a ClipError, here or where a frame is asked for.

    Raises:
      ClipError: the file is too large or too long, of another format, damaged or cut off, its
        frames have too many pixels, or PyAV is not installed.
    """
    with contextlib.ExitStack() as stack:
        with refusals():
            if name := _container(data):
                clip: Clip = stack.enter_context(clip_containers.opened(data, name, max_pixels))
            elif zipfile_like(data):
                clip = stack.enter_context(clip_pictures.opened_archive(data, max_pixels))
            else:
                clip = stack.enter_context(clip_pictures.opened_animation(data, max_pixels))
        yield clip


def check(data: bytes, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ClipError for a file that `opened` refuses by its headers.

    No frame is decoded, so that a file may still turn out to be damaged or cut off.
    """
    with refusals():
        if name := _container(data):
            clip_containers.check(data, name, max_pixels)
        elif zipfile_like(data):
            with clip_pictures.opened_archive(data, max_pixels):
                pass
        else:
            with clip_pictures.opened_animation(data, max_pixels):
                pass


def archive(
    frames: Sequence[bytes | Image.Image | np.ndarray[Any, Any]], fps: float | None
) -> bytes:
    """Mere frames as one file: a zip file of pictures, uncompressed, and the rate in its comment.

    Image files are kept as they are, other frames become PNG. Equal frames make equal bytes.

    Raises:
      ClipError: there are no frames, or too many, one is no image, or the rate is no rate.
    """
    check_frames(len(frames))
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ClipError(f"a rate of {fps} frames a second")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as made:
        for number, frame in enumerate(frames):
            try:
                data = frame if isinstance(frame, bytes) else _png(frame)
                images.check(data)
                name = f"{number:06d}{images.suffix(data)}"
            except images.ImageError as error:
                raise ClipError(f"frame {number + 1} of {len(frames)}: {error}") from error
            made.writestr(zipfile.ZipInfo(name), data)  # which dates it to 1980, always
            if file.tell() > MAX_BYTES:
                raise ClipError(f"frames of more than {MAX_BYTES} bytes, which is the limit")
        if fps is not None:
            made.comment = json.dumps({"fps": fps}).encode()
    return file.getvalue()


def zipfile_like(data: bytes) -> bool:
    """Whether a file begins as a zip file does."""
    return data.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def _container(data: bytes) -> str | None:
    """FFmpeg's name of the container of a video; None: an animation or a zip file.

    Raises:
      ClipError: it is too large, or none of them.
    """
    if len(data) > MAX_BYTES:
        raise ClipError(f"a file of {len(data)} bytes, the limit is {MAX_BYTES}")
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    if _IMAGES.match(data) and not clip_headers.animated(data):
        raise ClipError("an image, not a clip; give it as an image")
    if data[4:8] in clip_headers.MOV:
        return "mov"
    if clip_headers.animated(data) or zipfile_like(data):
        return None
    raise ClipError(f"cannot identify the format; it must be {FORMATS}")


def _png(frame: Image.Image | np.ndarray[Any, Any]) -> bytes:
    if isinstance(frame, np.ndarray):
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ClipError(
                f"an array {list(frame.shape)} of {frame.dtype}; a frame is uint8 [height, width,"
                " 3]"
            )
        images.check_size(frame.shape[1], frame.shape[0])
        frame = Image.fromarray(np.ascontiguousarray(frame))
    file = io.BytesIO()
    with refusals():  # pixels of an image may be read lazily
        images.check_size(*frame.size)
        images.to_rgb(frame).save(file, "PNG", compress_level=1)
    return file.getvalue()
