"""How many bad rows in a row make a source unusable."""

import pytest

from tests.data.test_loader import PLAN, make_preprocess, rows
from unime_jax.data.loader import MAX_TRIES, read_example
from unime_jax.data.mixture import Pick
from unime_jax.data.quarantine import UnusableSource


def read(source, row):
    return read_example({"a": source}, Pick("a", row), preprocess=make_preprocess(), shapes=PLAN)


def test_a_source_is_given_up_after_so_many_bad_rows_and_not_one_earlier():
    source = rows("a", MAX_TRIES + 5, bad=range(MAX_TRIES + 5))
    source[MAX_TRIES + 1] = rows("a", MAX_TRIES + 5)[MAX_TRIES + 1]
    with pytest.raises(UnusableSource) as raised:
        read(source, 1)
    tried = [item.id for item in raised.value.items]
    assert tried == [f"a{row}" for row in range(1, MAX_TRIES + 1)]
    assert len(read(source, 2).bad) == MAX_TRIES - 1 == 999
