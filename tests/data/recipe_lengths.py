"""Lengths of rows as the recipes have them, drawn from seeded generators.

Each gives tokens and tiles of queries and targets of so many pairs, and the pair of each.

    python -m tests.data.recipe_lengths experiments/plans/lengths

writes the samples that plans of the recipes stand on, 256 pairs each.
"""

import pathlib
import sys

import numpy as np


def texts(lengths):
    return np.array([(length, 0) for length in lengths])


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


def qwen2_vl_672(generator, count):
    """Qwen2-VL's images of at most 672 x 672 pixels: one token of 28 x 28, photographs of 4:3."""
    images = generator.choice([391, 437, 506, 525, 550, 576], count)
    queries = np.stack([images + 20 + words(generator, count, 24, 0.5, 200), -(-images // 64)], 1)
    return pairs_of(queries, texts(10 + words(generator, count, 30, 0.5, 190)))


def next_336(generator, count):
    """LLaVA-1.6's canvas of one tile beside the small view: 576 vectors, 24 rows with newlines."""
    images = 576 + 600 + 10 + words(generator, count, 24, 0.5, 200)
    return pairs_of(
        np.stack([images, np.full(count, 2)], 1), texts(5 + words(generator, count, 30, 0.5, 190))
    )


def phi3_v(generator, count):
    """Phi-3.5-Vision's four crops at most, of 144 vectors with newlines, and the global view."""
    grids = [(2, 2), (1, 3), (3, 1), (1, 4), (4, 1), (1, 2)]
    rows, columns = np.array(grids)[
        generator.choice(6, count, p=[0.7, 0.1, 0.1, 0.02, 0.03, 0.05])
    ].T
    tokens = (rows * columns + 1) * 144 + 1 + (rows + 1) * 12
    images = tokens + 8 + words(generator, count, 24, 0.5, 200)
    queries = np.stack([images, rows * columns + 1], 1)
    return pairs_of(queries, texts(5 + words(generator, count, 30, 0.5, 190)))


def mini_mmeb(generator, count):
    """MiniMMEB's lengths, as they were counted on 28 November 2026."""
    images = [(49, 2)] * 43 + [(52, 2)] * 30 + [(57, 2)] * 14 + [(68, 3)] * 8 + [(75, 3)] * 5
    targets = [(8, 0)] * 18 + [(11, 0)] * 27 + [(16, 0)] * 22 + [(20, 0)] * 8 + [(36, 0)] * 12
    return pairs_of(
        generator.choice(np.array(images), count), generator.choice(np.array(targets), count)
    )


def triples(generator, count):
    """NLI's premise, entailment and contradiction."""
    parts = [texts(26 + words(generator, count, middle, 0.45, 80)) for middle in (13, 8, 8)]
    return np.concatenate(parts), np.tile(np.arange(count), 3)


def sentences(generator, count):
    """NLI's sentences in a chat template with stage 1's suffix."""
    return pairs_of(*(texts(26 + words(generator, count, middle, 0.45, 80)) for middle in (13, 8)))


PLANNED = {  # files of experiments/plans/lengths
    "nli_sentences": triples,
    "mmeb_onevision_384": stage2,
    "mmeb_onevision_768": anyres,
    "mmeb_next_336": next_336,
    "mmeb_qwen2_vl_672": qwen2_vl_672,
    "mmeb_phi3_v": phi3_v,
}


if __name__ == "__main__":
    (folder,) = map(pathlib.Path, sys.argv[1:])
    for name, draw in PLANNED.items():
        (tokens_and_tiles, pair) = draw(np.random.default_rng(0), 256)
        lines = [f"{n},{tokens},{tiles}" for n, (tokens, tiles) in zip(pair, tokens_and_tiles)]
        (folder / f"{name}.csv").write_text("\n".join(["pair,tokens,tiles", *lines]) + "\n")
