"""Items that come again, by their hashes: duplicate pairs, and negatives that are likely false."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from data_pipelines.validate.scan import LISTED, Finding, Scan

HASH = "S16"  # compared byte by byte; all are 16 long, so that zeros at the end do no harm


class Share(NamedTuple):
    """Rows that a kind of false negative concerns, and its share of in-batch negatives."""

    rows: int
    of_rows: float
    of_negatives: float


class Repeats(NamedTuple):
    """Numbers of different items, and likely false negatives.

    Attributes:
      same_target: rows whose target another query has, too.
      same_query: rows whose query has another positive, too.
    """

    queries: int
    targets: int
    same_target: Share
    same_query: Share


def repeats(scan: Scan, finding: Callable[[int, str], Finding]) -> Repeats:
    """Counts what comes again; the rows concerned are added to `scan.findings`.

    Args:
      finding: of the number of a row, through all sources, and a reason.
    """
    numbers = np.flatnonzero(scan.usable)
    sides = (scan.queries, scan.positives, scan.negatives)
    hashes = np.concatenate([np.frombuffer(side, HASH) for side in sides])
    distinct, code = np.unique(hashes, return_inverse=True)
    items = len(distinct)
    del hashes, distinct  # the most that is held; from here on an item is its number
    query, positive, negative = np.split(code, [len(numbers), 2 * len(numbers)])
    is_target = np.zeros(items, np.bool_)
    is_target[positive] = is_target[negative] = True

    pair = query * items + positive
    pairs, first, inverse, copies = np.unique(
        pair, return_index=True, return_inverse=True, return_counts=True
    )
    of_query, of_positive = np.divmod(pairs, max(items, 1))
    positives = np.bincount(of_query, minlength=items)[query]
    queries = np.bincount(of_positive, minlength=items)[positive]

    def place(index: int) -> str:
        return finding(int(numbers[index]), "").row

    def add(kind: str, where: Bool[np.ndarray, " n"], reason: Callable[[int], str]) -> None:
        rows = np.flatnonzero(where).tolist()
        for index in rows[:LISTED]:
            scan.findings[kind].add(finding(int(numbers[index]), reason(index)))
        scan.findings[kind].count += len(rows[LISTED:])

    add(
        "duplicate_pairs",
        first[inverse] != np.arange(len(pair)),
        lambda index: f"the pair of {place(first[inverse[index]])} again",
    )

    def target_at(index: int) -> str:
        at = np.flatnonzero(positive == query[index])
        return (
            f"its query is the positive of {place(at[0])}" if len(at) else "its query is a negative"
        )

    add("queries_that_are_targets", is_target[query], target_at)

    def other(index: int) -> str:
        at = np.flatnonzero((query == query[index]) & (positive != positive[index]))
        return f"the query of {place(at[0])}, with another positive"

    add("queries_with_several_positives", positives > 1, other)
    return Repeats(
        queries=len(np.unique(query)),
        targets=int(is_target.sum()),
        same_target=_share(queries > 1, positive, copies),
        same_query=_share(positives > 1, query, copies),
    )


def _share(
    where: Bool[np.ndarray, " n"], item: Int[np.ndarray, " n"], copies: Int[np.ndarray, " pairs"]
) -> Share:
    """Rows concerned, and the chance that two rows share this item, and not the pair."""
    count = len(where)
    shared = int((np.unique(item, return_counts=True)[1].astype(np.int64) ** 2).sum())
    shared -= int((copies.astype(np.int64) ** 2).sum())
    others = max(count * (count - 1), 1)
    return Share(int(where.sum()), int(where.sum()) / max(count, 1), shared / others)
