"""Tests over tables run every case, apart from each other, and name those that fail."""

import inspect
import itertools
import os

import pytest

from tests.tables import every_pair, every_value, for_each

SEEN: list[int] = []


@for_each("number, word", [(1, "a"), (2, "b"), (3, "c")])
def numbers_but_two(number, word):
    SEEN.append(number)
    assert number != 2


def test_all_cases_run_and_those_that_fail_are_named():
    with pytest.raises(ExceptionGroup) as failed:
        numbers_but_two()
    (failure,) = failed.value.exceptions
    assert SEEN == [1, 2, 3] and isinstance(failure, AssertionError)
    assert failure.__notes__ == ["case 1: {'number': 2, 'word': 'b'}"]


@for_each("first", [1, 2])
@for_each("second", [1, 2])
def test_cases_have_folders_and_patches_of_their_own(first, second, tmp_path, monkeypatch):
    assert not list(tmp_path.iterdir()) and "FOR_EACH" not in os.environ
    (tmp_path / "file").touch()
    monkeypatch.setenv("FOR_EACH", f"{first} {second}")


def test_the_tiers_of_a_table_are_its_cases_and_the_others_are_slow():
    seen = []

    @for_each("first, second", itertools.product("ab", "cd"), quick=[("a", "c")])
    @for_each("third", [1, 2, 3], quick=[2])
    def tiered(first, second, third):
        seen.append((first, second, third))

    tiers = {mark.args[0]: mark.args[1] for mark in tiered.pytestmark}
    assert inspect.signature(tiered).parameters.keys() == tiers.keys()
    by_tier = {}
    for outer, inner in itertools.product(("quick", "others"), repeat=2):
        tiered(**dict(zip(("first_second_tier", "third_tier"), (outer, inner), strict=True)))
        by_tier[outer, inner], seen = seen, []
    assert by_tier["quick", "quick"] == [("a", "c", 2)]
    everything = itertools.product("ab", "cd", (1, 2, 3))
    assert sorted(sum(by_tier.values(), [])) == sorted(everything)
    for quick, others in tiers.values():
        assert quick == "quick" and [mark.name for mark in others.marks] == ["slow"]
    for wrong in ([4], [1, 2], []):  # no case of it, no others, none at all
        with pytest.raises(AssertionError):
            for_each("number", [1, 2], quick=wrong)


def test_a_table_has_cases_and_every_value_or_pair_of_values_comes():
    @for_each("number", [1])
    def skips(number):
        pytest.skip("silently")

    with pytest.raises(AssertionError, match="leave it out"):
        skips()

    # A table has cases
    with pytest.raises(AssertionError):
        for_each("number", [])

    # Every value comes, and every two values meet.
    assert every_value("abc", (1, 2)) == [("a", 1), ("b", 2), ("c", 1)]
    columns = "abcde", (1, 2, 3), (False, True), "xyz"
    rows = every_pair(*columns)
    assert len(set(rows)) == len(rows) <= 20 and set(rows) <= set(itertools.product(*columns))
    for i, j in itertools.combinations(range(4), 2):
        met = {(row[i], row[j]) for row in rows}
        assert met == set(itertools.product(columns[i], columns[j]))
