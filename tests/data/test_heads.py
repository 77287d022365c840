"""Heads of sources: the first rows, and no others."""

import pickle

import pytest

from tests.tables import for_each
from unime_jax import config, config_reader
from unime_jax.data import heads
from unime_jax.operations.recipes import base

SOURCES = {"a": [{"row": n} for n in range(5)], "b": [{"row": n} for n in range(2)]}


@for_each(
    ("first", "by_source", "lengths"),
    [
        (0, {}, (5, 2)),
        (3, {}, (3, 2)),
        (3, {"a": 1}, (1, 2)),
        (1, {"a": 0}, (5, 1)),
        (9, {"b": 9}, (5, 2)),
    ],
)
def test_a_source_has_its_first_rows(first, by_source, lengths):
    cut = pickle.loads(pickle.dumps(heads.heads(SOURCES, first, by_source)))  # as in a worker
    assert tuple(map(len, cut.values())) == lengths
    for rows in cut.values():
        assert [row["row"] for row in rows] == list(range(len(rows)))
        assert rows[-1] == rows[len(rows) - 1]


def test_numbers_and_names_that_are_wrong_are_named():
    message = r"first_rows_by_source: no such source: 'aa' \(did you mean a\?\)"
    with pytest.raises(ValueError, match=message):
        heads.heads(SOURCES, 0, {"aa": 1})
    data = base.mini().data
    for key, value in (("first_rows", -1), ("first_rows_by_source", {"a": -1})):
        data[key] = value
        with pytest.raises(ValueError, match=f"config.data.{key}.*=-1: it is the rows of a source"):
            config_reader.read(config.DataConfig, data.to_dict())
        data[key] = 0 if key == "first_rows" else {}
