"""On-disk store of one model's evaluation vectors, in blocks, looked up by item hash.

    <folder>/<of>/of.json      what a vector follows from, beside its item; <of> is a hash of it
    <folder>/<of>/<name>.ids   bytes [rows]: of which item each row is the vector
    <folder>/<of>/<name>.npy   float32 [rows, D]; written last, so that its block is whole

Blocks are those of `data.embedding_store_writer`, but for their names: nobody knows how many there
will be, and several runs may write at the same time. A name is a hash of the block's content.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Float32

import unime_jax
from unime_jax import files
from unime_jax.data.embedding_store import MAPPED, load_array, open_matrix

RECORD = "of.json"
MOST_BYTES = 16 << 30  # of the user's own folder; models that were not used for longest go first
LEFT_OVER = 24 * 3600  # seconds, after which a half-written file is nobody's
ROW_BITS = 32  # of a place: the number of a block, then that of a row
# What makes vectors of items: a cache of other code is another one.
CODE = ("backbones", "data", "inference", "models", "batch.py", "embedder.py", "paths.py")


class VectorCache:
    """Vectors of one model by item id; it forgets rather than fails.

    Without room for more blocks it says so once, and keeps what it has. A block that is damaged is
    set aside, and its items are not known any more.
    """

    def __init__(self, folder: pathlib.Path, dimension: int, *, takes_more: bool = True):
        """`folder`: of the model; `dimension`: D; `takes_more`: False where it is only read."""
        self.folder, self._dimension = folder, dimension
        self._places: dict[bytes, int] = {}  # by id: block << ROW_BITS | row
        self._blocks: list[pathlib.Path] = []
        self._checked: set[int] = set()  # blocks whose content is that of their name
        self._open = functools.lru_cache(maxsize=MAPPED)(open_matrix)
        self._takes_more = takes_more
        for path in _oldest_first(folder.glob("*.npy")):
            try:
                ids = load_array(path.with_suffix(".ids"))
                if ids.dtype != "S32" or ids.ndim != 1:
                    raise ValueError(f"ids are {ids.dtype} of shape {ids.shape}")
            except (OSError, ValueError, EOFError) as error:
                files.set_aside(path, error)
                continue
            self._register(path, ids.tolist())

    def __len__(self) -> int:
        return len(self._places)

    def read(
        self, ids: Sequence[bytes]
    ) -> tuple[Bool[np.ndarray, " n"], Float32[np.ndarray, "n D"]]:
        """Which items are known, and their vectors; rows of others are not set."""
        known = np.zeros(len(ids), bool)
        vectors = np.empty((len(ids), self._dimension), np.float32)
        places = np.array([self._places.get(id, -1) for id in ids], np.int64)
        blocks, rows = places >> ROW_BITS, places & (2**ROW_BITS - 1)
        for block in np.unique(blocks[places >= 0]).tolist():
            matrix = self._matrix(block)
            if matrix is not None:
                here = np.flatnonzero(blocks == block)
                vectors[here], known[here] = matrix[rows[here]], True
        return known, vectors

    def add(self, ids: Sequence[bytes], vectors: Float32[np.ndarray, "n D"]) -> None:
        """Writes those that are new as one block; vectors that are not finite are not kept."""
        finite = np.isfinite(vectors).all(axis=1)
        first: dict[bytes, int] = {}
        for number, id in enumerate(ids):
            if finite[number] and id not in self._places:
                first.setdefault(id, number)
        if not first or not self._takes_more:
            return
        kept, rows = np.array(list(first), "S32"), vectors[list(first.values())]
        path = self.folder / f"{_digest(kept, rows)}.npy"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _save(path.with_suffix(".ids"), kept)
            _save(path, rows)
        except OSError as error:
            self._takes_more = False
            logging.warning(
                "%s takes no more vectors (%s): they are encoded again by the next run. Make room "
                "there, or name another folder by config.evaluation.cache",
                self.folder,
                error.strerror or error,
            )
            return
        self._checked.add(len(self._blocks))
        self._register(path, kept.tolist())

    def _register(self, path: pathlib.Path, ids: Sequence[bytes]) -> None:
        start = len(self._blocks) << ROW_BITS
        self._blocks.append(path)
        for row, id in enumerate(ids):
            self._places.setdefault(id, start + row)

    def _matrix(self, block: int) -> np.ndarray | None:
        """A block's vectors, mapped into memory; None if it is damaged, or gone."""
        path = self._blocks[block]
        try:
            matrix = self._open(path)
            if block not in self._checked:
                ids = load_array(path.with_suffix(".ids"))
                if matrix.shape != (len(ids), self._dimension):
                    raise ValueError(f"vectors {matrix.shape} for {len(ids)} ids")
                if _digest(ids, matrix) != path.stem:
                    raise ValueError("its content is not what was written")
                self._checked.add(block)
        except (OSError, ValueError, EOFError) as error:
            if path.exists():
                files.set_aside(path, error)
            places = self._places.items()
            self._places = {id: place for id, place in places if place >> ROW_BITS != block}
            return None
        return matrix


