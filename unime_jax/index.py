"""Exact search among stored embeddings by cosine, on this process's devices."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Float32, Int

from unime_jax import files, sharding
from unime_jax.data.embedding_store import RECORD, open_embeddings, save_array
from unime_jax.data.truncation import unit_rows
from unime_jax.evaluation.mining import corpus_search

QUERIES = 1024  # that are searched at once
BLOCK = 2**26  # numbers of the vectors on the devices at once: 256 MiB in float32
COPIED = 2**26  # numbers that are copied at once into a folder

Reader = Callable[[Int[np.ndarray, " rows"]], Float32[np.ndarray, "rows D"]]


class Hit(NamedTuple):
    """What a search brings back: an entry's id, and its cosine with the query."""

    id: str
    score: float


class Index:
    """Embeddings by id, and the search for the nearest of them; `len` counts them.

        index = Index(embedder.encode(items), ids)
        for hit in index.search(embedder.encode(["a red circle"]), 10)[0]:
            ...
        index.save("runs/index")
        index = Index.load("runs/index")  # vectors stay on disk until a search reads them

    A search compares a query with every entry. Scores are rounded sums in float64 and ties stand in
    the order of the entries, so that results depend neither on devices nor on blocks.

    Attributes:
      ids: of the entries, in the order in which they were added.
      dimension: D.
    """

    def __init__(
        self,
        vectors: Float[np.ndarray, "n D"],
        ids: Sequence[str] | None = None,
        *,
        mesh: Mesh | None = None,
    ):
        """Takes vectors of any length as they are, without a copy; a memory map stays one.

        Args:
          ids: one of its own for each vector; None: "0", "1", ...
          mesh: of this process's own devices, which share the work; None: all of them.

        Raises:
          ValueError: vectors are not [n, D] finite floats, or ids are not as many, or not distinct.
        """
        self.ids: list[str] = []
        self._known: set[str] = set()
        self._readers: list[Reader] = []
        self._ends = np.zeros(0, np.int64)
        self.dimension = vectors.shape[-1] if np.ndim(vectors) else 0
        self._mesh = sharding.make_mesh(1, -1, 1, jax.local_devices()) if mesh is None else mesh
        self.add(vectors, ids)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, vectors: Float[np.ndarray, "n D"], ids: Sequence[str] | None = None) -> None:
        """Appends entries, see `__init__`; nothing is added if it raises."""
        matrix = np.asarray(vectors)
        if matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.shape[1]:
            raise ValueError(
                f"vectors have shape {matrix.shape} and dtype {matrix.dtype}; they must be"
                " [entries, dimension] floats, as `Embedder.encode` returns them"
            )
        if matrix.shape[1] != self.dimension:
            raise ValueError(
                f"vectors have {matrix.shape[1]} dimensions, those of the index {self.dimension};"
                " embed all by one model, and with one `truncate_dim`"
            )
        step = max(1, COPIED // self.dimension)
        for start in range(0, len(matrix), step):
            finite = np.isfinite(matrix[start : start + step]).all(axis=1)
            if not finite.all():
                row = start + int(np.argmin(finite))
                raise ValueError(f"vectors[{row}] has values that are not finite")
        self._append(lambda rows: np.asarray(matrix[rows], np.float32), len(matrix), ids)

    def search(
        self,
        queries: Float[np.ndarray, "queries D"],
        k: int = 10,
        *,
        where: Bool[np.ndarray, " n"] | None = None,
    ) -> list[list[Hit]]:
        """The k entries with the largest cosines for each query, the best first.

        They are fewer where the index, or what `where` leaves of it, has fewer.

        Args:
          where: whether each entry, in the order of `ids`, may be found; None: all may.

        Raises:
          ValueError: `queries` are not [queries, D] finite floats, `where` is not [n] booleans, or
            `k` is below 1.
        """
        wanted = np.asarray(queries)
        if wanted.ndim != 2 or wanted.dtype.kind != "f" or wanted.shape[1] != self.dimension:
            raise ValueError(
                f"queries have shape {wanted.shape} and dtype {wanted.dtype}; they must be"
                f" [queries, {self.dimension}] floats, as `Embedder.encode` returns them"
            )
        if not np.isfinite(wanted).all():
            raise ValueError("queries have values that are not finite")
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        number = np.arange(len(self), dtype=np.int32)
        if where is not None:
            kept = np.asarray(where)
            if kept.shape != (len(self),) or kept.dtype != bool:
                raise ValueError(
                    f"where has shape {kept.shape} and dtype {kept.dtype}; it must be"
                    f" [{len(self)}] booleans, one for each entry"
                )
            number = number[kept]
        corpus = corpus_search.Corpus(
            number, self._unit_vectors, self._mesh, max(1, BLOCK // self.dimension)
        )
        hits: list[list[Hit]] = []
        count = min(k, max(1, len(number)))
        for start in range(0, len(wanted), QUERIES):
            part = unit_rows("queries", wanted[start : start + QUERIES])
            no_limit = np.full(len(part), np.inf, np.float32)
            nothing = [np.zeros(0, np.int32)] * len(part)
            best = corpus_search.search(part, no_limit, nothing, corpus, count)
            hits += [
                [Hit(self.ids[n], s) for n, s in zip(*row, strict=True) if n >= 0]
                for row in zip(*(x.tolist() for x in best), strict=True)
            ]
        return hits

    def vectors(self, rows: Int[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows D"]:
        """Copies of entries' vectors as they were added, by their places in `ids`."""
        out = np.empty((len(rows), self.dimension), np.float32)
        part = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(part):
            here = np.flatnonzero(part == number)
            first = self._ends[number - 1] if number else 0
            out[here] = self._readers[number](rows[here] - first)
        return out

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `vectors.npy`, float32 [n, D], and `ids.npy`, UTF-8 bytes [n].

        The folder appears, or takes the place of an earlier one of an index, when it is whole.

        Raises:
          ValueError: the index is empty, or the folder is there, and `save` did not write it.
        """
        target = files.as_path(os.fspath(folder))
        if not len(self):
            raise ValueError("the index has no entry; add some before it is saved")
        if target.exists() and not _is_own(target):
            raise ValueError(f"{target} exists, and no index wrote it; take another folder")
        with files.replacing(target, last="ids.npy") as partial:
            _write_vectors(partial / "vectors.npy", self)
            save_array(partial / "ids.npy", np.array([id.encode() for id in self.ids], "S"))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, mesh: Mesh | None = None) -> "Index":
        """Opens what `save` or job embed wrote; vectors are mapped into memory, not read.

        Ids of job embed's folders are `embedding_store.item_id` of the items.

        Raises:
          ValueError: it is no such folder, or damaged.
        """
        stored = open_embeddings(os.fspath(folder))
        index = cls(np.zeros((0, stored.dimension), np.float32), mesh=mesh)
        index._append(stored.at, len(stored), [id.decode() for id in stored.ids.tolist()])
        return index

    def _append(self, reader: Reader, count: int, ids: Sequence[str] | None) -> None:
        before = len(self)
        ids = [str(before + n) for n in range(count)] if ids is None else list(ids)
        if len(ids) != count:
            raise ValueError(f"there are {len(ids)} ids for {count} vectors")
        own: set[str] = set()
        for number, id in enumerate(ids):
            if not isinstance(id, str) or not id or "\0" in id:
                raise ValueError(f"ids[{number}] is {id!r}; it must be a str, not empty, no NUL")
            if id in own or id in self._known:
                raise ValueError(f"ids[{number}] is {id!r}, as of an entry before it")
            own.add(id)
        self.ids += ids
        self._known |= own
        self._readers.append(reader)
        self._ends = np.append(self._ends, before + count)

    def _unit_vectors(self, rows: Int[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows D"]:
        return unit_rows("vectors", self.vectors(rows))


def _is_own(folder: files.Path) -> bool:
    """Whether a folder is as `Index.save` writes it; what job embed wrote has a record, too."""
    return (folder / "ids.npy").exists() and not (folder / RECORD).exists()


def _write_vectors(file: pathlib.Path, index: Index) -> None:
    """All vectors of an index, part by part."""
    shape = len(index), index.dimension
    matrix = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    step = max(1, COPIED // index.dimension)
    for start in range(0, len(index), step):
        rows = np.arange(start, min(start + step, len(index)))
        matrix[rows] = index.vectors(rows)
    matrix.flush()
