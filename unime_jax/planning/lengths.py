"""The batch that is expected of a sample of lengths, in the buckets of a run."""

import numpy as np

from unime_jax.data.bucket_padding import placed
from unime_jax.data.length_sample import Sample
from unime_jax.data.shapes import BatchShapes
from unime_jax.planning.estimate import Load


def load_of(sample: Sample, shapes: BatchShapes, pairs: int) -> Load:
    """The load of so many pairs, each of the sample's as often as any other.

    Items that find no room in a bucket go to the next.

    Raises:
      ValueError: an item is longer than the largest bucket, or a batch has no room for all.
    """
    sizes, example = sample
    largest = shapes.buckets[-1]
    longest = sizes.max(axis=0)
    if (longest > (largest.tokens, largest.tiles)).any():
        raise ValueError(
            f"config.lengths has an item of {longest[0]} tokens or {longest[1]} tiles, which does "
            f"not fit the largest bucket, {largest}: name a larger one in config.run.data.buckets, "
            "or other lengths"
        )
    order = np.argsort(example, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(example))[:-1])
    items = np.concatenate([parts[n % len(parts)] for n in range(pairs)])
    if len(items) > shapes.rows:
        raise ValueError(
            f"config.lengths has {len(items) / pairs:.3g} items a pair, so that a batch of {pairs} "
            f"pairs has {len(items)}; it has room for {shapes.rows} (config.run.data.negatives)"
        )
    taken, filled = placed(sizes[items], shapes)
    last = len(shapes.buckets) - 1
    counts = np.bincount(taken, minlength=last + 1)
    tokens = np.bincount(taken, sizes[items, 0], last + 1)
    means = [
        min(bucket.tokens, round(total / count)) if count else bucket.tokens
        for bucket, count, total in zip(shapes.buckets, counts, tokens)
    ]
    return Load(tuple(counts.tolist()), tuple(means), tuple(filled.tolist()))
