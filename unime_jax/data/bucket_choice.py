"""Choice of buckets by the data: the edges, chunks and shares that leave the least padding.

Texts and rows with images have buckets of their own, whose edges are found by dynamic programming
over the histogram of a sample. The largest bucket is for all that is longer than their last edges.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int

from unime_jax.data.bucket_work import PACKS, Counts, Expected, Pack, Work, shape_of
from unime_jax.data.settings import Bucket

MARGIN = 1.25  # of the largest bucket over the longest row that was seen
CANDIDATES = 64  # edges that are tried, of texts and of rows with images
FURTHER = (1.02, 1.05, 1.1)  # edges over the longest, for rows that the sample has not
MOST_PARTS = 4  # of the rows of a bucket, with room for whole chunks
# Of a batch's work, that a bucket more must save: it is compiled into every step, minutes of a run
# of hours, and takes host memory.
LEAST_GAIN = 0.003


def largest(sizes: Int[np.ndarray, "n 2"], *, limit: int) -> Bucket:
    """Room for rows that are a quarter longer than any of these, up to `limit` tokens.

    Args:
      sizes: tokens and tiles of a sample of rows.
      limit: the most tokens of a row.
    """
    tokens, tiles = sizes[:, 0], sizes[:, 1]
    return Bucket(_rounded(MARGIN * tokens.max(), limit), _most_tiles(tiles))


def chosen(
    sizes: Int[np.ndarray, "n 2"],
    *,
    patches: float,
    limit: int,
    expected: Expected | None = None,
    example: Int[np.ndarray, " n"] | None = None,
    pack: Pack | None = None,
) -> tuple[Bucket, ...]:
    """The buckets of the least work for rows of such sizes, from small to large.

    Work is tokens and patches of the chunks that are computed, with padding inside rows and rows
    that a bucket's last chunk lacks; that of a small chunk is that of `least_tokens`. Every bucket
    but the largest saves `LEAST_GAIN` of it.

    Args:
      sizes: tokens and tiles of a sample of rows.
      patches: the work of a tile in that of a token: its patches, or less where a patch goes
        through fewer parameters than a token.
      limit: the most tokens of a row.
      expected: batches, by which each bucket's chunks and share are chosen; None: not known, so
        chunks are taken to be full, and all buckets have room for all rows.
      example: of which each row is an item, from 0 on; None: each of its own. Where every example
        has one image, so many are in every batch.
      pack: rows of several texts, which are chosen where they leave less work; None: none.
    """
    last = largest(sizes, limit=limit)
    if expected is None:
        example = np.zeros(len(sizes), int)  # all that counts is how many there are
    elif example is None:
        example = np.arange(len(sizes))
    total = float(sizes.sum(axis=0) @ (1, patches))
    work = Work(int(example.max()) + 1, last, patches, expected)
    each = LEAST_GAIN * total * (expected.pairs / work.examples if expected else 1)
    widths = [w for w in PACKS if w <= pack.tokens] if pack and expected else []
    choices = [_choice(sizes, example, work, each)]
    for width in widths:
        texts = (sizes[:, 1] == 0) & (sizes[:, 0] <= width)
        lengths = sizes[texts, 0]
        if pack and len(lengths) and 2 * lengths.mean() <= width:
            longer = 1 + (width - lengths.mean()) / (6 * pack.width)  # of attention
            cost, packed = work.pack(width, lengths, example[texts], longer)
            others, buckets = _choice(sizes[~texts], example[~texts], work, each)
            choices.append((cost + each + others, (packed, *buckets)))
    return min(choices, key=lambda choice: choice[0])[1]


def _choice(
    sizes: Int[np.ndarray, "n 2"], example: Int[np.ndarray, " n"], work: Work, each: float
) -> tuple[float, tuple[Bucket, ...]]:
    """The least work of rows that have a row each, and its buckets; a bucket costs `each`."""
    last = work.last
    masks = sizes[:, 1] == 0, sizes[:, 1] > 0
    kinds = [_units(sizes[mask], example[mask], work.examples, last.tokens) for mask in masks]
    tables = [_best_edges(units, work, each) for units in kinds]

    def of_last(ends: tuple[int, ...]) -> tuple[Counts, float]:
        (texts, pictured), (text, picture) = kinds, ends
        counts = texts.counts(text) + pictured.counts(picture)
        return counts, texts.unseen[text] + pictured.unseen[picture]

    def cost(ends: tuple[int, ...]) -> float:
        of_ends = sum(table.cost[end] for table, end in zip(tables, ends))
        return of_ends + work.of(last, *of_last(ends))[0]

    ends = min(np.ndindex(*(len(table.cost) for table in tables)), key=cost)
    saved = 0.0
    buckets: dict[tuple[int, int], Bucket] = {}
    for units, table, end in zip(kinds, tables, ends):
        ways = [[_parts(units, *block, work, each) for block in table.blocks(end)]]
        if end:  # all in one, whose parts leave a single last chunk
            less, parts = _parts(units, 0, end, work, each)
            alone = work.of(units.shape(0, end), units.counts(0, end))[0] + each
            ways.append([(table.cost[end] - alone + less, parts)])
        less, parts = max(
            (
                (sum(x for x, _ in way), [bucket for _, parts in way for bucket in parts])
                for way in ways
            ),
            key=lambda way: way[0],
        )
        saved += less
        buckets |= {shape_of(bucket): bucket for bucket in parts}
    buckets.pop(shape_of(last), None)
    largest_one = work.bucket(last, *of_last(ends), share=1.0)
    return cost(ends) - saved, (*(buckets[shape] for shape in sorted(buckets)), largest_one)


@dataclasses.dataclass(frozen=True)
class _Units:
    """Shapes of rows, rounded up, in order, and how many rows have them.

    Attributes:
      upto: [e, n]: rows of example e that have one of the first n shapes.
      unseen: [n]: rows of as large a sample that are likely longer than these n and the sample's.
    """

    shapes: list[tuple[int, int]]
    upto: Int[np.ndarray, "examples _"]
    unseen: list[float]

    def shape(self, start: int, stop: int) -> Bucket:
        """The least bucket for all of these."""
        return Bucket(self.shapes[stop - 1][0], max(tiles for _, tiles in self.shapes[start:stop]))

    def counts(self, start: int, stop: int | None = None) -> Counts:
        """Rows of each example that have these shapes."""
        return self.upto[:, -1 if stop is None else stop] - self.upto[:, start]


def _units(
    sizes: Int[np.ndarray, "m 2"], example: Int[np.ndarray, " m"], examples: int, limit: int
) -> _Units:
    """At most `CANDIDATES` shapes, those that divide the rows most evenly."""
    rounded = sizes.copy()
    rounded[:, 0] = [tokens and _rounded(tokens, limit) for tokens in sizes[:, 0].tolist()]
    shapes, number, counts = np.unique(rounded, axis=0, return_inverse=True, return_counts=True)
    part = np.arange(len(shapes))
    if len(shapes) > CANDIDATES:
        middles = (np.cumsum(counts) - counts / 2) / counts.sum()
        part = np.unique((CANDIDATES * middles).astype(int), return_inverse=True)[1]
    upto = np.zeros((examples, int(part.max(initial=-1)) + 2), int)
    np.add.at(upto, (example, part[number.reshape(-1)] + 1), 1)
    merged = [shapes[part == n].max(axis=0) for n in range(upto.shape[1] - 1)]
    kinds = [(int(tokens), int(tiles)) for tokens, tiles in merged]
    unseen = [0.0] * (len(kinds) + 1)
    if kinds:
        beyond = _beyond(sizes[:, 0])
        longest, most_tiles = max(tokens for tokens, _ in kinds), max(tiles for _, tiles in kinds)
        further = {_rounded(longest * by, limit) for by in FURTHER} - {longest}
        kinds += [(tokens, most_tiles) for tokens in sorted(further)]
        upto = np.pad(upto, ((0, 0), (0, len(further))))
        unseen = [beyond(max(longest, tokens)) for tokens, _ in [(0, 0), *kinds]]
    return _Units(kinds, np.cumsum(upto, axis=1), unseen)


def _parts(
    units: _Units, start: int, stop: int, work: Work, each: float
) -> tuple[float, list[Bucket]]:
    """The work that is saved by buckets with room for whole chunks alone, and the buckets.

    The longest rows of a bucket whose shorter ones fill some chunks are left to its last chunks:
    the shorter have a bucket of their own, with room for those chunks and no more, and what finds
    none there goes to the longer one's. So no last chunk is added.
    """
    shape, counts = units.shape(start, stop), units.counts(start, stop)
    best = work.bucket(shape, counts)
    least, rows = work.of(shape, counts, fewest=True)
    whole = dataclasses.replace(best, rows=rows)
    saved = work.of(shape, counts)[0] - least
    ends, rooms = [stop], [math.inf]  # in chunks; the last takes what there is
    while rows and len(ends) < MOST_PARTS:
        ways = []
        for end in range(start + 1, stop):
            number = bisect.bisect_left(ends, end)
            if ends[number] != end:
                shape, longer = units.shape(start, end), units.shape(start, ends[number])
                sure = work.sure_chunks(shape, units.counts(start, end), whole.rows)
                chunks = min(sure - sum(rooms[:number]), rooms[number])
                less = chunks * whole.rows * (work.size(longer) - work.size(shape))
                ways.append((less, end, chunks))
        less, end, chunks = max(ways, default=(0.0, stop, 0))
        if less <= each:
            break
        number = bisect.bisect_left(ends, end)
        rooms[number] -= chunks
        ends.insert(number, end)
        rooms.insert(number, chunks)
        if not rooms[number + 1]:
            del ends[number + 1], rooms[number + 1]
            saved += each
        saved += less - each
    if saved <= 0:
        return 0.0, [best]
    taken, short, parts = 0.0, 0.0, []
    for end, chunks in zip(ends[:-1], rooms):
        taken += chunks * whole.rows
        short = max(short, taken - work.least_rows(units.counts(start, end)))
        share = work.share(chunks * whole.rows - 0.5)  # no chunk more, however it is rounded
        parts.append(dataclasses.replace(units.shape(start, end), share=share, rows=whole.rows))
    if parts:  # what they leave, and as many as they may have too few
        share = min(whole.share, round(whole.share - work.share(taken - short), 6))
        whole = dataclasses.replace(whole, share=share)
    return saved, [*parts, whole]


def _beyond(lengths: Int[np.ndarray, " m"]) -> Callable[[int], float]:
    """How many of so many rows are longer than a number beyond all of these.

    The tail is taken to be exponential, as the longest tenth is.
    """
    start = np.quantile(lengths, 0.9)
    mean = float((lengths[lengths >= start] - start).mean())
    if not mean:
        return lambda length: 0.0
    return lambda length: float(0.1 * len(lengths) * np.exp((start - length) / mean))


@dataclasses.dataclass(frozen=True)
class _Edges:
    """`cost[n]`: the least work of the first n units in buckets; the last begins at `start[n]`."""

    cost: list[float]
    start: list[int]

    def blocks(self, end: int) -> Iterator[tuple[int, int]]:
        """Where each bucket of the first `end` units begins and ends."""
        while end:
            yield self.start[end], end
            end = self.start[end]


def _best_edges(units: _Units, work: Work, each: float) -> _Edges:
    """The best buckets of the first units, for any number of these; a bucket costs `each`."""
    cost, start = [0.0], [0]
    for stop in range(1, len(units.shapes) + 1):
        ways = [
            cost[first] + each + work.of(units.shape(first, stop), units.counts(first, stop))[0]
            for first in range(stop)
        ]
        start.append(int(np.argmin(ways)))
        cost.append(min(ways))
    return _Edges(cost, start)


def _rounded(length: float, limit: int) -> int:
    """The length, rounded up by a 32nd at most, or to a multiple of 4."""
    power = 1 << (math.ceil(length) - 1).bit_length()
    step = max(4, power // 64)
    return min(limit, step * math.ceil(length / step))


def _most_tiles(tiles: Int[np.ndarray, " n"]) -> int:
    """The most tiles of a row; a quarter more where rows with images differ in them."""
    most = int(tiles.max())
    differ = most > 0 and int(tiles[tiles > 0].min()) < most
    return math.ceil(MARGIN * most) if differ else most
