"""Buckets that are chosen by the data: every row fits, padding is bounded, nothing is random."""

import numpy as np
import pytest

from tests.tables import for_each
from unime_jax.batch import Row
from unime_jax.data import bucket_choice
from unime_jax.data.bucket_choice import chosen, measured
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes, Layout

PATCHES = 16
LIMIT = 500
CUT = 60  # tokens that the stand-in of a preprocessor leaves of a text


def texts(lengths):
    return np.array([(length, 0) for length in lengths])


def drawn(seed):
    """Texts of two kinds, images of one to four tiles; one kind may be absent."""
    generator = np.random.default_rng(seed)
    count, share = int(generator.integers(1, 200)), generator.choice([0.0, 0.3, 1.0])
    tiles = np.where(generator.random(count) < share, generator.integers(1, 5, count), 0)
    spread = generator.choice([4, 40, 400])
    words = generator.integers(1, spread, count)
    return np.stack([np.minimum(LIMIT, words + 20 * tiles), tiles], axis=1)


def taken(sizes, buckets):
    """The bucket of each row: the first that it fits."""
    return [next(b for b in buckets if n <= b.tokens and t <= b.tiles) for n, t in sizes.tolist()]


def work(sizes, buckets):
    return sum(bucket.tokens + PATCHES * bucket.tiles for bucket in taken(sizes, buckets))


@for_each("seed", range(40))
def test_every_row_fits_into_few_buckets(seed):
    sizes = drawn(seed)
    buckets = chosen(sizes, patches=PATCHES, limit=LIMIT)
    BatchShapes(buckets, Layout(patches=PATCHES), chunk_size=8, rows=8)  # or ValueError
    assert len(taken(sizes, buckets)) == len(sizes)
    assert sum(bucket.tiles == 0 for bucket in buckets[:-1]) <= 2
    assert sum(bucket.tiles > 0 for bucket in buckets[:-1]) <= 1
    assert all(bucket.share == 1 and bucket.tokens <= LIMIT for bucket in buckets)
    longest = sizes[:, 0].max()
    assert buckets[-1].tokens >= min(LIMIT, 1.25 * longest)
    assert buckets == chosen(sizes[::-1], patches=PATCHES, limit=LIMIT), "in any order"


@for_each("seed", range(6))
def test_padding_is_less_than_with_the_best_single_cut(seed):
    """All lengths are tried for that cut; the choice knows 16, rounded, and may make two."""
    lengths = np.random.default_rng(seed).gamma(2.0, 15.0, 300).astype(int) + 1
    buckets = chosen(texts(lengths), patches=PATCHES, limit=LIMIT)
    last = buckets[-1]
    best = min(work(texts(lengths), (Bucket(first, 0), last)) for first in range(1, last.tokens))
    assert work(texts(lengths), buckets) <= best
    assert work(texts(lengths), buckets) <= 1.75 * lengths.sum()


BY_HAND = [
    (texts([20] * 9), (Bucket(24, 0), Bucket(32, 0))),  # 25 is the margin
    (texts([20] * 90 + [200]), (Bucket(24, 0), Bucket(256, 0))),
    # Of a dual encoder: images without tokens, and texts.
    (np.array([(0, 1)] * 9 + [(64, 0)] * 9), (Bucket(0, 1), Bucket(64, 0), Bucket(80, 1))),
    (texts([LIMIT] * 9), (Bucket(LIMIT, 0),)),  # cut there, so there are none beyond
    (np.array([(84, 2)] * 9 + [(20, 0)] * 9), (Bucket(24, 0), Bucket(96, 2), Bucket(112, 2))),
    # Rows of other numbers of tiles: room for more than were seen.
    (np.array([(84, 2)] * 9 + [(60, 1)]), (Bucket(96, 2), Bucket(112, 3))),
    # Texts up to the limit keep the tower out, though images share their length.
    (np.array([(500, 0)] * 9 + [(500, 9)] * 9), (Bucket(500, 0), Bucket(500, 9))),
    (np.array([(500, 0)] * 9 + [(500, 1)] * 9), (Bucket(500, 1),)),  # hardly worth a program
]


@for_each("sizes, expected", BY_HAND)
def test_choices_by_hand(sizes, expected):
    assert chosen(sizes, patches=PATCHES, limit=LIMIT) == expected


def preprocess(item):
    if item.text == "unreadable":
        raise ValueError("it cannot be read")
    count = min(CUT, len(item.text))
    positions, slots = np.zeros((count, 1), np.int32), np.full((count, 1), -1, np.int32)
    patches = np.zeros((len(item.media), 1, 1), np.uint8)
    return Row(np.zeros(count, np.int32), positions, slots, None, patches)


def source(*lengths):
    return [{"qry": "q" * n, "pos_text": "p" * (n + 1), "neg_text": ["n" * 9]} for n in lengths]


def test_lengths_are_those_of_all_sides_rounded_up_by_an_eighth_at_most(monkeypatch):
    rows = {"a": source(10, 100), "b": source(30), "unused": source(50)}
    sizes = measured(rows, ["b", "a"], preprocess, negatives=1, seed=0)
    assert sorted(sizes[:, 0].tolist()) == [9, 9, 9, 10, 11, 30, 31, CUT, CUT]
    assert not sizes[:, 1].any()
    without = measured(rows, ["a", "b"], preprocess, negatives=0, seed=0)
    assert sorted(without[:, 0].tolist()) == [10, 11, 30, 31, CUT, CUT]

    # Lengths are rounded up by an eighth at most
    said = {1: 8, 8: 8, 8.5: 16, 64: 64, 64.1: 80, 65: 80, 80: 80, 81: 96, 128: 128, 129: 160}
    assert {length: bucket_choice._rounded(length, 1000) for length in said} == said
    assert bucket_choice._rounded(129, 150) == 150

    # A sample follows from the seed and leaves bad rows out
    monkeypatch.setattr(bucket_choice, "ITEMS", 20)
    rows = {"a": source(*range(1, 60)), "b": [{"qry": "unreadable", "pos_text": "x"}] * 3}
    first, again, other = (
        measured(rows, rows, preprocess, negatives=0, seed=seed) for seed in (0, 0, 1)
    )
    assert len(first) == 2 * 5, "of each source as many, here five rows of one"
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_data_of_which_nothing_can_be_measured_are_refused():
    with pytest.raises(ValueError, match="none of the 2 rows .*first: it cannot be read"):
        measured(
            {"a": [{"qry": "unreadable", "pos_text": "x"}] * 2},
            ["a"],
            preprocess,
            negatives=0,
            seed=0,
        )
    with pytest.raises(ValueError, match="no such source: 'c'"):
        measured({"a": source(3)}, ["c"], preprocess, negatives=0, seed=0)
