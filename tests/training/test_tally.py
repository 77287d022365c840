"""Counts and losses by source between two lines of metrics, complete and by name."""

import numpy as np

from unime_jax.data.packing import PackInfo
from unime_jax.training import tally

INFO = PackInfo(
    read=9,
    bad=(),
    rows=(8,),
    chunks=(1,),
    pad_fraction=0.5,
    overflowed=2,
    duplicates=3,
    dropped_negatives=4,
    truncated=5,
    unmatched_markers=6,
)


def test_sums_since_the_last_line():
    counted = tally.counts(INFO)
    assert counted.keys() == tally.COUNTS.keys()
    tallied = tally.Tally(["a", "b", "c"])
    tallied.add(counted, np.array([2.0, np.nan, 0.0]), np.array([3.0, 0.0, 0.0]))
    tallied.add(counted, np.array([6.0, 1.0, 0.0]), np.array([1.0, 4.0, 0.0]))
    found = tallied.take()
    assert found["replaced_examples"] == 0 and found["duplicate_items"] == 6
    assert found["truncated_rows"] == 10 and found["dropped_negatives"] == 8
    assert found["overflowed_rows"] == 4 and found["missing_images"] == 12
    assert found["source_loss/a"] == 3 and found["source_loss/b"] == 1  # by row
    assert "source_loss/c" not in found  # no row, no mean
    assert set(tallied.take().values()) == {0}
