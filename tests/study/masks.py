"""Precision and recall of each mask on MiniMMEB's planted false negatives, by a model's vectors.

Planted: about one row in eight tells an earlier row's scene again in other pixels or words, and
labels and digits come again and again. Pairs are all pairs of rows of one source, as batches have
runs of one source. What equal targets tell is a fact; the masks are measured on the other pairs.
"""

import pathlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from tests.study import oracle
from unime_jax.data.embedding_store import item_id, open_embeddings

MARGINS = (-0.1, 0.0, 0.1, 0.3)
RATIOS = (0.9, 0.95, 1.0)
DUPLICATES = (0.8, 0.9, 0.95, 0.98)


def measure(values: ConfigDict) -> dict[str, Any]:
    """Counts by mask, and of the mined negatives, by the vectors of `values.data.mined`.

    Of a mask: pairs that it drops, false negatives among them and in all, and all pairs. Of the
    mined negatives: how many there are, and how many of them are right answers.
    """
    folder = pathlib.Path(values.data.mined)
    queries, targets = (open_embeddings(folder / side) for side in ("queries", "candidates"))
    examples = oracle.mined_examples(values)
    total: dict[str, np.ndarray] = {}
    for name in sorted({example.source for example, _, _ in examples}):
        own = [(example, meaning) for example, meaning, _ in examples if example.source == name]
        ids = [item_id(example.positive) for example, _ in own]
        counted = counts(
            queries.vectors([item_id(example.query) for example, _ in own]),
            targets.vectors(ids),
            np.array(ids),
            oracle.alike([meaning for _, meaning in own]),
        )
        for mask, of_source in counted.items():
            total[mask] = total.get(mask, np.zeros(4, int)) + of_source
    names = ("dropped", "right", "false negatives", "pairs")
    right = [other == meaning for _, meaning, theirs in examples for other in theirs]
    return {
        "masks": [
            {"mask": mask} | dict(zip(names, of_all.tolist(), strict=True))
            for mask, of_all in total.items()
        ],
        "mined": {"negatives": len(right), "right": sum(right)},
    }


def counts(
    queries: Float[np.ndarray, "n D"],
    targets: Float[np.ndarray, "n D"],
    ids: np.ndarray,
    alike: Bool[np.ndarray, "n n"],
) -> dict[str, np.ndarray]:
    scores = queries @ targets.T
    own = np.diag(scores)[:, None]
    same = ids[:, None] == ids
    masks = {"same target": same}
    masks |= {f"margin {m:g}": scores > own + m for m in MARGINS}
    masks |= {f"ratio {r:g}": scores > own - (1 - r) * np.abs(own) for r in RATIOS}
    masks |= {f"duplicate queries {t:g}": queries @ queries.T > t for t in DUPLICATES}
    masks |= {f"duplicate targets {t:g}": targets @ targets.T > t for t in DUPLICATES}
    others = ~np.eye(len(ids), dtype=bool)
    counted = {}
    for name, mask in masks.items():
        among = others if name == "same target" else others & ~same
        dropped = mask & among
        counts = dropped, dropped & alike, among & alike, among
        counted[name] = np.array([array.sum() for array in counts])
    return counted
