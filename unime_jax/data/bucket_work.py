"""The work of a bucket's rows in the chunks that suit a batch, and rows of several texts."""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Int

from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes, Layout
from unime_jax.data.text_rows import rows_of_texts

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


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a bucket's rows, in tokens and patches of a batch.

    Attributes:
      examples: of the sample.
    """

    examples: int
    last: Bucket
    patches: float
    expected: Expected | None

    def of(
        self, shape: Bucket, counts: Counts, unseen: float = 0.0, *, fewest: bool = False
    ) -> tuple[float, int]:
        """The work in the best chunks, and rows of a chunk; 0: batches are not known.

        Args:
          counts: rows of each example.
          unseen: rows of as large a sample that go there, too.
          fewest: in the smallest chunks that keep devices busy, and not in the best.
        """
        size, total = self.size(shape), counts.sum() + unseen
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
        if fewest and (busy := np.flatnonzero(rows * size >= least)).size:
            best = int(busy[-1])  # rows are in order, the most first
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
        rows_by_token = len(rows_of_texts(usual.tolist(), width, shape.texts)) / usual.sum()
        mean, deviation = mean * rows_by_token, deviation * rows_by_token
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

    def size(self, shape: Bucket) -> float:
        """The work of a row."""
        return shape.tokens + self.patches * shape.tiles

    def share(self, rows: float) -> float:
        """Of all rows of a batch."""
        assert self.expected is not None
        return round(float(rows) / self.expected.rows, 6)

    def least_rows(self, counts: Counts) -> float:
        """Fewer of these rows are in hardly any batch."""
        mean, deviation = self._rows_of(counts, 0.0)
        return mean - DEVIATIONS * deviation

    def sure_chunks(self, shape: Bucket, counts: Counts, rows: int) -> int:
        """Chunks of so many rows that nearly every batch fills; 0 if they leave devices idle.

        Args:
          counts: rows of each example.
        """
        assert self.expected is not None
        if rows * self.size(shape) < self.expected.shards * self.expected.least_tokens:
            return 0
        mean, deviation = self._rows_of(counts, 0.0)
        return math.floor(max(0.0, mean - deviation) / rows)

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
    same = shape_of(shape) == shape_of(last) and shape.texts == 1
    buckets = (last,) if same else (shape, last)
    shapes = BatchShapes(
        buckets, Layout(), expected.chunk_size, expected.rows, shards=expected.shards
    )
    return shapes.chunk_rows(shape)


def shape_of(bucket: Bucket) -> tuple[int, int]:
    return bucket.tokens, bucket.tiles
