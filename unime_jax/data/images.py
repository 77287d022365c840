"""The one decoder of image files: which are read, from where, up to what size, and as what.

Embedder, training, evaluation, bulk embedding, reports and exports read images here, so that a file
is the same image to all of them. docs/images.md says the same to users.
"""

import contextlib
import dataclasses
import functools
import io
import os
import re
import stat
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from unime_jax import files
from unime_jax.data import image_headers
from unime_jax.data.strange_texts import shown

# By Pillow's names; others (EPS, which runs Ghostscript, PSD, FLI, ...) are never tried. "JPEG"
# stands for MPO, too, the several images in one file of many phones.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
MAX_PIXELS = 64_000_000  # a larger image is a mistake or a decompression bomb
MAX_BYTES = 2**28  # of a file: what so many pixels take without compression

# Of EXIF's orientation, as PIL.ImageOps.exif_transpose has them.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0112, 258, 262, 339
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)


class ImageError(ValueError):
    """An image that cannot be used, or may not be read; the message says why, not which."""


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image's file that a data set names by its path below folders; read when it is wanted."""

    folders: tuple[str, ...]  # that are tried in turn
    path: str

    def read(self) -> bytes:
        """The content of the file in the first folder that has it.

        Raises:
          OSError: it cannot be opened.
          ImageError: as `read_below`.
        """
        *others, last = self.folders
        for folder in others:
            with contextlib.suppress(FileNotFoundError):
                return read_below(folder, self.path)
        return read_below(last, self.path)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame of an image file in RGB, upright, see `to_rgb`.

    Sizes are read, and refused, before any pixel is decoded. Whatever a decoder raises at damaged
    bytes comes out as an ImageError.

    Raises:
      ImageError: the file is too large, of another format, damaged or cut off, or has too many
        pixels.
    """
    with _opened(data, max_pixels) as file:
        file.load()
        return to_rgb(file)


def check(data: bytes, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageError for an image file that `decode` refuses by its headers.

    No pixel is decoded, so that a file may still turn out to be damaged or cut off.
    """
    with _opened(data, max_pixels):
        pass


@contextlib.contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The file as Pillow opens it, its headers checked; ImageError for whatever goes wrong."""
    if len(data) > MAX_BYTES:
        raise ImageError(f"a file of {len(data)} bytes, the limit is {MAX_BYTES}")
    try:
        image_headers.check(data, max_pixels)
        with Image.open(io.BytesIO(data), formats=_formats()) as file:
            check_size(*file.size, max_pixels)
            yield file
    except UnidentifiedImageError as error:
        names = ", ".join(_formats())
        raise ImageError(f"cannot identify the format; it must be one of {names}") from error
    except (ImageError, image_headers.HeaderError) as error:
        raise ImageError(str(error)) from error
    except Exception as error:  # hostile bytes can raise anything in a decoder
        raise ImageError(f"{type(error).__name__}: {shown(str(error))[:200]}") from error


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageError for an image of too many pixels, or none."""
    if width * height > max_pixels:
        raise ImageError(f"image of {width} x {height} pixels, the limit is {max_pixels}")
    if width < 1 or height < 1:
        raise ImageError(f"image of {width} x {height} pixels")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB with 8 bits a channel, turned as its EXIF orientation says.

    Transparency is laid on white, as transformers' image processors do; of greys with more than 8
    bits the upper eight are taken, as Pillow does with colours. Everything else is Pillow's
    `convert`, without colour profiles, as in transformers.

    Raises:
      ImageError: there is no such conversion (LAB), or grey values are not finite.
    """
    turn = _TURNS.get(_orientation(image))
    if image.mode == "F" or image.mode.split(";")[0] == "I":
        image = _eight_bits(image)
    if image.mode == "LAB":
        raise ImageError("its colours are LAB; convert it to RGB")
    if image.mode == "La":  # premultiplied, which Pillow takes back step by step
        image = image.convert("LA")
    if _is_transparent(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def read(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of an image file.

    Nothing but a regular file is opened, so that no device, pipe or socket is read or waited for.

    Raises:
      OSError: it cannot be opened.
      ImageError: it is a URL, no regular file, or too large.
    """
    name = os.fspath(path)
    _check_name(name)
    _check_file(name, os.stat(name), max_bytes)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    with os.fdopen(os.open(name, flags), "rb") as file:
        status = os.fstat(file.fileno())
        _check_file(name, status, max_bytes)  # it may have been replaced
        data = file.read(status.st_size + 1)
    if len(data) > status.st_size:
        raise ImageError(f"{name!r} grows while it is read")
    return data


