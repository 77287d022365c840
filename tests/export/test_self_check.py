"""The bounds of an export's self-check: one wrong embedding among many, and all the same one."""

import logging
import pathlib

import ml_dtypes
import numpy as np
import pytest

from tests.tables import for_each
from unime_jax.export import self_check

FOLDER = pathlib.Path("folder")


def unit(*angles: float) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@for_each("wrong", range(5))
def test_one_wrong_embedding_among_several_is_the_lowest_cosine(wrong):
    expected = unit(0, 0.5, 1, 2, 3)
    actual = expected.copy()
    assert self_check.lowest_cosine(expected, actual) == pytest.approx(1, abs=1e-12)
    actual[wrong] = -expected[wrong]
    assert self_check.lowest_cosine(expected, actual) == pytest.approx(-1, abs=1e-12)


def test_rounding_in_either_type_widens_the_bound():
    half, whole = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
    assert self_check.lowest_allowed(whole, whole) == 0.99999
    assert self_check.lowest_allowed(half, whole) == self_check.lowest_allowed(whole, half) == 0.999


def test_embeddings_that_are_all_the_same_are_refused(caplog):
    """One that differs is enough; of nearly the same a warning tells."""
    with caplog.at_level(logging.WARNING):
        self_check._check_different(unit(0, 0, 1), 0.999, FOLDER)
        self_check._check_different(unit(0), 0.999, FOLDER)
    assert not caplog.messages
    with pytest.raises(RuntimeError, match=r"gives all 3 inputs .* one embedding \(the lowest"):
        self_check._check_different(unit(0, 0.01, 0.02), 0.999, FOLDER)
    with caplog.at_level(logging.WARNING):
        self_check._check_different(unit(0, 0.1, 0), 0.999, FOLDER)
    (message,) = caplog.messages
    assert "nearly one, the lowest cosine of two is 0.9950: the model has collapsed" in message
