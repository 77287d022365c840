"""Precision and recall of each mask on MiniMMEB's planted false negatives, by a model's vectors.

Planted: about one row in eight tells an earlier row's scene again in other pixels or words, and
labels and digits come again and again. Pairs are all pairs of rows of one source, as batches have
runs of one source. What equal targets tell is a fact; the masks are measured on the other pairs.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from tests.study import oracle
from tests.study.runs import settings_of
from unime_jax.data.embedding_store import item_id, open_embeddings
from unime_jax.data.schema import to_example
from unime_jax.training import inputs

MARGINS = (-0.1, 0.0, 0.1, 0.3)
RATIOS = (0.9, 0.95, 1.0)
DUPLICATES = (0.8, 0.9, 0.95, 0.98)


def measure(mined: pathlib.Path, values: ConfigDict) -> list[dict[str, Any]]:
    """Counts by mask: pairs that it drops, false negatives among them, and of all pairs.

    `mined` has the vectors of the training rows of `values`, as job mine leaves them.
    """
    total: dict[str, np.ndarray] = {}
    for vectors in _vectors(mined, values):
        for name, of_source in counts(*vectors).items():
            total[name] = total.get(name, np.zeros(4, int)) + of_source
    return [
        {
            "mask": name,
            "dropped": int(dropped),
            "right": int(right),
            "false negatives": int(planted),
            "pairs": int(pairs),
        }
        for name, (dropped, right, planted, pairs) in total.items()
    ]


def _vectors(mined: pathlib.Path, values: ConfigDict) -> Iterator[tuple]:
    """By source: vectors of queries and targets, ids of targets, and who means the same."""
    settings = settings_of(values)
    known = oracle.meanings(pathlib.Path(settings.data.folder))
    queries, targets = (open_embeddings(mined / side) for side in ("queries", "candidates"))
    for name, rows in inputs.open_rows(settings.data).items():
        examples = [to_example(name, rows[index], str(index)) for index in range(len(rows))]
        ids = [item_id(example.positive) for example in examples]
        yield (
            queries.vectors([item_id(example.query) for example in examples]),
            targets.vectors(ids),
            np.array(ids),
            oracle.alike(known[name]),
        )


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
