"""Images and clips of an evaluation by path: plain files, or rows of a TFDS folder."""

import hashlib

from unime_jax import files
from unime_jax.data import clip_files
from unime_jax.data.clip_files import is_video_name
from unime_jax.data.formats import Source, open_dataset
from unime_jax.data.images import read_below
from unime_jax.evaluation.encoding.item_table import Images, text_of


def open_images(folder: files.Path) -> Images:
    """A function from a path to the encoded bytes of the image or clip.

    Plain files must stay below `folder`; a clip may be a folder of frames, too. Of a TFDS folder
    with the columns path and image all rows are read once, for the paths; their bytes are read
    again when they are asked for.

    Raises:
      ValueError: two different images at one path.
    """
    if not any(folder.glob("dataset_info.json")) and not any(folder.glob("*/dataset_info.json")):
        return lambda path: _read(folder, path)
    return index_images(folder, open_dataset(folder))


def _read(folder: files.Path, path: str) -> bytes:
    """An image's file, a video's, or a folder of frames."""
    if is_video_name(path) or (folder / path).is_dir():
        return clip_files.read_below(folder, path)
    return read_below(folder, path)


def index_images(folder: files.Path, splits: dict[str, Source]) -> Images:
    """As `open_images`, of rows by split."""
    places: dict[str, tuple[str, int, bytes]] = {}  # split, row, digest of the image
    for name, source in splits.items():
        for number in range(len(source)):
            row = source[number]
            path = text_of(row["path"])
            digest = hashlib.blake2b(row["image"], digest_size=16).digest()
            if places.setdefault(path, (name, number, digest))[2] != digest:
                raise ValueError(
                    f"{folder}, split {name!r}: another split has a different image at the path"
                    f" {path!r}; name them apart, as evaluation finds images by path"
                )

    def read(path: str) -> bytes:
        name, number, _ = places[path]
        data: bytes = splits[name][number]["image"]
        return data

    return read
