"""Exact search among stored embeddings, by cosine or sign bits, on this process's devices."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Float32, Int, Int32

from unime_jax import files, sharding
from unime_jax.data import index_files
from unime_jax.data.index_files import Reader
from unime_jax.data.quantized_vectors import BITS, STEPS, Codes, Precision, Quantization
from unime_jax.data.truncation import unit_rows
from unime_jax.evaluation.mining import corpus_search, hamming

QUERIES = 1024  # that are searched at once
BLOCK = 2**26  # numbers of the vectors on the devices at once: 256 MiB in float32
CHECKED = 2**26  # numbers that are checked or coded at once


class Hit(NamedTuple):
    """What a search brings back: an entry's id, and its score with the query."""

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
    the order of the entries, so that results depend neither on devices nor on blocks. Entries may
    be kept in fewer bits (`precision`): a search then is exact among what these stand for.

    Attributes:
      ids: of the entries, in the order in which they were added.
      dimension: D.
      quantization: how entries are kept.
    """

    def __init__(
        self,
        vectors: Float[np.ndarray, "n D"] | Codes,
        ids: Sequence[str] | None = None,
        *,
        precision: Precision = "float32",
        ranges: Float[np.ndarray, "2 D"] | None = None,
        mesh: Mesh | None = None,
    ):
        """Takes vectors of any length as they are, without a copy; a memory map stays one.

        Args:
          vectors: floats; or codes that `encode(..., precision=, ranges=)` gave with the same
            precision and ranges.
          ids: one of its own for each vector; None: "0", "1", ...
          precision: that entries are kept in. Floats are coded where it is not float32, which
            copies them.
          ranges: of int8 and uint8, see `quantized_vectors.ranges_of`.
          mesh: of this process's own devices, which share the work; None: all of them.

        Raises:
          ValueError: vectors are not [n, D] finite floats, nor such codes, or ids are not as many,
            or not distinct.
        """
        self.ids: list[str] = []
        self._known: set[str] = set()
        self._readers: list[Reader] = []
        self._ends = np.zeros(0, np.int64)
        width = vectors.shape[-1] if np.ndim(vectors) else 0
        is_code = precision in BITS and np.asarray(vectors[:0]).dtype.kind != "f"
        self.quantization = Quantization(precision, 8 * width if is_code else width, ranges)
        self._mesh = sharding.make_mesh(1, -1, 1, jax.local_devices()) if mesh is None else mesh
        self.add(vectors, ids)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """D, of the vectors that were coded."""
        return self.quantization.dimension

    def add(
        self, vectors: Float[np.ndarray, "n D"] | Codes, ids: Sequence[str] | None = None
    ) -> None:
        """Appends entries, see `__init__`; nothing is added if it raises."""
        kind, matrix = self.quantization, np.asarray(vectors)
        if matrix.ndim == 2 and kind.precision in (*BITS, *STEPS) and matrix.dtype == kind.dtype:
            if matrix.shape[1] != kind.width:
                raise ValueError(
                    f"codes have {matrix.shape[1]} bytes, those of the index {kind.width}"
                )
            self._append(lambda rows: matrix[rows], len(matrix), ids)
            return
        if matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.shape[1]:
            raise ValueError(
                f"vectors have shape {matrix.shape} and dtype {matrix.dtype}; they must be"
                " [entries, dimension] floats, as `Embedder.encode` returns them, or codes of the"
                f" index's precision {kind.precision!r}"
            )
        if matrix.shape[1] != self.dimension:
            raise ValueError(
                f"vectors have {matrix.shape[1]} dimensions, those of the index {self.dimension};"
                " embed all by one model, and with one `truncate_dim`"
            )
        step = max(1, CHECKED // self.dimension)
        is_kept = kind.precision == "float32" or matrix.dtype == kind.dtype
        codes = matrix if is_kept else np.empty((len(matrix), kind.width), kind.dtype)
        for start in range(0, len(matrix), step):
            part = matrix[start : start + step]
            finite = np.isfinite(part).all(axis=1)
            if not finite.all():
                row = start + int(np.argmin(finite))
                raise ValueError(f"vectors[{row}] has values that are not finite")
            if not is_kept:
                codes[start : start + step] = kind.encode(part)
        self._append(lambda rows: np.asarray(codes[rows], kind.dtype), len(matrix), ids)

    def search(
        self,
        queries: Float[np.ndarray, "queries D"],
        k: int = 10,
        *,
        where: Bool[np.ndarray, " n"] | None = None,
        rescore_multiplier: int | None = None,
    ) -> list[list[Hit]]:
        """The k entries with the largest scores for each query, the best first.

        They are fewer where the index, or what `where` leaves of it, has fewer. A score is the
        cosine of a query with what is kept of an entry. Of sign bits it is the cosine of the signs
        of both, 1 - 2h/D for h bits that differ (the Hamming distance).

        Args:
          where: whether each entry, in the order of `ids`, may be found; None: all may.
          rescore_multiplier: of sign bits: so many times k entries with the fewest other bits are
            ordered by the cosine of the query itself with an entry's signs; None: none are.

        Raises:
          ValueError: `queries` are not [queries, D] finite floats, `where` is not [n] booleans,
            `k` is below 1, or there is nothing to rescore.
        """
        wanted = np.asarray(queries)
        if wanted.ndim != 2 or wanted.dtype.kind != "f" or wanted.shape[1] != self.dimension:
            raise ValueError(
                f"queries have shape {wanted.shape} and dtype {wanted.dtype}; they must be"
                f" [queries, {self.dimension}] floats, as `Embedder.encode` returns them of a list"
            )
        if not np.isfinite(wanted).all():
            raise ValueError("queries have values that are not finite")
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        has_bits = self.quantization.precision in BITS
        if rescore_multiplier is not None and (rescore_multiplier < 1 or not has_bits):
            raise ValueError(
                f"rescore_multiplier is {rescore_multiplier}, and precision"
                f" {self.quantization.precision!r}; it is at least 1, and of sign bits"
            )
        number = np.arange(len(self), dtype=np.int32)
        if where is not None:
            kept = np.asarray(where)
            if kept.shape != (len(self),) or kept.dtype != bool:
                raise ValueError(
                    f"where has shape {kept.shape} and dtype {kept.dtype}; it must be"
                    f" [{len(self)}] booleans, one for each entry"
                )
            number = number[kept]
        hits: list[list[Hit]] = []
        count = min(k, max(1, len(number)))
        for start in range(0, len(wanted), QUERIES):
            part = wanted[start : start + QUERIES]
            if has_bits:
                best = self._by_bits(part, number, count, rescore_multiplier)
            else:
                best = self._by_cosine(part, number, count)
            hits += [
                [Hit(self.ids[n], s) for n, s in zip(*row, strict=True) if n >= 0]
                for row in zip(*(x.tolist() for x in best), strict=True)
            ]
        return hits

    def vectors(self, rows: Int[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows D"]:
        """Copies of entries' vectors, as what is kept of them, by their places in `ids`."""
        return self.quantization.decode(self.codes(rows))

    def codes(self, rows: Int[np.ndarray, " rows"]) -> Codes:
        """Copies of entries as they are kept, by their places in `ids`."""
        out = np.empty((len(rows), self.quantization.width), self.quantization.dtype)
        part = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(part):
            here = np.flatnonzero(part == number)
            first = self._ends[number - 1] if number else 0
            out[here] = self._readers[number](rows[here] - first)
        return out

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `vectors.npy` and `ids.npy`, see `index_files`.

        The folder appears, or takes the place of an earlier one of an index, when it is whole.

        Raises:
          ValueError: the index is empty, or the folder is there, and `save` did not write it.
        """
        target = files.as_path(os.fspath(folder))
        index_files.save(target, self.quantization, self.ids, self.codes)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, mesh: Mesh | None = None) -> "Index":
        """Opens what `save` or job embed wrote; vectors are mapped into memory, not read.

        Ids of job embed's folders are `embedding_store.item_id` of the items.

        Raises:
          ValueError: it is no such folder, or damaged.
        """
        kind, ids, read = index_files.load(files.as_path(os.fspath(folder)))
        index = cls(
            np.zeros((0, kind.dimension), np.float32),
            precision=kind.precision,
            ranges=kind.ranges,
            mesh=mesh,
        )
        index._append(read, len(ids), ids)
        return index

    def _by_cosine(
        self, queries: Float[np.ndarray, "queries D"], number: Int32[np.ndarray, " M"], count: int
    ) -> tuple[Int32[np.ndarray, "queries count"], Float32[np.ndarray, "queries count"]]:
        """Numbers and scores of the best entries; -1: none."""
        corpus = corpus_search.Corpus(
            number, self._unit_vectors, self._mesh, max(1, BLOCK // self.dimension)
        )
        no_limit = np.full(len(queries), np.inf, np.float32)
        nothing = [np.zeros(0, np.int32)] * len(queries)
        return corpus_search.search(unit_rows("queries", queries), no_limit, nothing, corpus, count)

    def _by_bits(
        self,
        queries: Float[np.ndarray, "queries D"],
        number: Int32[np.ndarray, " M"],
        count: int,
        rescore_multiplier: int | None,
    ) -> tuple[Int32[np.ndarray, "queries count"], Float32[np.ndarray, "queries count"]]:
        """As `_by_cosine`, of sign bits."""
        kind = self.quantization
        nearest, distance = hamming.search(
            kind.packed(kind.encode(queries)),
            number,
            lambda rows: kind.packed(self.codes(rows)),
            min(count * (rescore_multiplier or 1), max(1, len(number))),
            mesh=self._mesh,
            columns=max(1, BLOCK // max(self.dimension, hamming.BITS)),
        )
        if rescore_multiplier is None:
            return nearest, (1 - 2 * distance / self.dimension).astype(np.float32)
        units = unit_rows("queries", queries)
        score = np.full(nearest.shape, -np.inf, np.float32)
        for row, own in enumerate(nearest):
            there = own >= 0
            signs = self._unit_vectors(own[there]).astype(np.float64)
            score[row, there] = signs @ units[row].astype(np.float64)
        order = np.lexsort((nearest, -score), axis=1)[:, :count]
        return np.take_along_axis(nearest, order, axis=1), np.take_along_axis(score, order, axis=1)

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
