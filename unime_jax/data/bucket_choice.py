"""Choice of buckets by the data: the edges, chunks and shares that leave the least padding.

Texts and rows with images have buckets of their own, whose edges are found by dynamic programming
over the histogram of a sample. The largest bucket is for all that is longer than their last edges.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes, Layout

MARGIN = 1.25  # of the largest bucket over the longest row that was seen
CANDIDATES = 64  # edges that are tried, of texts and of rows with images
FURTHER = (1.02, 1.05, 1.1)  # edges over the longest, for rows that the sample has not
# Of a batch's work, that a bucket more must save: it is compiled into every step, minutes of a run
# of hours, and takes host memory.
LEAST_GAIN = 0.003
# Tokens of a chunk on a device, fewer of which take no less time. Weights are read: 197 TFLOP/s by
# 819 GB/s of a TPU v5e in 16 bits. Over several devices they are gathered: by plans of
# stage2_7b_lora on v5e:4x4 a step computes for 38 s with remat "full", and in chunks of 1,536
# tokens a device has 34 s of transfers. A core of a CPU computes so little that they hardly count.
READ, GATHERED, READ_BY_CPU = 256, 1400, 32
PACKS = (64, 128, 256, 512, 1024, 2048)  # tokens of rows of several texts that are tried
MOST_TEXTS = 64  # of a row: each has a column in the loss, of a text or not
DEVIATIONS = 4.0  # of the number of rows in a bucket, for which it has room
_QUANTILES = np.array([-1.83, -1.28, -0.97, -0.73, -0.52, -0.34, -0.17, 0.0])
NORMAL = np.concatenate([_QUANTILES, -_QUANTILES[:-1]])  # the middles of 15 equal parts
Counts = np.ndarray  # int [examples]: rows of each


@dataclasses.dataclass(frozen=True)
class Expected:
    """Batches as they are expected.

    Attributes:
      pairs: examples of a batch.
      rows: that a batch has room for.
      chunk_size: rows of the largest bucket that are encoded at once.
      shards: of the rows of a chunk.
      draws: parts of a batch that are drawn on their own: its pairs; fewer where there are runs of
        pairs that are alike.
      least_tokens: of a chunk on a device, fewer of which take no less time.
    """

    pairs: int
    rows: int
    chunk_size: int
    shards: int
    draws: int
    least_tokens: int


def least_tokens(platform: str, shards: int) -> int:
    """Tokens of a chunk on a device, fewer of which take no less time."""
    if platform == "cpu":
        return READ_BY_CPU
    return GATHERED if shards > 1 else READ


@dataclasses.dataclass(frozen=True)
class Pack:
    """What a model allows of rows of several texts.

    Attributes:
      tokens: of a row, at most.
      width: of its hidden states, by which attention's share of the work grows with the row.
    """

    tokens: int
    width: int


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
    work = _Work(int(example.max()) + 1, last, patches, expected)
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
    sizes: Int[np.ndarray, "n 2"], example: Int[np.ndarray, " n"], work: "_Work", each: float
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
    buckets = {
        (bucket.tokens, bucket.tiles): bucket
        for units, table, end in zip(kinds, tables, ends)
        for start, stop in table.blocks(end)
        for bucket in [work.bucket(units.shape(start, stop), units.counts(start, stop))]
    }
    buckets.pop(_shape(last), None)
    largest_one = work.bucket(last, *of_last(ends), share=1.0)
    return cost(ends), (*(buckets[shape] for shape in sorted(buckets)), largest_one)


def padding(
    sizes: Int[np.ndarray, "n 2"],
    example: Int[np.ndarray, " n"],
    shapes: BatchShapes,
    *,
    pairs: int,
    seed: int = 0,
    batches: int = 32,
) -> Float[np.ndarray, "2"]:
    """Padding of batches of so many pairs of such examples, as shares of their tokens and patches.

    Chunks are counted whole, those of a bucket up to the last that has a row; 0 of nothing.
    """
    generator = np.random.default_rng(seed)
    edges = np.array([_shape(bucket) for bucket in shapes.buckets])
    single = np.array([bucket.texts == 1 for bucket in shapes.buckets])
    fits = (sizes[:, None] <= edges).all(axis=2)
    own = fits & ((edges[:, 1] == 0) | (sizes[:, 1:] > 0))  # texts keep the vision tower out
    # Texts that fit rows of several go there, of the first such bucket.
    own &= single | (sizes[:, 1:] == 0)
    taken = np.where(own.any(axis=1), own.argmax(axis=1), (fits & single).argmax(axis=1))
    chunk = np.array([shapes.chunk_rows(bucket) for bucket in shapes.buckets])
    order = np.argsort(example, kind="stable")
    starts = np.searchsorted(example[order], np.arange(int(example.max()) + 2))
    live, computed = np.zeros(2), np.zeros(2)
    for _ in range(batches):
        drawn = generator.integers(0, len(starts) - 1, pairs)
        items = np.concatenate([order[starts[n] : starts[n + 1]] for n in drawn])
        rows = np.bincount(taken[items], minlength=len(edges))
        for number in np.flatnonzero(~single):
            lengths = sizes[items[taken[items] == number], 0].tolist()
            bucket = shapes.buckets[number]
            rows[number] = packed_rows(lengths, bucket.tokens, bucket.texts)
        computed += (-(-rows // chunk) * chunk) @ edges
        live += sizes[items].sum(axis=0)
    return np.divide(computed - live, live, out=np.zeros(2), where=live > 0)


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


def _best_edges(units: _Units, work: "_Work", each: float) -> _Edges:
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


@dataclasses.dataclass(frozen=True)
class _Work:
    """The work of a bucket's rows, in tokens and patches of a batch.

    Attributes:
      examples: of the sample.
    """

    examples: int
    last: Bucket
    patches: float
    expected: Expected | None

    def of(self, shape: Bucket, counts: Counts, unseen: float = 0.0) -> tuple[float, int]:
        """The work in the best chunks, and rows of a chunk; 0: batches are not known.

        Args:
          counts: rows of each example.
          unseen: rows of as large a sample that go there, too.
        """
        size, total = shape.tokens + self.patches * shape.tiles, counts.sum() + unseen
        if self.expected is None:
            return float(total * size), 0
        shards = self.expected.shards
        least = shards * self.expected.least_tokens
        mean, deviation = self._rows_of(counts, unseen)
        if mean + 2 * deviation < 0.5:  # hardly ever
            return 0.0, shards * math.ceil(least / size / shards)
        numbers = np.rint(np.maximum(0, mean + deviation * NORMAL))
        rows = np.array(_chunk_rows(self.expected, shape, self.last, mean, deviation))
        chunks = np.ceil(numbers[:, None] / rows).mean(axis=0)
        works = chunks * np.maximum(rows * size, least)
        best = int(np.argmin(works))
        return float(works[best]), int(rows[best])

    def pack(
        self, width: int, lengths: Int[np.ndarray, " m"], example: np.ndarray, longer: float
    ) -> tuple[float, Bucket]:
        """The work of texts in rows of several, and the bucket.

        Args:
          longer: work of a token in so long a row, by that of one in a row of its own.
        """
        assert self.expected is not None
        most = math.ceil(width / max(1.0, np.quantile(lengths, 0.1)))
        shape = Bucket(width, 0, texts=max(2, min(MOST_TEXTS, most)))
        tokens = np.bincount(example, lengths, self.examples)
        mean, deviation = self._rows_of(tokens, 0.0)
        count = max(1, round(self.expected.pairs * len(lengths) / self.examples))
        usual = np.resize(lengths, count)  # as many as in a batch
        filled = packed_rows(usual.tolist(), width, shape.texts) / usual.sum()  # rows by token
        mean, deviation = mean * filled, deviation * filled
        numbers = np.ceil(np.maximum(0, mean + deviation * NORMAL))
        rows = np.array(_chunk_rows(self.expected, shape, self.last, mean, deviation))
        chunks = np.ceil(numbers[:, None] / rows).mean(axis=0)
        least = self.expected.shards * self.expected.least_tokens
        works = chunks * np.maximum(rows * width, least) * longer
        best = int(np.argmin(works))
        share = min(
            1.0, max(1, math.ceil(100 * (mean + DEVIATIONS * deviation) / self.expected.rows)) / 100
        )
        return float(works[best]), dataclasses.replace(shape, share=share, rows=int(rows[best]))

    def bucket(
        self, shape: Bucket, counts: Counts, unseen: float = 0.0, share: float | None = None
    ) -> Bucket:
        """The bucket with its chunks and, unless it is given, its share."""
        rows = self.of(shape, counts, unseen)[1]
        if share is None:
            share = 1.0
            if self.expected:
                mean, deviation = self._rows_of(counts, unseen)
                most = (mean + DEVIATIONS * deviation) / self.expected.rows
                share = min(1.0, max(1, math.ceil(100 * most)) / 100)
        return dataclasses.replace(shape, share=share, rows=rows)

    def _rows_of(self, counts: Counts, unseen: float) -> tuple[float, float]:
        """Mean and deviation of how many rows of a batch these are.

        The sample says the mean no better than a batch as large would.
        """
        assert self.expected is not None
        of_batch = self.expected.pairs
        each = (counts.sum() + unseen) / self.examples
        variance = (np.square(counts).sum() + unseen) / self.examples - each**2
        doubt = 1 / self.expected.draws + 1 / self.examples
        return each * of_batch, of_batch * math.sqrt(max(0.0, variance) * doubt)


def packed_rows(lengths: Sequence[int], width: int, texts: int) -> int:
    """Rows that texts take, from the longest on each in the first with room."""
    room: np.ndarray = np.zeros(0, int)
    count: np.ndarray = np.zeros(0, int)
    for length in sorted(lengths, reverse=True):
        fits = (room >= length) & (count < texts)
        if not fits.any():
            room, count = np.append(room, width), np.append(count, 0)
            fits = np.append(fits, True)
        first = int(fits.argmax())
        room[first] -= length
        count[first] += 1
    return len(room)


def _chunk_rows(
    expected: Expected, shape: Bucket, last: Bucket, mean: float, deviation: float
) -> list[int]:
    """Rows of a chunk to choose from: what memory allows and parts of it, and of a usual batch."""
    most = _most_rows(expected, shape, last)
    parts = [most / 2**n for n in range(12) if most >= 2**n]
    parts += [rows / n for n in range(1, 9) for rows in (mean, mean + 2 * deviation)]
    rounded = {expected.shards * math.ceil(part / expected.shards) for part in parts if part > 0}
    return sorted((n for n in rounded if n <= most), reverse=True)


@functools.lru_cache(maxsize=1024)
def _most_rows(expected: Expected, shape: Bucket, last: Bucket) -> int:
    same = _shape(shape) == _shape(last) and shape.texts == 1
    buckets = (last,) if same else (shape, last)
    shapes = BatchShapes(
        buckets, Layout(), expected.chunk_size, expected.rows, shards=expected.shards
    )
    return shapes.chunk_rows(shape)


def _shape(bucket: Bucket) -> tuple[int, int]:
    return bucket.tokens, bucket.tiles


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
