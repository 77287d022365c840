"""Buckets that are chosen by the data: every row fits, padding is bounded, nothing is random."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.data.recipe_lengths import anyres, dynamic, mini_mmeb, sentences, stage2, texts
from tests.tables import for_each
from unime_jax.data import bucket_choice
from unime_jax.data.bucket_choice import chosen
from unime_jax.data.bucket_padding import padding
from unime_jax.data.bucket_work import Expected, Pack, least_tokens
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes, Layout

PATCHES = 16
LIMIT = 500
SIGLIP = 729  # patches of a tile


def drawn(seed):
    """Texts of two kinds, images of one to four tiles; one kind may be absent."""
    generator = np.random.default_rng(seed)
    count, share = int(generator.integers(1, 200)), generator.choice([0.0, 0.3, 1.0])
    tiles = np.where(generator.random(count) < share, generator.integers(1, 5, count), 0)
    spread = generator.choice([4, 40, 400])
    words = generator.integers(1, spread, count)
    return np.stack([np.minimum(LIMIT, words + 20 * tiles), tiles], axis=1)


def taken(sizes, buckets):
    """The bucket of each row: the first that it fits, for texts one without tiles."""
    return [
        next(
            b
            for b in sorted(buckets, key=lambda b: t == 0 and b.tiles > 0)
            if n <= b.tokens and t <= b.tiles
        )
        for n, t in sizes.tolist()
    ]


def work(sizes, buckets):
    return sum(bucket.tokens + PATCHES * bucket.tiles for bucket in taken(sizes, buckets))


@for_each("seed", range(16))
def test_every_row_fits_whatever_the_batches(seed):
    sizes = drawn(seed)
    expected = None
    if seed % 2:
        draws, shards = (1 + seed % 64, 1 + seed % 5)
        expected = Expected(draws, 2 * draws, 8 * shards, shards, draws, least_tokens=64)
    buckets = chosen(sizes, patches=PATCHES, limit=LIMIT, expected=expected)
    shapes = BatchShapes(buckets, Layout(patches=PATCHES), chunk_size=40, rows=8)  # or ValueError
    assert len(taken(sizes, buckets)) == len(sizes)
    assert all(0 < bucket.share <= 1 and bucket.tokens <= LIMIT for bucket in buckets)
    assert expected or not any(bucket.rows for bucket in buckets)
    assert all(shapes.chunk_rows(bucket) >= 1 for bucket in buckets)
    longest = sizes[:, 0].max()
    assert buckets[-1].tokens >= min(LIMIT, 1.25 * longest)
    assert buckets == chosen(sizes[::-1], patches=PATCHES, limit=LIMIT, expected=expected)


@for_each("seed", range(6))
def test_edges_are_the_best_of_all_choices(seed, monkeypatch):
    """By trying all sets of edges of few lengths."""
    generator = np.random.default_rng(seed)
    lengths = 4 * generator.integers(1, 60, 8)
    sizes = texts(generator.choice(lengths, 40))
    buckets = chosen(sizes, patches=PATCHES, limit=LIMIT)
    last, each = buckets[-1], bucket_choice.LEAST_GAIN * int(sizes[:, 0].sum())

    def cost(edges):
        few = [Bucket(edge, 0) for edge in edges]
        return work(sizes, [*few, last]) + each * len(few)

    edges = sorted({int(length) for length in sizes[:, 0]})
    best = min(
        cost(some) for n in range(len(edges) + 1) for some in itertools.combinations(edges, n)
    )
    assert cost([bucket.tokens for bucket in buckets[:-1]]) == pytest.approx(best)


BY_HAND = [
    (texts([20] * 9), (Bucket(20, 0), Bucket(28, 0))),  # 25 is the margin
    (texts([20] * 90 + [200]), (Bucket(20, 0), Bucket(200, 0), Bucket(252, 0))),
    # Of a dual encoder: images without tokens, and texts.
    (np.array([(0, 1)] * 9 + [(64, 0)] * 9), (Bucket(0, 1), Bucket(64, 0), Bucket(80, 1))),
    (texts([LIMIT] * 9), (Bucket(LIMIT, 0),)),  # cut there, so there are none beyond
    (np.array([(84, 2)] * 9 + [(20, 0)] * 9), (Bucket(20, 0), Bucket(84, 2), Bucket(108, 2))),
    # Rows of other numbers of tiles: room for more than were seen.
    (np.array([(84, 2)] * 9 + [(60, 1)]), (Bucket(60, 1), Bucket(84, 2), Bucket(108, 3))),
    # Texts up to the limit keep the tower out, though images share their length.
    (np.array([(500, 0)] * 9 + [(500, 9)] * 9), (Bucket(500, 0), Bucket(500, 9))),
    # A text is not worth a program of its own.
    (np.array([(500, 0)] + [(500, 1)] * 999), (Bucket(500, 1),)),
]


@for_each("sizes, expected", BY_HAND)
def test_choices_by_hand(sizes, expected):
    assert chosen(sizes, patches=PATCHES, limit=LIMIT) == expected


# Pairs of a batch, rows of a chunk, shards, patches of a tile and their work by a token's, whether
# the model packs texts, and the most padding of tokens. Every chunk has rows for all shards.
RECIPES = [
    (stage2, 1024, 64, 16, (SIGLIP, 0.06), True, 0.05),
    (stage2, 256, 4, 1, (SIGLIP, 0.06), False, 0.05),
    (anyres, 256, 4, 1, (SIGLIP, 0.06), False, 0.05),
    (anyres, 256, 16, 16, (SIGLIP, 0.06), True, 0.11),
    (dynamic, 256, 8, 1, (256, 0.02), False, 0.05),
    (mini_mmeb, 256, 8, 1, (16, 0.5), False, 0.05),
    (sentences, 768, 384, 1, (0, 0.0), True, 0.05),
    (sentences, 768, 384, 1, (0, 0.0), False, 0.08),
]


@for_each("rows_of, pairs, chunk, shards, patches, packs, most", RECIPES)
def test_padding_of_the_recipes_is_a_twentieth(rows_of, pairs, chunk, shards, patches, packs, most):
    """By rows that the choice has not seen."""
    sizes, example = rows_of(np.random.default_rng(0), 256)
    least = least_tokens("cpu" if rows_of is mini_mmeb else "gpu", shards)
    expected = Expected(pairs, 2 * pairs, chunk, shards, pairs, least)
    count, each = patches
    buckets = chosen(
        sizes,
        patches=count * each,
        limit=8192,
        expected=expected,
        example=example,
        pack=Pack(4096, 3584) if packs else None,
    )
    shapes = BatchShapes(buckets, Layout(patches=count), chunk, 2 * pairs, shards=shards)
    of_tokens, of_tiles = padding(*rows_of(np.random.default_rng(1), 5000), shapes, pairs=pairs)
    assert of_tokens <= most and of_tiles <= 0.05, buckets
    assert any(bucket.texts > 1 for bucket in buckets) == packs
    longest = max(tokens for tokens, tiles in sizes.tolist() if not tiles)
    if longest < buckets[-1].tokens:
        coarse = (Bucket(longest, 0), dataclasses.replace(buckets[-1], rows=0))
        before = padding(sizes, example, dataclasses.replace(shapes, buckets=coarse), pairs=pairs)
        assert 4 * of_tokens < before[0]


def test_lengths_are_rounded_up_by_a_32nd_at_most():
    said = {1: 4, 4: 4, 8.5: 12, 64: 64, 65: 68, 128: 128, 129: 132, 257: 264, 1025: 1056}
    assert {length: bucket_choice._rounded(length, 2000) for length in said} == said
    assert bucket_choice._rounded(129, 131) == 131
