"""Rows that are mined for, as numbers of queries and candidates: positives, negatives, pools."""

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from unime_jax.data.formats import Source
from unime_jax.data.items import Items, Pairs
from unime_jax.data.mined_table import row_digest
from unime_jax.data.mining_corpus import Documents

NONE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Lists of numbers: list i is value[offset[i] : offset[i + 1]]."""

    value: Int32[np.ndarray, " values"]
    offset: Int64[np.ndarray, " offsets"]

    def __getitem__(self, index: int) -> Int32[np.ndarray, " n"]:
        return self.value[self.offset[index] : self.offset[index + 1]]


@dataclasses.dataclass(frozen=True, eq=False)
class MiningRows:
    """All rows, source after source by name; those that cannot be used have no query.

    Attributes:
      queries: distinct queries; equal ones of several rows are one item.
      candidates: distinct targets, then items of the corpus.
      start: the first row of each source.
      query: int32 [rows], its number in `queries`; -1: the row cannot be used.
      positive: int32 [rows], its number in `candidates`.
      negatives: a row's own, numbers in `candidates`.
      positives: of each query, over all rows that have it.
      same: int32 [queries], the candidate that is the query itself, -1: none.
      digest: uint64 [rows], `mined_table.row_digest`; 0: the row cannot be used.
    """

    queries: Items
    candidates: Items
    start: Mapping[str, int]
    query: Int32[np.ndarray, " rows"]
    positive: Int32[np.ndarray, " rows"]
    negatives: Groups
    positives: Groups
    same: Int32[np.ndarray, " queries"]
    digest: UInt64[np.ndarray, " rows"]

    def excluded(self, row: int, *, own_negatives: bool) -> Int32[np.ndarray, " n"]:
        """Candidates that are never a row's negatives: targets of equal queries, and the query.

        own_negatives: those that the row has may be mined; else they are excluded, too.
        """
        query = self.query[row]
        parts = [self.positives[query], self.same[query : query + 1]]
        if not own_negatives:
            parts.append(self.negatives[row])
        return np.concatenate(parts)

    def pool(self, begin: int, end: int) -> Int32[np.ndarray, " M"]:
        """Candidates of the sources from `begin` to `end`, which is none of them, ascending."""
        source = self.candidates.occurrences[:, 0]
        return np.unique(self.candidates.occurrences[(begin <= source) & (source < end), 3])

    def fingerprints(self) -> dict[str, str]:
        """A hash of all items of each source, in order."""
        return {
            name: hashlib.blake2b(
                self.digest[begin:end].tobytes() + self.negatives_of(begin, end), digest_size=16
            ).hexdigest()
            for (name, begin), end in zip(
                self.start.items(), [*list(self.start.values())[1:], len(self.query)], strict=True
            )
        }

    def negatives_of(self, begin: int, end: int) -> bytes:
        """The ids of the negatives of some rows."""
        offset = self.negatives.offset
        return self.candidates.ids[self.negatives.value[offset[begin] : offset[end]]].tobytes()

    def corpus_fingerprint(self) -> str:
        """A hash of all items of the corpus, in order."""
        occurrences = self.candidates.occurrences
        own = occurrences[occurrences[:, 0] >= len(self.start), 3]
        return hashlib.blake2b(self.candidates.ids[own].tobytes(), digest_size=16).hexdigest()


def read_rows(sources: Mapping[str, Source], corpus: Mapping[str, Source]) -> MiningRows:
    """Reads all rows once for their queries, and once for their targets; ids alone are kept.

    Args:
      sources: the rows by source.
      corpus: candidates in the place of the rows' own negatives; empty: none.
    """
    names = sorted(sources)
    queries = Items([Pairs(name, sources[name], ("query",)) for name in names])
    targets = [Pairs(name, sources[name], ("positive", "negatives")) for name in names]
    documents = [Documents(name, corpus[name]) for name in sorted(corpus)]
    candidates = Items([*targets, *documents])
    counts = [len(sources[name]) for name in names]
    starts = np.cumsum([0, *counts])
    rows = int(starts[-1])
    query, positive = np.full((2, rows), NONE, np.int32)
    at = queries.occurrences
    query[starts[at[:, 0]] + at[:, 1]] = at[:, 3]
    at = candidates.occurrences[candidates.occurrences[:, 0] < len(names)]
    flat = starts[at[:, 0]] + at[:, 1]
    first = at[:, 2] == 0
    positive[flat[first]] = at[first, 3]
    digest = np.zeros(rows, np.uint64)
    for row in np.flatnonzero((query >= 0) & (positive >= 0)).tolist():
        ids = bytes(queries.ids[query[row]]), bytes(candidates.ids[positive[row]])
        digest[row] = row_digest(*ids)
    usable = np.flatnonzero(positive >= 0)
    return MiningRows(
        queries=queries,
        candidates=candidates,
        start=dict(zip(names, starts.tolist())),
        query=query,
        positive=positive,
        negatives=_groups(flat[~first], at[~first, 3], rows),
        positives=_groups(query[usable], positive[usable], len(queries)),
        same=_same(queries.ids, candidates.ids),
        digest=digest,
    )


def _groups(key: np.ndarray, value: np.ndarray, count: int) -> Groups:
    """Distinct values of each of `count` keys."""
    pairs = np.unique(np.column_stack([key, value]).astype(np.int64).reshape(-1, 2), axis=0)
    offset = np.searchsorted(pairs[:, 0], np.arange(count + 1))
    return Groups(pairs[:, 1].astype(np.int32), offset.astype(np.int64))


def _same(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The number of the candidate with the id of each query, -1: none."""
    order = np.argsort(candidates, kind="stable")
    ordered = candidates[order]
    place = np.minimum(np.searchsorted(ordered, queries), max(len(ordered) - 1, 0))
    if not len(ordered):
        return np.full(len(queries), NONE, np.int32)
    return np.where(ordered[place] == queries, order[place], NONE).astype(np.int32)