def read_below(folder: str | os.PathLike[str], path: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of an image file that a data set names by its path below a folder.

    Raises:
      OSError: it cannot be opened.
      ImageError: as `read` and `path_below`.
    """
    real = path_below(folder, path)
    if files.is_remote(folder):
        return _read_remote(files.as_path(real), max_bytes)
    return read(real, max_bytes=max_bytes)


def path_below(folder: str | os.PathLike[str], path: str) -> str:
    """Where a file or folder lies that a data set names by its path below a folder.

    Whoever wrote the data set need not be trusted: the path must stay in the folder.

    Raises:
      ImageError: the path is a URL or absolute, has `..` in it, or leads out of the folder over a
        symbolic link.
    """
    _check_name(path)
    if os.path.isabs(path) or ".." in re.split(r"[/\\]", path):
        raise ImageError(
            f"the path {path!r} leaves the image folder; paths of a data set are relative to it,"
            ' without ".."'
        )
    if files.is_remote(folder):
        return os.fspath(files.as_path(folder) / path)
    root = os.path.realpath(folder)
    real = os.path.realpath(os.path.join(root, path))
    if os.path.commonpath([root, real]) != root:
        raise ImageError(
            f"the path {path!r} leads out of the image folder, over a symbolic link, to {real!r};"
            " copy or mount the images into the folder"
        )
    return real


def _read_remote(path: files.Path, max_bytes: int) -> bytes:
    """An image of a bucket, which has no links or devices; a limit holds for its size, too."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ImageError(f"{str(path)!r} has more than {max_bytes} bytes, which is the limit")
    return data


def suffix(data: bytes) -> str:
    """The usual file name suffix of an image file's format, such as ".png"."""
    with Image.open(io.BytesIO(data), formats=_formats()) as file:
        return SUFFIXES.get(str(file.format), f".{str(file.format).lower()}")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_name(name: str) -> None:
    if _URL.match(name):
        raise ImageError(
            f"{name[:100]!r} is a URL, and nothing is fetched here; download the image first, and"
            " give its path or its bytes"
        )
    if "\0" in name:
        raise ImageError(f"{name!r} is no path: it has a NUL")


def _check_file(name: str, status: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise ImageError(f"{name!r} is {kind}, no file")
    if status.st_size > max_bytes:
        raise ImageError(f"{name!r} has {status.st_size} bytes, the limit is {max_bytes}")


def _orientation(image: Image.Image) -> int:
    """EXIF's, or XMP's, where Pillow looks for it; 1 where it is damaged."""
    try:
        raw = image.info.get("exif")
        if isinstance(raw, bytes):
            image_headers.check_directory(raw.removeprefix(b"Exif\0\0"))
        profile = image.info.get("Raw profile type exif")  # ImageMagick's, in hexadecimal
        if isinstance(profile, str):
            image_headers.check_directory(bytes.fromhex("".join(profile.split("\n")[3:]))[6:])
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the pixels may be good all the same
        return 1


def _is_transparent(image: Image.Image) -> bool:
    """Also a palette in memory, which has its alpha elsewhere than one in a file."""
    in_palette = image.palette is not None and image.palette.mode.endswith("A")
    return (
        image.mode in ("LA", "PA", "RGBA", "RGBa")
        or image.info.get("transparency") is not None
        or (image.mode == "P" and in_palette)
    )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 12, 16 or 32 bits, or floats, as "L": the upper eight bits of their range.

    Mode "I" counts as 16 bits, as which Pillow itself saves it, and as 32 only if a value needs
    them. Floats have no range of their own: white is the least of 1, 255 and 65535 that no value
    exceeds.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode == "F":
        if not np.isfinite(values).all():
            raise ImageError("grey values that are not finite")
        white = next((w for w in (1, 255, 65535) if values.max(initial=0) <= w), None)
        if white is None:
            raise ImageError(f"grey values up to {values.max():g}; floats may go to 65535")
        grey = np.clip(values, 0, None)
        if white == 1:  # to 16 bits first, so that fractions of 8 or 16 bits come out exactly
            grey *= 65535
            np.rint(grey, out=grey)
        if white != 255:
            grey /= 256
    elif image.mode == "I":
        signed = tags.get(_SAMPLE_FORMAT, (1,))[0] != 1 if tags else True
        values = values if signed else values.view(np.uint32)
        shift = 8 if values.max(initial=0) <= 65535 else 23 if signed else 24
        grey = np.clip(values, 0, None) >> shift
    else:
        bits = int(tags.get(_BITS, (16,))[0]) if tags else 16
        grey = values >> (bits - 8)
        if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow undoes for 8 bits only
            grey = 255 - grey
    transparent = image.info.get("transparency")
    grey = grey.astype(np.uint8)
    if isinstance(transparent, int):  # one grey that stands for nothing
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey)
