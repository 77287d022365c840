"""On-disk embedding store: .npy blocks keyed by item hash, which plain NumPy reads and writes.

    embeddings.json      count, dimension, dtype, block, blocks, complete, provenance
    ids.npy              bytes [count]: `item_id` of what each row is the vector of
    vectors/000000.npy   [rows, D] float16 or float32, rows in the order of ids.npy; at most
                         `block` of them, fewer where items could not be embedded

`vectors.npy` [count, D] beside `ids.npy`, or beside `texts.txt` with a text a line, will do, too.
`embeddings_writer` writes the first form, whole or block by block.
"""

import functools
import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float32, Int64

from unime_jax import files
from unime_jax.batch import Item
from unime_jax.operations import local_copies

RECORD = "embeddings.json"
IDENTITY = "texts and content of images"  # what ids are made of, for provenance
FORM: Mapping[str, Any] = {
    "count": int | None,
    "dimension": int,
    "dtype": str,
    "block": int,
    "blocks": int,
    "complete": bool,
    "provenance": dict,
}  # of the record
MAPPED = 256  # blocks that stay open: each costs a file descriptor


def item_id(item: Item | str) -> bytes:
    """32 hex digits: BLAKE2b (128 bit) of the text and its images, joined by NUL, in UTF-8.

    An image is "blake2b:" and 32 hex digits of its file's content, so that an id does not depend on
    where a file lies, nor on the host. Of an image without content it is the path, as it was of all
    images in folders that older versions wrote; `IDENTITY` in a folder's provenance tells.

    The instructions `prefix` and `suffix` are left out. They are the embedding model's own, one for
    a whole folder and in its provenance, so that a vector is found without knowing them.

    Raises:
      ValueError: an image has no path, so that nobody could say which it was.
    """
    return _digest(item, by_content=True)


def _digest(item: Item | str, *, by_content: bool) -> bytes:
    item = Item(item) if isinstance(item, str) else item
    if not all(media.path for media in item.media):
        raise ValueError(f"an image of the item {item.text[:80]!r} has no path to know it by")
    images = [media.identity if by_content else media.key for media in item.media]
    name = "\0".join([item.text, *images]).encode()
    return hashlib.blake2b(name, digest_size=16).hexdigest().encode()


class Embeddings:
    """Read-only vectors by id; `open_embeddings` makes one. Pickled, it is just its path.

    Attributes:
      ids: bytes [count], in the order of the files.
      dimension: D.
      provenance: what the vectors were made by and of, as far as it was recorded.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        ids: np.ndarray,
        blocks: Sequence[files.Path],
        provenance: Mapping[str, Any],
    ):
        """Raises ValueError if the parts do not fit together."""
        self.folder = folder
        self.ids = ids
        self.provenance = provenance
        self._blocks = blocks
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]
        self._open = functools.lru_cache(maxsize=MAPPED)(open_matrix)
        shapes = [open_matrix(path).shape for path in blocks]
        self._ends = np.cumsum([rows for rows, _ in shapes])
        widths = sorted({width for _, width in shapes})
        rows = int(self._ends[-1]) if shapes else 0
        if len(widths) != 1 or not rows or rows != len(ids):
            raise ValueError(
                f"{folder} has {len(ids)} ids for {rows} vectors of dimensions {widths}; there"
                " must be as many as ids, at least one, all of one dimension"
            )
        self.dimension = widths[0]
        same = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if len(same):
            a, b = self._order[same[0] : same[0] + 2]
            raise ValueError(
                f"{folder}: rows {a} and {b} have the same id {bytes(ids[a])!r}, and so have"
                f" {len(same) - 1} more pairs; an item has one vector"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: bytes) -> bool:
        return bool(self._rows_of(np.asarray([id]))[1].all())

    def __reduce__(self):
        return open_embeddings, (self.folder,)

    def vector(self, id: bytes) -> Float32[np.ndarray, " D"]:
        """The vector of one id, see `vectors`."""
        return self.vectors([id])[0]

    def vector_of(self, item: Item | str) -> Float32[np.ndarray, " D"]:
        """The vector of an item or a text; a KeyError says its text."""
        return self.vectors_of([item])[0]

    def vectors_of(self, items: Iterable[Item | str]) -> Float32[np.ndarray, "n D"]:
        """The vectors of items or texts, in their order.

        Raises:
          KeyError: one is not there; the message says its text and images.
          ValueError: a vector is not finite, or the folder knows images by their paths.
        """
        wanted = [Item(item) if isinstance(item, str) else item for item in items]
        ids = [item_id(item) for item in wanted]
        known = self._rows_of(np.asarray(ids))[1] if ids else np.ones(0, bool)
        if not known.all():
            self._say_missing(wanted[int(np.argmin(known))])
        return self.vectors(ids)

    def _say_missing(self, item: Item) -> NoReturn:
        if _digest(item, by_content=False) in self:
            raise ValueError(
                f"{self.folder} was written by a version that knew images by their paths, which"
                " may stand for others here; now they are known by their content. Write it again"
            )
        images = "".join(f", {media.kind} {media.path!r}" for media in item.media)
        raise KeyError(f"{self.folder} has no vector of {item.text[:200]!r}{images}")

    def vectors(self, ids: Iterable[bytes]) -> Float32[np.ndarray, "n D"]:
        """Copies of the vectors of many ids, in their order.

        Raises:
          KeyError: some are not there.
          ValueError: a vector is not finite.
        """
        wanted = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
        if not len(wanted):
            return np.empty((0, self.dimension), np.float32)
        rows, known = self._rows_of(wanted)
        if not known.all():
            raise KeyError(
                f"{self.folder} has no vectors of {np.sum(~known)} of {len(wanted)} ids,"
                f" the first is {wanted[~known].tolist()[0]!r}"
            )
        return self.at(rows)

    def rows_of(self, ids: np.ndarray) -> Int64[np.ndarray, " n"]:
        """The row of each id, bytes [n], in the order of the files; -1: it has no vector."""
        rows, known = self._rows_of(ids)
        return np.where(known, rows, -1)

    def at(self, rows: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n D"]:
        """The vectors of rows of the files; ValueError if one is not finite."""
        out = np.empty((len(rows), self.dimension), np.float32)
        number = np.searchsorted(self._ends, rows, side="right")
        for block in np.unique(number):
            here = np.flatnonzero(number == block)
            matrix = self._open(self._blocks[block])
            out[here] = matrix[rows[here] - (self._ends[block] - len(matrix))]
        finite = np.isfinite(out).all(axis=1)
        if not finite.all():
            id = self.ids[rows[~finite][0]]
            raise ValueError(
                f"{self.folder}: the vector of {bytes(id)!r} has values that are not finite"
            )
        return out

    def _rows_of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row of each id, and whether it is there at all."""
        ids = _as_ids(ids, "looked up")
        if ids.dtype < self._sorted.dtype:  # else NumPy widens the longer array, each time
            ids = ids.astype(self._sorted.dtype)
        place = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
        return self._order[place], self._sorted[place] == ids


