"""Intervals of shares, against values of the literature and against simulation."""

import numpy as np
import pytest

from tests.tables import for_each
from unime_jax.evaluation.report import intervals


@for_each(
    ("hits", "rows", "low", "high"),
    [(18, 100, 11.70, 26.67), (81, 263, 25.53, 36.62), (0, 20, 0, 16.11), (20, 20, 83.89, 100)],
)
def test_wilsons_interval(hits, rows, low, high):
    """81 of 263 and 0 of 20 are Newcombe's (1998) examples; the others follow by symmetry."""
    assert intervals.wilson(hits, rows) == pytest.approx((low, high), abs=0.01)


def test_the_interval_of_a_mean_covers_it_in_95_of_100_cases():
    # No rows say nothing.
    assert intervals.wilson(0, 0) == (0, 100)
    assert intervals.of_mean([]) is None and intervals.of_mean([(1, 2), (0, 0)]) is None

    # The interval of a mean covers it in 95 of 100 cases.
    rng = np.random.default_rng(0)
    shares, rows = np.array([0.1, 0.5, 0.9, 0.3]), np.array([100, 50, 100, 20])
    covered = []
    for _ in range(2000):
        hits = rng.binomial(rows, shares)
        half = intervals.of_mean(list(zip(hits.tolist(), rows.tolist(), strict=True)))
        covered.append(abs(100 * (np.mean(hits / rows) - shares.mean())) <= half)
    assert 0.93 < np.mean(covered) < 0.975
