"""Sums over the steps between two lines of metrics.jsonl: counts, and losses by source."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from unime_jax.data.packing import PackInfo

# Counts of rows and examples of a batch, over all processes, by their names in metrics.jsonl.
COUNTS = {
    "replaced_examples": "examples that could not be used, the next of their source in their place",
    "duplicate_items": "items that were in their process's part of the batch already",
    "truncated_rows": "rows whose text was cut to fit the longest bucket",
    "overflowed_rows": "rows in a larger bucket than they need, as theirs was full",
    "dropped_negatives": "explicit negatives beyond data.negatives",
    "missing_images": "image markers without an image",
}
BY_SOURCE = "source_loss/"  # and the name of the source


def counts(info: PackInfo) -> dict[str, float]:
    """The counts of one process's part of a batch, by the names of `COUNTS`."""
    return {
        "replaced_examples": len(info.bad),
        "duplicate_items": info.duplicates,
        "truncated_rows": info.truncated,
        "overflowed_rows": info.overflowed,
        "dropped_negatives": info.dropped_negatives,
        "missing_images": info.unmatched_markers,
    }


class Tally:
    """Running sums over steps.

    Args:
      sources: the names that `Batch.source` counts.
    """

    def __init__(self, sources: Sequence[str]):
        self._sources = tuple(sources)
        self._start()

    def _start(self) -> None:
        self._counts = dict.fromkeys(COUNTS, 0.0)
        self._loss = np.zeros(len(self._sources))
        self._rows = np.zeros(len(self._sources))

    def add(
        self,
        counted: Mapping[str, float],
        source_loss: Float[np.ndarray, " sources"],
        source_rows: Float[np.ndarray, " sources"],
    ) -> None:
        """Adds a step.

        Args:
          counted: by the names of `COUNTS`.
          source_loss: mean over a source's rows.
          source_rows: how many they are.
        """
        for name in COUNTS:
            self._counts[name] += counted[name]
        self._loss += np.where(source_rows > 0, source_loss * source_rows, 0)
        self._rows += source_rows

    def take(self) -> dict[str, float]:
        """Sums since the last call, and the mean loss of each source that had rows."""
        means = {
            BY_SOURCE + name: float(loss / rows)
            for name, loss, rows in zip(self._sources, self._loss, self._rows, strict=True)
            if rows
        }
        sums = self._counts | means
        self._start()
        return sums
