"""The order of a source's rows by clusters, as a function of the place alone."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int32


@dataclasses.dataclass(frozen=True, eq=False)
class ClusterOrder:
    """Endless rows of a source: every pass has each row once, its clusters in an order of its own.

    Clusters begin at multiples of `size`. Where a pass does not, because the rows are no multiple,
    it begins and ends with loose rows that fill up the run it shares with the pass before or after:
    the last, short cluster, and where that is not enough, the rows of one more, another in every
    pass.

    Attributes:
      rows: all rows; `size` in a row are a cluster, the last is short.
      seed: of the orders of the clusters.
    """

    rows: Int32[np.ndarray, " rows"]
    size: int
    seed: int

    def __getitem__(self, place: int) -> int:
        """The row at a place: `place // len(rows)` passes are before it."""
        count, size = len(self.rows), self.size
        clusters, left_over = divmod(count, size)
        done, place = divmod(place, count)
        head = min(-done * count % size, count)
        tail = (count - head) % size
        loose = place if place < head else place - (count - head - tail)
        if head <= place < count - tail:
            cluster, member = divmod(place - head, size)
        elif loose < left_over:
            cluster, member = clusters, loose
        else:  # the pass's last cluster is taken apart
            cluster, member = clusters - 1, loose - left_over
        if cluster < clusters:
            cluster = int(_shuffled(clusters, self.seed, done)[cluster])
        return int(self.rows[cluster * size + member])


@functools.lru_cache(maxsize=64)  # a pass or two of each source at a time
def _shuffled(clusters: int, seed: int, done: int) -> Int32[np.ndarray, " clusters"]:
    """The order of the clusters in a pass; RandomState's numbers are the same in every NumPy."""
    return np.random.RandomState([seed, done]).permutation(clusters).astype(np.int32)
