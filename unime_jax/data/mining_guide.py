"""Guide of mining: a second model's vectors of the same rows, which negatives must pass as well."""

import dataclasses
from typing import Any

import numpy as np

from unime_jax import files
from unime_jax.data.embedding_store import Embeddings, open_embeddings
from unime_jax.data.mining_rows import MiningRows

SIDES = ("queries", "candidates")  # folders of vectors in a work directory of job mine


@dataclasses.dataclass(frozen=True)
class Guide:
    """Vectors of the same rows by another model; rows are by number of a query or candidate."""

    queries: Embeddings
    candidates: Embeddings
    query_rows: np.ndarray
    candidate_rows: np.ndarray
    margin: float

    def agrees(self, query: int, positive: int, candidates: np.ndarray) -> np.ndarray:
        """Which candidates this model, too, scores below the positive.

        Raises:
          ValueError: it has no vector of one of them.
        """
        targets = self.candidate_rows[np.append(candidates, positive)]
        if min(self.query_rows[query], *targets) < 0:
            raise ValueError(
                f"config.search.guide={self.candidates.folder.parent} has no vectors of all queries"
                " and candidates: mine there with the same config.data first"
            )
        vector = self.queries.at(self.query_rows[query : query + 1]).astype(np.float64)
        scores = self.candidates.at(targets).astype(np.float64) @ vector[0]
        return scores[:-1] <= scores[-1] - self.margin


def open_guide(folder: str, margin: float, rows: MiningRows) -> Guide | None:
    """The second model's vectors in `folder`, "": none; ValueError if they are not complete."""
    if not folder:
        return None
    queries, candidates = (open_embeddings(files.as_path(folder) / side) for side in SIDES)
    return Guide(
        queries,
        candidates,
        queries.rows_of(rows.queries.ids),
        candidates.rows_of(rows.candidates.ids),
        margin,
    )


def provenance(folder: str) -> dict[str, Any]:
    """What the vectors of a guide were made by."""
    if not folder:
        return {}
    stores = {side: open_embeddings(files.as_path(folder) / side) for side in SIDES}
    keys = ("model", "prefix", "suffix")
    return {
        side: {key: store.provenance.get(key) for key in keys} for side, store in stores.items()
    }
