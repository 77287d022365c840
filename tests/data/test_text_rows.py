"""Texts in rows of several: none is lost, rows hold them, and little stays empty."""

import numpy as np

from tests.data.recipe_lengths import triples
from unime_jax.batch import Row
from unime_jax.data.bucket_filling import fill_buckets
from unime_jax.data.bucket_padding import placed
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes, Layout
from unime_jax.data.text_rows import rows_of_texts


def test_every_text_has_a_row_and_items_are_counted_in_the_buckets_of_their_rows():
    for seed in range(40):
        generator = np.random.default_rng(seed)
        width, most = int(generator.integers(8, 200)), int(generator.integers(1, 9))
        lengths = generator.integers(1, width + 1, int(generator.integers(0, 60))).tolist()
        rows = rows_of_texts(lengths, width, most)
        assert sorted(text for row in rows for text in row) == list(range(len(lengths)))
        assert all(sum(lengths[n] for n in row) <= width and len(row) <= most for row in rows)
        assert rows == rows_of_texts(lengths, width, most)

    # One text of 60 with two of 34, not with one of 50: of first fit it would be the latter
    assert rows_of_texts([60, 50, 34, 34, 50], 128, 4) == [[0, 2, 3], [1, 4]]
    assert rows_of_texts([3, 3, 3], 128, 2) == [[0, 1], [2]]
    lengths = triples(np.random.default_rng(0), 768)[0][:, 0]
    assert 256 * len(rows_of_texts(lengths.tolist(), 256, 9)) < 1.01 * lengths.sum()

    # Items are counted where rows lie, whether they find room or go to the next bucket.
    buckets = Bucket(32, 0, 0.1, 2, 4), Bucket(12, 1, 0.2, 2), Bucket(20, 0, 0.2, 2), Bucket(40, 2)
    shapes = BatchShapes(buckets, Layout(patches=1, patch_bytes=3), 2, 40)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        tiles = generator.integers(0, 3, 40) * generator.integers(0, 2, 40)
        sizes = np.stack([generator.integers(1, 41, 40), tiles], axis=1)
        rows = [row_of(tokens, tiles) for tokens, tiles in sizes.tolist()]
        groups, places = fill_buckets(rows, shapes)
        taken, filled = placed(sizes, shapes)
        counts = [np.bincount(buckets, minlength=4) for buckets in (taken, places[:, 0])]
        assert filled.tolist() == [int(group.live.sum()) for group in groups], seed
        np.testing.assert_array_equal(*counts)


def row_of(tokens: int, tiles: int) -> Row:
    return Row(
        tokens=np.ones(tokens, np.int32),
        positions=np.arange(tokens, dtype=np.int32)[:, None],
        slot=np.full((tokens, 1), -1, np.int32),
        patches=np.zeros((tiles, 1, 3), np.uint8) if tiles else None,
    )
