"""Items that come again, by their hashes: duplicate pairs, and negatives that are likely false."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from data_pipelines.validate.scan import LISTED, Finding, Scan

HASH = "S16"  # compared byte by byte; all are 16 long, so that zeros at the end do no harm
PARTS = 64  # of the hashes, which are sorted one after another: a sort holds them many times


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

    The hashes of `scan` are dropped.

    Args:
      finding: of the number of a row, through all sources, and a reason.
    """
    numbers = np.flatnonzero(scan.usable)
    (query, positive, negative), items = _numbered((scan.queries, scan.positives, scan.negatives))
    scan.queries = scan.positives = scan.negatives = bytearray()  # an item is its number now
    is_target = np.zeros(items, np.bool_)
    is_target[positive] = is_target[negative] = True
    del negative
    pairs = _pairs(query, positive, items)
    positives = np.bincount(pairs.query, minlength=items) > 1
    queries = np.bincount(pairs.positive, minlength=items) > 1

    def place(index: int) -> str:
        return finding(int(numbers[index]), "").row

    def add(kind: str, where: Bool[np.ndarray, " n"], reason: Callable[[int], str]) -> None:
        rows = np.flatnonzero(where).tolist()
        for index in rows[:LISTED]:
            scan.findings[kind].add(finding(int(numbers[index]), reason(index)))
        scan.findings[kind].count += len(rows[LISTED:])

    add(
        "duplicate_pairs",
        pairs.again,
        lambda index: f"the pair of {place(_earlier(query, positive, index))} again",
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

    add("queries_with_several_positives", positives[query], other)
    return Repeats(
        queries=int(np.count_nonzero(np.bincount(query))),
        targets=int(is_target.sum()),
        same_target=_share(queries[positive], positive, pairs.same),
        same_query=_share(positives[query], query, pairs.same),
    )


def _numbered(sides: Sequence[bytearray]) -> tuple[list[Int[np.ndarray, " _"]], int]:
    """Numbers of the items of each side by their hashes, equal where those are; how many items."""
    hashes = [np.frombuffer(side, HASH) for side in sides]
    parts = [np.frombuffer(side, np.uint8)[::16] % PARTS for side in sides]
    numbers = [np.empty(len(own), _integer(sum(map(len, hashes)))) for own in hashes]
    items = 0
    for part in range(PARTS):
        where = [np.flatnonzero(own == part) for own in parts]
        both = np.concatenate([own[at] for own, at in zip(hashes, where)])
        distinct, code = np.unique(both, return_inverse=True)
        ends = np.cumsum([len(at) for at in where])
        for own, at, codes in zip(numbers, where, np.split(code, ends[:-1])):
            own[at] = codes + items
        items += len(distinct)
    return numbers, items


class _Pairs(NamedTuple):
    """Distinct pairs of a query and a positive.

    Attributes:
      query, positive: of each pair.
      again: rows whose pair an earlier row has.
      same: how often two rows, in order and also the same one twice, have one pair.
    """

    query: Int[np.ndarray, " pairs"]
    positive: Int[np.ndarray, " pairs"]
    again: Bool[np.ndarray, " n"]
    same: int


def _pairs(query: Int[np.ndarray, " n"], positive: Int[np.ndarray, " n"], items: int) -> _Pairs:
    pair = query.astype(np.int64) * items + positive
    order = np.argsort(pair, kind="stable")
    pair = pair[order]
    is_new = np.ones(len(pair), np.bool_)
    is_new[1:] = pair[1:] != pair[:-1]
    again = np.zeros(len(pair), np.bool_)
    again[order[~is_new]] = True
    del order
    copies = np.diff(np.flatnonzero(is_new), append=len(pair))
    same = int(copies @ copies)
    del copies
    kind = query.dtype
    of_query, of_positive = np.divmod(pair[is_new], max(items, 1))
    return _Pairs(of_query.astype(kind), of_positive.astype(kind), again, same)


def _earlier(query: Int[np.ndarray, " n"], positive: Int[np.ndarray, " n"], index: int) -> int:
    """The first row that has the pair of another one."""
    return int(np.argmax((query == query[index]) & (positive == positive[index])))


def _integer(count: int) -> type[np.signedinteger[Any]]:
    """The smaller type that has room for so many numbers."""
    return np.int32 if count < 2**31 else np.int64


def _share(where: Bool[np.ndarray, " n"], item: Int[np.ndarray, " n"], same_pair: int) -> Share:
    """Rows concerned, and the chance that two rows share this item, and not the pair."""
    count = len(where)
    each = np.bincount(item)
    shared = int(each @ each) - same_pair
    others = max(count * (count - 1), 1)
    return Share(int(where.sum()), int(where.sum()) / max(count, 1), shared / others)
