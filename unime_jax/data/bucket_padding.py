"""Padding of batches that are drawn from rows of known lengths, by their buckets."""

import numpy as np
from jaxtyping import Float, Int

from unime_jax.data.shapes import BatchShapes
from unime_jax.data.text_rows import rows_of_texts


def buckets_of(sizes: Int[np.ndarray, "n 2"], shapes: BatchShapes) -> Int[np.ndarray, " n"]:
    """The number of the bucket that each row goes to, if that has room for it."""
    edges = np.array([(bucket.tokens, bucket.tiles) for bucket in shapes.buckets])
    single = np.array([bucket.texts == 1 for bucket in shapes.buckets])
    fits = (sizes[:, None] <= edges).all(axis=2)
    own = fits & ((edges[:, 1] == 0) | (sizes[:, 1:] > 0))  # texts keep the vision tower out
    # Texts that fit rows of several go there, of the first such bucket.
    own &= single | (sizes[:, 1:] == 0)
    return np.where(own.any(axis=1), own.argmax(axis=1), (fits & single).argmax(axis=1))


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
    edges = np.array([(bucket.tokens, bucket.tiles) for bucket in shapes.buckets])
    single = np.array([bucket.texts == 1 for bucket in shapes.buckets])
    taken = buckets_of(sizes, shapes)
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
            rows[number] = len(rows_of_texts(lengths, bucket.tokens, bucket.texts))
        computed += (-(-rows // chunk) * chunk) @ edges
        live += sizes[items].sum(axis=0)
    return np.divide(computed - live, live, out=np.zeros(2), where=live > 0)
