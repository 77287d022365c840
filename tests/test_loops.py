"""Cases in a loop are all run, each in a folder of its own, and the one that fails is named."""

import inspect

import pytest

from tests.loops import each


def test_every_case_is_run_in_a_folder_of_its_own(tmp_path):
    seen = []

    @each("a, b", [(1, 2), (3, 4)])
    @each("c", "xy")
    def test(a, b, tmp_path, c):
        assert not list(tmp_path.iterdir())
        (tmp_path / "file").touch()
        seen.append((a, b, c))

    assert list(inspect.signature(test).parameters) == ["tmp_path"]  # what pytest gives it
    test(tmp_path=tmp_path)
    assert seen == [(1, 2, "x"), (1, 2, "y"), (3, 4, "x"), (3, 4, "y")]


def test_the_case_that_fails_is_named():
    @each("number", range(5))
    def test(number):
        assert number < 3

    with pytest.raises(AssertionError) as failure:
        test()
    assert failure.value.__notes__ == ["in the case {'number': 3}"]
