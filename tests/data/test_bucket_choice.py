"""Buckets that are chosen by the data: every row fits, padding is bounded, nothing is random."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.tables import for_each
from unime_jax.data import bucket_choice
from unime_jax.data.bucket_choice import Expected, chosen, padding
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes, Layout

PATCHES = 16
LIMIT = 500
SIGLIP = 729  # patches of a tile


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
        expected = Expected(2 * draws, 8 * shards, shards, draws, least_tokens=64)
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


def words(generator, count, middle, spread, most):
    return np.clip(np.exp(generator.normal(np.log(middle), spread, count)), 3, most).astype(int)


def pairs_of(queries, targets):
    return np.concatenate([queries, targets]), np.tile(np.arange(len(queries)), 2)


def stage2(generator, count):
    """An image of 384 pixels, two tiles of SigLIP, with an instruction; short targets."""
    images = 1485 + 14 + words(generator, count, 24, 0.5, 200)
    targets = 10 + words(generator, count, 30, 0.5, 190)
    return pairs_of(np.stack([images, np.full(count, 2)], 1), texts(targets))


def anyres(generator, count):
    """LLaVA-OneVision's canvas of 768 pixels: what is padding in tiles takes no tokens."""
    tall = generator.choice([54, 41, 36, 31], count, p=[0.2, 0.45, 0.25, 0.1])  # rows of patches
    images = 729 + 55 * tall + 16 + words(generator, count, 24, 0.5, 200)
    tiles = np.where(tall > 27, 5, 3)
    targets = 10 + words(generator, count, 30, 0.5, 190)
    return pairs_of(np.stack([images, tiles], 1), texts(targets))


def dynamic(generator, count):
    """Qwen2-VL's images: one token of four patches, 800 to 1500 of them."""
    images = generator.integers(800, 1480, count)
    queries = np.stack([images + 20, -(-images // 64)], 1)
    return pairs_of(queries, texts(10 + words(generator, count, 30, 0.5, 190)))


def mini_mmeb(generator, count):
    """MiniMMEB's lengths, as they were counted on 28 November 2026."""
    images = [(49, 2)] * 43 + [(52, 2)] * 30 + [(57, 2)] * 14 + [(68, 3)] * 8 + [(75, 3)] * 5
    targets = [(8, 0)] * 18 + [(11, 0)] * 27 + [(16, 0)] * 22 + [(20, 0)] * 8 + [(36, 0)] * 12
    return pairs_of(
        generator.choice(np.array(images), count), generator.choice(np.array(targets), count)
    )


def sentences(generator, count):
    """NLI's sentences in a chat template with stage 1's suffix."""
    return pairs_of(*(texts(26 + words(generator, count, middle, 0.45, 80)) for middle in (13, 8)))


# Name, pairs, rows of a chunk, shards, patches of a tile and their work by a token's; the most
# padding of tokens. What devices there are is a part of every chunk's rows.
RECIPES = [
    (stage2, 1024, 16, 4, (SIGLIP, 0.06), 0.05),
    (stage2, 256, 4, 1, (SIGLIP, 0.06), 0.05),
    (anyres, 256, 4, 1, (SIGLIP, 0.06), 0.05),
    (dynamic, 256, 8, 1, (256, 0.02), 0.05),
    (mini_mmeb, 256, 8, 1, (16, 0.5), 0.05),
    (sentences, 768, 384, 1, (0, 0.0), 0.07),
]


@for_each("rows_of, pairs, chunk, shards, patches, most", RECIPES)
def test_padding_of_the_recipes_is_a_twentieth(rows_of, pairs, chunk, shards, patches, most):
    """By rows that the choice has not seen."""
    sizes, example = rows_of(np.random.default_rng(0), 256)
    least = bucket_choice.least_tokens("cpu" if rows_of is mini_mmeb else "gpu", shards)
    expected = Expected(2 * pairs, chunk, shards, pairs, least)
    count, each = patches
    buckets = chosen(sizes, patches=count * each, limit=8192, expected=expected, example=example)
    shapes = BatchShapes(buckets, Layout(patches=count), chunk, 2 * pairs, shards=shards)
    of_tokens, of_tiles = padding(*rows_of(np.random.default_rng(1), 5000), shapes)
    assert of_tokens <= most and of_tiles <= 0.05
    longest = max(bucket.tokens for bucket in buckets if not bucket.tiles)
    coarse = (Bucket(longest, 0), dataclasses.replace(buckets[-1], rows=0))
    if coarse[0].tokens < coarse[1].tokens:
        before = padding(sizes, example, dataclasses.replace(shapes, buckets=coarse))
        assert 4 * of_tokens < before[0]


def test_lengths_are_rounded_up_by_a_32nd_at_most():
    said = {1: 4, 4: 4, 8.5: 12, 64: 64, 65: 68, 128: 128, 129: 132, 257: 264, 1025: 1056}
    assert {length: bucket_choice._rounded(length, 2000) for length in said} == said
    assert bucket_choice._rounded(129, 131) == 131
