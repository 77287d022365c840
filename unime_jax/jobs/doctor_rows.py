"""A sample of training rows as a run reads them: what each has, what is wrong, and its lengths."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from data_pipelines.validate.repeats import Repeats, repeats
from data_pipelines.validate.scan import Finding, Findings, Opened, Scan, scan
from unime_jax.data import length_sample
from unime_jax.data.embedding_store import item_id
from unime_jax.data.formats import Source
from unime_jax.data.packing import Preprocess
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import to_example


@dataclasses.dataclass(frozen=True)
class Picked:
    """Some rows of a source, which keep their numbers."""

    source: Source
    numbers: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.source[self.numbers[index]]

    def row_id(self, index: int) -> str:
        """Where a row stands."""
        row_id: Callable[[int], str] | None = getattr(
            getattr(self.source, "rows", self.source), "row_id", None
        )
        number = self.numbers[index]
        return (row_id(number) if row_id else "") or f"row {number}"


class Pair(NamedTuple):
    """What a usable row has; items by their ids."""

    source: str
    query: bytes
    positive: bytes
    negatives: tuple[bytes, ...]
    scored: bool
    graded: bool


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows that were looked at.

    Attributes:
      rows: of each source, all that there are.
      weights: how often each source is drawn.
      looked: rows of each source that are in the sample.
      pairs: those that can be used.
      findings: what is wrong with rows, by kind of `data_pipelines.validate`.
      repeated: what comes again.
      sizes: [n, 2]: tokens and tiles of the items; none without a backbone.
      unusable: rows of each source that training would leave out.
    """

    rows: dict[str, int]
    weights: dict[str, float]
    looked: dict[str, int]
    pairs: list[Pair]
    findings: Mapping[str, Findings]
    repeated: Repeats
    sizes: Int[np.ndarray, "n 2"]
    unusable: dict[str, int]

    @property
    def total(self) -> int:
        """Rows that were looked at."""
        return sum(self.looked.values())


def read(
    path: str,
    sources: Mapping[str, Source],
    weights: Mapping[str, float],
    preprocess: Preprocess | None,
    count: int,
    seed: int,
) -> Sample:
    """About so many rows, of each source by how often it is drawn.

    They follow from data, weights and `seed`. Images are decoded.

    Args:
      path: of the data, as the config names it.
      preprocess: that of the run; None: lengths are left out.
    """
    total = sum(weights.values())
    opened = []
    for name in sorted(weights):
        size = math.ceil(count * weights[name] / total)
        numbers = length_sample.sample_rows(name, len(sources[name]), size, seed)
        opened.append(Opened(path, name, Picked(sources[name], sorted(numbers))))
    ends = np.cumsum([len(each.rows) for each in opened])
    measured = np.full(int(ends[-1]), preprocess is not None)
    result = scan(opened, preprocess, measured, lambda done: None)
    unusable = _unusable(opened, result)
    sizes = [size for size, times in result.sizes.items() for _ in range(times)]

    def finding(number: int, reason: str) -> Finding:
        at = int(np.searchsorted(ends, number, side="right"))
        return opened[at].finding(number - int(ends[at]) + len(opened[at].rows), reason)

    return Sample(
        rows={name: len(sources[name]) for name in weights},
        weights=dict(weights),
        looked={each.name: len(each.rows) for each in opened},
        pairs=[pair for each in opened for pair in _pairs(each)],
        findings=result.findings,
        repeated=repeats(result, finding),
        sizes=np.array(sizes, int).reshape(-1, 2),
        unusable=unusable,
    )


def _unusable(opened: list[Opened], result: Scan) -> dict[str, int]:
    """Rows of each source that cannot be used."""
    counts, start = {}, 0
    for each in opened:
        end = start + len(each.rows)
        counts[each.name] = int((~result.usable[start:end]).sum())
        start = end
    return counts


def _pairs(opened: Opened) -> list[Pair]:
    identity = functools.cache(item_id)
    pairs = []
    for index in range(len(opened.rows)):
        try:
            example = to_example(opened.name, opened.rows[index], str(index))
        except BadExample:
            continue
        pairs.append(
            Pair(
                opened.name,
                identity(example.query),
                identity(example.positive),
                tuple(identity(item) for item in example.negatives),
                bool(example.scores),
                example.grade is not None,
            )
        )
    return pairs
