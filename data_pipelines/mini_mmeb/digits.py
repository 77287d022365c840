"""scikit-learn's 1797 handwritten digits (UCI optdigits), split once for training and testing."""

import functools
import random

import numpy as np


@functools.cache
def _bundle() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # slow to import, and needed by a build only

    bundle = load_digits()
    return bundle.images, bundle.target


def images() -> np.ndarray:
    """float64 [1797, 8, 8], values 0 to 16."""
    return _bundle()[0]


@functools.cache
def by_label(seed: int, *, test: bool) -> tuple[tuple[int, ...], ...]:
    """Rows of the digits 0 to 9: a quarter of every class is for testing, the rest for training."""
    rng = random.Random(f"{seed}/digits")
    labels = _bundle()[1]
    classes = []
    for label in range(10):
        rows = [int(row) for row in np.flatnonzero(labels == label)]
        rng.shuffle(rows)
        cut = len(rows) // 4
        classes.append(tuple(rows[:cut] if test else rows[cut:]))
    return tuple(classes)
