"""Tests over tables run every case, apart from each other, and name those that fail."""

import os

import pytest

from tests.tables import for_each

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


def test_a_table_has_cases_and_none_that_skips():
    @for_each("number", [1])
    def skips(number):
        pytest.skip("silently")

    with pytest.raises(AssertionError, match="leave it out"):
        skips()

    # A table has cases
    with pytest.raises(AssertionError):
        for_each("number", [])
