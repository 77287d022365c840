"""Padding of batches that are drawn from rows of known lengths, by their buckets."""

import numpy as np
from jaxtyping import Float, Int

from unime_jax.data.shapes import BatchShapes
from unime_jax.data.text_rows import rows_of_texts


def placed(
    sizes: Int[np.ndarray, "n 2"], shapes: BatchShapes
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " buckets"]]:
    """The bucket of each item of a batch, and rows that each bucket's items take.

    Items that find no room go to the next bucket that they fit, as in `bucket_filling`; what finds
    none at all stays beyond the room of its last.
    """
    edges = np.array([(bucket.tokens, bucket.tiles) for bucket in shapes.buckets])
    single = np.array([bucket.texts == 1 for bucket in shapes.buckets])
    fits = (sizes[:, None] <= edges).all(axis=2)
    is_text = sizes[:, 1:] == 0
    # Texts go to rows of several, to those of one without a vision tower, and then to others.
    late = is_text & (edges[:, 1] > 0)
    fits &= single | is_text
    order = np.where(fits, late * len(edges) + np.arange(len(edges)), 2 * len(edges))
    ways, left = np.argsort(order, axis=1, kind="stable"), fits.sum(axis=1)
    step, rows = np.zeros(len(sizes), int), np.zeros(len(edges), int)
    # In two rounds, as a text may come to a bucket that rows with images have gone through.
    for number, bucket in [*enumerate(shapes.buckets)] * (2 if late.any() else 1):
        here = np.flatnonzero(ways[np.arange(len(sizes)), step] == number)
        room = shapes.chunks(bucket) * shapes.chunk_rows(bucket)
        beyond = here[room:]
        rows[number] = min(room, len(here))
        if bucket.texts > 1:
            together = rows_of_texts(sizes[here, 0].tolist(), bucket.tokens, bucket.texts)
            rows[number] = min(room, len(together))
            beyond = here[[text for row in together[room:] for text in row]]
        step[beyond] = np.minimum(step[beyond] + 1, left[beyond] - 1)
    return ways[np.arange(len(sizes)), step], rows


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
    chunk = np.array([shapes.chunk_rows(bucket) for bucket in shapes.buckets])
    order = np.argsort(example, kind="stable")
    starts = np.searchsorted(example[order], np.arange(int(example.max()) + 2))
    live, computed = np.zeros(2), np.zeros(2)
    for _ in range(batches):
        drawn = generator.integers(0, len(starts) - 1, pairs)
        items = np.concatenate([order[starts[n] : starts[n + 1]] for n in drawn])
        _, rows = placed(sizes[items], shapes)
        computed += (-(-rows // chunk) * chunk) @ edges
        live += sizes[items].sum(axis=0)
    return np.divide(computed - live, live, out=np.zeros(2), where=live > 0)
