"""Shapes of batches for embedding: few, as each of them compiles, and yet with little padding."""

import math

from unime_jax.batch import Row
from unime_jax.data.shapes import BatchShapes, Bucket, Layout

CHUNK_TOKENS = 4096  # of a device at once: keeps it busy, and attention scores small
LEAST_TOKENS = 64  # of a compiled shape


def plan_of(bucket: Bucket, layout: Layout, shards: int, batch_size: int) -> BatchShapes:
    """At least `batch_size` rows, in chunks of `CHUNK_TOKENS` a device.

    Chunks without rows are not computed, so a part of a batch costs a part of its time.
    """
    most = math.ceil(batch_size / shards)
    chunk = shards * min(most, max(1, CHUNK_TOKENS // bucket.tokens))
    return BatchShapes((bucket,), layout, chunk, chunk * math.ceil(batch_size / chunk))


def bucket_of(row: Row, max_length: int) -> Bucket:
    """The compiled shape of a row: padding is less than half of it, of long rows a third.

    Rows of less than `LEAST_TOKENS` are padded to that.
    """
    tokens = max(LEAST_TOKENS, _rung(len(row.tokens), fine_from=1024))
    tiles = 0 if row.patches is None else _rung(len(row.patches), fine_from=1)
    return Bucket(min(tokens, max_length), tiles)


def power_of_two(n: int) -> int:
    """The least that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def _rung(n: int, *, fine_from: int) -> int:
    """The least power of two, or from `fine_from` on also 3/4 of one, that is not below n."""
    power = power_of_two(n)
    between = power * 3 // 4
    return between if n <= between and power > fine_from else power
