"""Fingerprints of the image files that results depend on, of what is cheap to see of them."""

import contextlib
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator

from unime_jax import files
from unime_jax.data import clip_files
from unime_jax.data.ahead import map_ahead
from unime_jax.data.formats import fingerprint
from unime_jax.data.images import ImageFile
from unime_jax.evaluation.retrieval.data import RetrievalData
from unime_jax.operations import watchdog

# Endings by which images and clips are told from the other files of a folder.
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"),
    *clip_files.SUFFIXES,
    ".zip",  # of frames
)
ENDS = 2**12  # bytes of a file's beginning and end that are read
AHEAD = 32  # files that are asked for before their turn


def of_folder(folder: files.Path) -> str:
    """A hash that changes with the images of `stored_images.open_images`.

    Of a data set it is `formats.fingerprint`. Of plain files it is of paths, sizes and ends, in a
    bucket of what the listing says of contents. A folder that is copied keeps it.
    """
    if any(folder.glob("dataset_info.json")) or any(folder.glob("*/dataset_info.json")):
        return fingerprint(folder)
    if files.is_remote(folder):
        root = str(folder).removeprefix("gs://")
        listed = files.bucket_client().find(root, detail=True)
        return _digest(
            f"{name.removeprefix(root)}\0{entry.get('md5Hash') or entry['generation']}".encode()
            for name, entry in sorted(listed.items())  # what was uploaded in parts has no MD5
            if name.lower().endswith(SUFFIXES)
        )
    paths = (path.relative_to(folder).as_posix() for path in _images_below(pathlib.Path(folder)))
    return _digest(map_ahead(_seen, (ImageFile((str(folder),), p) for p in paths), ahead=AHEAD))


def of_sets(sets: Iterable[RetrievalData], limit: int) -> str:
    """A hash that changes with the image files that rows of retrieval sets name.

    Rows are read, and of each file its size and its ends; images in the rows are not looked at.
    `limit`: as of `RetrievalData.judgements`.
    """
    named = dict.fromkeys(itertools.chain.from_iterable(data.image_files(limit) for data in sets))
    return _digest(map_ahead(_seen, named, ahead=AHEAD))


def _images_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Image files of a folder and of those in it, in order, but for hidden ones."""
    with os.scandir(folder) as entries:
        listed = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in listed:
        if entry.is_dir():
            yield from _images_below(pathlib.Path(entry.path))
        elif entry.name.lower().endswith(SUFFIXES):
            yield pathlib.Path(entry.path)


def _seen(image: ImageFile) -> bytes:
    """The path of an image, with the size and the ends of its file; none if it cannot be read."""
    seen = image.path.encode(errors="replace")
    if os.path.isabs(image.path) or ".." in pathlib.PurePath(image.path).parts:
        return seen  # refused when it is evaluated
    for folder in map(files.as_path, image.folders):
        with contextlib.suppress(OSError):
            return seen + _ends(folder / image.path)
    return seen


def _ends(file: files.Path) -> bytes:
    """Size and hash of both ends of a file; OSError if it is none, or cannot be read."""
    if not file.is_file():  # a pipe would be waited for
        raise FileNotFoundError(file)
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(0)
        ends = content.read(ENDS)
        content.seek(max(size - ENDS, 0))
        ends += content.read(ENDS)
    watchdog.progress()
    return b"\0%d\0" % size + hashlib.blake2b(ends, digest_size=16).digest()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(4, "little") + part)
    return digest.hexdigest()
