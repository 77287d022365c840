"""Images and clips as users of `Embedder` hand them in: checked, and read as bytes of a file."""

import dataclasses
import io
import math
import os
import threading
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from unime_jax.batch import Media
from unime_jax.data import clip_files, clips, image_urls, images
from unime_jax.data.image_urls import ImageUrls

# An image's path, URL, content of its file, or pixels (an array is uint8 [height, width, 3]).
ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
# A clip's path (of a file, or of a folder of pictures), URL, content of its file, its frames as
# uint8 [frames, height, width, 3], or {"frames": these, a folder or images, "fps": a number}.
ClipSource: TypeAlias = str | os.PathLike[str] | bytes | np.ndarray | Mapping[str, Any]

_loading = threading.Lock()  # two threads must not read the file of one lazily opened image


@dataclasses.dataclass(frozen=True)
class UserClip:
    """A clip among the images of an item."""

    source: ClipSource


def check(source: ImageSource | UserClip, urls: ImageUrls | None) -> None:
    """Raises TypeError or ValueError for what is no image or clip; files are not looked at."""
    if isinstance(source, UserClip):
        _check_clip(source.source, urls)
    else:
        _check_image(source, urls)


def read(source: ImageSource | UserClip, urls: ImageUrls | None) -> Media:
    """An image or clip as the bytes of a file.

    What comes as pixels becomes PNG, which loses nothing; mere frames become a zip file of them.

    Raises:
      ValueError: it cannot be read or fetched.
    """
    if isinstance(source, UserClip):
        return _read_clip(source.source, urls)
    return _read_image(source, urls)


def _check_image(image: Any, urls: ImageUrls | None) -> None:
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
    else:
        _check_named(image, urls, "image")


def _check_clip(clip: Any, urls: ImageUrls | None) -> None:
    if isinstance(clip, Mapping):
        _check_frames(clip)
    elif isinstance(clip, np.ndarray):
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or not clip.size:
            raise ValueError(
                f"a video is an array of shape {clip.shape} and dtype {clip.dtype}; it must be"
                " uint8 [frames, height, width, 3]"
            )
    elif not isinstance(clip, str | os.PathLike | bytes):
        raise TypeError(
            f"a video is a {type(clip).__name__}; it must be a path of a file or folder, bytes, a"
            ' NumPy array [frames, height, width, 3], or {"frames": a list of images, "fps":'
            " frames a second}, or a list of those"
        )
    else:
        _check_named(clip, urls, "video")


def _check_frames(clip: Mapping[str, Any]) -> None:
    frames, fps = clip.get("frames"), clip.get("fps")
    if unknown := [key for key in clip if key not in ("frames", "fps")]:
        raise ValueError(f'a video is a dict with {unknown}; its keys are "frames" and "fps"')
    is_number = isinstance(fps, int | float | np.number) and not isinstance(fps, bool)
    if fps is not None and not (is_number and 0 < fps < math.inf):
        raise ValueError(f'the "fps" of a video is {fps!r}; it must be a number above 0')
    if isinstance(frames, np.ndarray):
        _check_clip(frames, None)
    elif isinstance(frames, list | tuple):
        if not frames:
            raise ValueError('the "frames" of a video are an empty list')
        for frame in frames:
            _check_image(frame, None)
    elif not isinstance(frames, str | os.PathLike) or not os.fspath(frames):
        raise TypeError(
            f'the "frames" of a video are a {type(frames).__name__}; they must be a list of images,'
            " a folder of them, or a NumPy array [frames, height, width, 3]"
        )


def _check_named(source: Any, urls: ImageUrls | None, kind: str) -> None:
    if isinstance(source, str | bytes) and not source:
        raise ValueError(f"{_a(kind)} is {source!r}; leave it out where there is none")
    if isinstance(source, str) and image_urls.is_url(source) and urls is None:
        raise ValueError(
            f"{image_urls.named(source)} is a URL, and nothing is fetched unless it is asked for:"
            " Embedder.from_pretrained(..., image_urls=unime_jax.ImageUrls()). Or download the"
            f" {kind}, and give its path or its bytes"
        )


def _a(kind: str) -> str:
    return f"{'an' if kind == 'image' else 'a'} {kind}"


def _read_image(image: ImageSource, urls: ImageUrls | None) -> Media:
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


def _read_clip(clip: ClipSource, urls: ImageUrls | None) -> Media:
    if isinstance(clip, bytes):
        return Media("", clip, "clip")
    try:
        if isinstance(clip, str) and image_urls.is_data_url(clip):
            return Media("", image_urls.decode_data(clip, "clip"), "clip")
        if isinstance(clip, str) and urls is not None and image_urls.is_url(clip):
            return Media(image_urls.named(clip), image_urls.fetch(clip, urls, "clip"), "clip")
        if isinstance(clip, str | os.PathLike):
            return Media(os.fspath(clip), clip_files.read(clip), "clip")
        if isinstance(clip, np.ndarray):
            return Media("", clips.archive(list(clip), None), "clip")
        frames, fps = clip["frames"], clip.get("fps")
        fps = None if fps is None else float(fps)
        if isinstance(frames, str | os.PathLike):
            return Media(os.fspath(frames), clip_files.read_folder(frames, fps), "clip")
        if isinstance(frames, np.ndarray):
            return Media("", clips.archive(list(frames), fps), "clip")
        contents = [_read_image(frame, None).data or b"" for frame in frames]
        return Media("", clips.archive(contents, fps), "clip")
    except (OSError, ValueError) as error:
        raise ValueError(f"the video cannot be read: {error}") from error
