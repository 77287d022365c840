"""Lengths of a sample of rows: of all sides, of sources by their weights, the same for a seed."""

import numpy as np
import pytest

from unime_jax.batch import Row
from unime_jax.data import length_sample
from unime_jax.data.length_sample import measured

CUT = 60  # tokens that the stand-in of a preprocessor leaves of a text


def preprocess(item):
    if item.text == "unreadable":
        raise ValueError("it cannot be read")
    count = min(CUT, len(item.text))
    positions, slots = np.zeros((count, 1), np.int32), np.full((count, 1), -1, np.int32)
    patches = np.zeros((len(item.media), 1, 1), np.uint8)
    return Row(np.zeros(count, np.int32), positions, slots, None, patches)


def source(*lengths):
    return [{"qry": "q" * n, "pos_text": "p" * (n + 1), "neg_text": ["n" * 9]} for n in lengths]


def test_lengths_follow_from_weights_and_seed_and_what_cannot_be_measured_is_refused(monkeypatch):
    rows = {"a": source(10, 100), "b": source(30), "unused": source(50)}
    sizes, example = measured(rows, {"b": 1, "a": 1}, preprocess, negatives=1, seed=0)
    assert sorted(sizes[:, 0].tolist()) == [9, 9, 9, 10, 11, 30, 31, CUT, CUT]
    assert not sizes[:, 1].any()
    for n in range(3):  # a query, its positive and its negative
        query, positive, negative = sizes[example == n, 0].tolist()
        assert positive == min(CUT, query + 1) and negative == 9
    without = measured(rows, {"a": 1, "b": 1}, preprocess, negatives=0, seed=0).sizes
    assert sorted(without[:, 0].tolist()) == [10, 11, 30, 31, CUT, CUT]

    # A sample follows from the seed and leaves bad rows out
    monkeypatch.setattr(length_sample, "ITEMS", 20)
    rows = {"a": source(*range(1, 60)), "b": [{"qry": "unreadable", "pos_text": "x"}] * 3}
    alike = {"a": 1.0, "b": 1.0}
    first, again, other = (
        measured(rows, alike, preprocess, negatives=0, seed=seed).sizes for seed in (0, 0, 1)
    )
    assert len(first) == 2 * 5, "of each source as many, here five rows of one"
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    weighted = {"a": 4.0, "b": 1.0}
    assert len(measured(rows, weighted, preprocess, negatives=0, seed=0).sizes) == 2 * 8

    # Data of which nothing can be measured are refused.
    rows = {"a": [{"qry": "unreadable", "pos_text": "x"}] * 2}
    with pytest.raises(ValueError, match="none of the 2 rows .*first: it cannot be read"):
        measured(rows, {"a": 1.0}, preprocess, negatives=0, seed=0)
    with pytest.raises(ValueError, match="no such source: 'c'"):
        measured({"a": source(3)}, {"c": 1.0}, preprocess, negatives=0, seed=0)