def open_embeddings(folder: str | files.Path) -> Embeddings:
    """Opens a folder in one of the forms above; blocks are mapped into memory as they are read.

    Of a folder in a bucket a local copy is opened.

    Raises:
      ValueError: it is none, or not complete, a block is missing or damaged, counts do not fit,
        or an id comes twice.
    """
    folder = local_copies.local_copy(files.as_path(folder))
    check_folder(folder)
    plain = folder / "vectors.npy"
    if (folder / RECORD).exists():
        record = read_record(folder)
        numbers = range(record["blocks"])
        missing = [n for n in numbers if not block_file(folder, n).exists()]
        if not record["complete"]:
            raise ValueError(
                f"{folder} is not complete, {len(missing)} of {len(numbers)} blocks are missing;"
                " run the command that writes it again, it goes on where it stopped"
            )
        if missing:
            raise ValueError(
                f"{block_file(folder, missing[0])} is missing, one of {len(missing)}; restore it,"
                " or delete the folder and write it again"
            )
        ids = _load_ids(folder / "ids.npy")
        if len(ids) != record["count"]:
            raise ValueError(f"{folder}: {RECORD} counts {record['count']}, ids.npy {len(ids)}")
        blocks = [block_file(folder, n) for n in numbers]
        return Embeddings(folder, ids, blocks, record["provenance"])
    if (folder / "ids.npy").exists():
        return Embeddings(folder, _load_ids(folder / "ids.npy"), [plain], {})
    texts = read_lines(folder / "texts.txt")
    return Embeddings(folder, np.array([*map(item_id, texts)], "S32"), [plain], {})


def check_folder(folder: files.Path) -> None:
    """Raises ValueError if a folder has no embeddings in one of the forms above."""
    names = ("ids.npy", "texts.txt")
    plain = (folder / "vectors.npy").exists() and any((folder / name).exists() for name in names)
    if not plain and not (folder / RECORD).exists():
        raise ValueError(
            f"{folder} has no embeddings: neither {RECORD}, nor vectors.npy with ids.npy or "
            "texts.txt"
        )


def read_record(folder: files.Path) -> dict[str, Any]:
    """embeddings.json; ValueError if it is not one."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        for key, kind in FORM.items():
            if not isinstance(record[key], kind):
                raise TypeError(f"{key} is {record[key]!r}")
        return {key: record[key] for key in FORM}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{folder / RECORD} is not as written here: {error!r}") from error


def block_file(folder: files.Path, number: int) -> files.Path:
    return folder / "vectors" / f"{number:06d}.npy"


def read_lines(file: files.Path) -> list[str]:
    """A text a line. Only a line feed ends a line, with a carriage return or without."""
    lines = file.read_bytes().decode().split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def open_matrix(file: files.Path) -> np.ndarray:
    """An array [rows, D] of floats, a local one mapped into memory; ValueError if it is none."""
    try:
        if isinstance(file, pathlib.Path):
            matrix = np.load(file, mmap_mode="r", allow_pickle=False)
        else:
            matrix = load_array(file)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is no whole npy file: {error}") from error
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise ValueError(
            f"{file} has shape {matrix.shape} and dtype {matrix.dtype}; vectors are [rows, D]"
            " floats (float16, float32 or float64)"
        )
    return matrix.view(np.ndarray)  # still mapped, but a memmap is slow to index


def load_array(file: files.Path) -> np.ndarray:
    """An array of a whole file, read into memory."""
    return np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)


def save_array(file: files.Path, array: np.ndarray) -> None:
    """Writes an array as a file that is whole from the moment it has its name."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    files.write_whole(file, content.getbuffer())


def _load_ids(file: pathlib.Path) -> np.ndarray:
    try:
        ids = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing") from error
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is no whole npy file of ids: {error}") from error
    return _as_ids(ids, f"{file}:")


def _as_ids(ids: np.ndarray, what: str) -> np.ndarray:
    """Fixed-width bytes; str that is ASCII will do."""
    if ids.ndim != 1 or ids.dtype.kind not in "SU":
        raise ValueError(f"{what} ids are bytes, [count], not {ids.dtype} of shape {ids.shape}")
    return ids.astype("S")
