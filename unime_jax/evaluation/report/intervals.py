"""95 % confidence intervals of scores, given their numbers of rows."""

import math
from collections.abc import Sequence

Z = 1.96  # of 95 %


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share, in percent; (0, 100) of no rows."""
    if not rows:
        return 0.0, 100.0
    share, square = hits / rows, Z**2 / rows
    center = (share + square / 2) / (1 + square)
    half = Z * math.sqrt(share * (1 - share) / rows + square / (4 * rows)) / (1 + square)
    low = 0.0 if hits == 0 else 100 * (center - half)
    return low, 100.0 if hits == rows else 100 * (center + half)


def of_mean(counts: Sequence[tuple[int, int]]) -> float | None:
    """Half the 95 % interval of the plain mean of shares, in percent points; None of no share.

    `counts` are (hits, rows) of independent sets. Each variance is that of Wilson's centre, so
    that a set without a hit or a miss is not taken for certain.
    """
    if not counts or not all(rows for _, rows in counts):
        return None
    variance = 0.0
    for hits, rows in counts:
        share = (hits + Z**2 / 2) / (rows + Z**2)
        variance += share * (1 - share) / rows
    return 100 * Z * math.sqrt(variance) / len(counts)