def folder_of(setting: str) -> pathlib.Path | None:
    """The folder that a config asks for, "auto": below $XDG_CACHE_HOME (~/.cache); None: none."""
    if setting != "auto":
        return pathlib.Path(setting).expanduser() if setting else None
    try:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError as error:  # without a home directory
        logging.info("vectors of evaluation items are not kept: %s", error)
        return None
    return pathlib.Path(home, "unime_jax", "vectors")


def open_cache(setting: str, of: Mapping[str, Any], dimension: int) -> VectorCache | None:
    """The cache of a model; None where `setting` asks for none.

    Args:
      setting: a folder, "auto" or "", see `folder_of`. What is "auto" is bounded, see `MOST_BYTES`.
      of: all that a vector follows from, beside its item, as JSON; this package's code is added.
    """
    home = folder_of(setting)
    if home is None:
        return None
    record = json.dumps({**of, "code": _digest_of_code()}, indent=2, sort_keys=True)
    folder = home / hashlib.blake2b(record.encode(), digest_size=16).hexdigest()
    takes_more = True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RECORD).exists():
            files.write_whole(folder / RECORD, record + "\n")
        os.utime(folder)  # used now
        with contextlib.suppress(FileNotFoundError):  # another run was faster
            _tidy(folder)
            if setting == "auto":
                _trim(home, folder)
    except OSError as error:
        takes_more = False
        logging.warning(
            "vectors of evaluation items cannot be kept in %s: %s. Name a folder that can be "
            "written by config.evaluation.cache",
            folder,
            error.strerror or error,
        )
    cache = VectorCache(folder, dimension, takes_more=takes_more)
    logging.info("vectors of %d evaluation items are kept in %s", len(cache), folder)
    return cache


def _tidy(folder: pathlib.Path) -> None:
    """Removes what runs that were killed have left half-written."""
    for path in folder.glob("*.tmp"):
        if path.stat().st_mtime < time.time() - LEFT_OVER:
            path.unlink(missing_ok=True)


def _trim(home: pathlib.Path, used: pathlib.Path) -> None:
    """Removes models beyond `MOST_BYTES`, those first that were not used for longest."""
    models = sorted(
        (folder.stat().st_mtime, folder) for folder in home.iterdir() if folder.is_dir()
    )
    sizes = {folder: _size(folder) for _, folder in models}
    total = sum(sizes.values())
    for _, folder in models:
        if total <= MOST_BYTES:
            return
        if folder != used:
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _oldest_first(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """What was computed first counts, where two runs have encoded an item at the same time."""
    times: list[tuple[int, pathlib.Path]] = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another run has set it aside
            times.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(times)]


def _digest(ids: np.ndarray, vectors: np.ndarray) -> str:
    digest = hashlib.blake2b(ids.tobytes(), digest_size=16)
    digest.update(np.ascontiguousarray(vectors).data.cast("B"))
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _digest_of_code() -> str:
    root = pathlib.Path(unime_jax.__file__).parent
    sources = [file for name in CODE for file in (root / name).rglob("*.py")]
    sources += [root / name for name in CODE if name.endswith(".py")]
    digest = hashlib.blake2b(unime_jax.__version__.encode(), digest_size=16)
    for file in sorted(sources):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _save(file: pathlib.Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    files.write_whole(file, content.getbuffer())
