"""Padding of the recipes' batches, by the buckets that they name and by those that are chosen.

    python -m tests.data.padding_table

Batches are drawn from `recipe_lengths`; nothing is encoded or compiled. `docs/data.md` has the
table.
"""

import numpy as np

from tests.data.recipe_lengths import anyres, sentences, stage2
from unime_jax.data import bucket_choice
from unime_jax.data.bucket_padding import padding
from unime_jax.data.bucket_work import Expected, Pack, least_tokens
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes, Layout

WIDTH = 3584  # of a 7B's states
TEXTS = (Bucket(128, 0), Bucket(512, 0, share=0.25))  # experiments/families.py
CASES = [
    ("stage 1", sentences, 768, 384, (16, 1), 0, (Bucket(64, 0), Bucket(128, 0))),
    ("stage 2", stage2, 1024, 64, (16, 1), 729, (*TEXTS, Bucket(1792, 2))),
    ("LLaVE", anyres, 256, 64, (64, 4), 729, (*TEXTS, Bucket(1792, 2), Bucket(4096, 5))),
]


def rows():
    """Lines of the table."""
    for name, rows_of, pairs, chunk, all_shards, patches, named in CASES:
        sample = rows_of(np.random.default_rng(0), 256)
        others = rows_of(np.random.default_rng(1), 20000)
        for shards in all_shards:
            size = chunk if shards == all_shards[0] else max(shards, chunk // 16)
            layout = Layout(patches=patches)
            expected = Expected(pairs, 2 * pairs, size, shards, pairs, least_tokens("tpu", shards))

            def choose(pack, sample=sample, expected=expected, patches=patches):
                return bucket_choice.chosen(
                    sample[0],
                    patches=0.06 * patches,
                    limit=8192,
                    expected=expected,
                    example=sample[1],
                    pack=pack,
                )

            choices = named, choose(None), choose(Pack(2**15, WIDTH))
            shares = [
                padding(
                    *others,
                    BatchShapes(buckets, layout, size, 2 * pairs, shards=shards),
                    pairs=pairs,
                )
                for buckets in choices
            ]
            shown = " | ".join(
                f"{100 * tokens:.1f}, {100 * tiles:.1f}, {len(buckets)}"
                for (tokens, tiles), buckets in zip(shares, choices, strict=True)
            )
            yield f"| {name} | {pairs} | {size} | {shards} | {shown} |"


if __name__ == "__main__":
    for line in rows():
        print(line)
