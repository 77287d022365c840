"""Tests over tables: one behaviour, many cases, one test, and a failure that names every case."""

import functools
import inspect
import itertools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def for_each(
    names: str | Sequence[str], cases: Iterable[Any], *, quick: Iterable[Any] | None = None
) -> Callable[[Callable[..., None]], Any]:
    """Runs a test over all cases in turn, for cases too cheap to be tests of their own.

    As `pytest.mark.parametrize`, of which it takes the first two arguments: all cases run, each
    with a `tmp_path` and a `monkeypatch` of its own and an empty `caplog` and `capsys`. Other
    fixtures are shared, so they must not be changed. Decorators may be stacked.

    Args:
      names: arguments of the test, as a string or one by one.
      cases: a value of each argument, or the value of the only one.
      quick: the cases of the suite; all others are a test of their own, marked slow.

    Raises:
      ExceptionGroup: cases have failed; the note of each exception is its case.
    """
    single = isinstance(names, str) and "," not in names
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    table = [(case,) if single else tuple(case) for case in cases]
    assert table, "a table without cases tests nothing"

    chosen = [] if quick is None else [(case,) if single else tuple(case) for case in quick]
    assert all(case in table for case in chosen), "a quick case is none of the table's"
    tiers = {"all": table} if quick is None else {"quick": chosen}
    if quick is not None:
        tiers["others"] = [case for case in table if case not in chosen]
        assert all(tiers.values()), "a tier without cases tests nothing"
    tier = "_".join((*keys, "tier"))

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            failures: list[Exception] = []
            for number, case in enumerate(tiers[fixtures.pop(tier, "all")]):
                values = dict(zip(keys, case, strict=True))
                try:
                    _run_case(test, number, fixtures | values)
                except pytest.skip.Exception as error:
                    raise AssertionError(f"{values} skips: leave it out of the table") from error
                except Exception as error:
                    error.add_note(f"case {number}: {values}")
                    failures.append(error)
            if failures:
                raise ExceptionGroup(f"{len(failures)} of {len(table)} cases", failures)

        others = [p for name, p in signature.parameters.items() if name not in keys]
        if quick is not None:
            others.append(inspect.Parameter(tier, inspect.Parameter.KEYWORD_ONLY))
        run.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        if quick is None:
            return run
        slow = pytest.param("others", marks=pytest.mark.slow)
        return pytest.mark.parametrize(tier, ["quick", slow])(run)

    return decorate


def every_value(*columns: Iterable[Any]) -> list[tuple[Any, ...]]:
    """As many rows as the longest column, for columns that have no code in common."""
    tables = [list(column) for column in columns]
    longest = range(max(map(len, tables)))
    return [tuple(table[n % len(table)] for table in tables) for n in longest]


def every_pair(*columns: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Few rows of a product of columns, in which each two values of two columns meet.

    Most faults need one value or the meeting of two; the whole product is for the night.
    """
    rows = list(itertools.product(*columns))
    pairs = {row: set(itertools.combinations(enumerate(row), 2)) for row in rows}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        row = max(rows, key=lambda row: len(pairs[row] & missing))
        chosen.append(row)
        missing -= pairs[row]
    return chosen


def _run_case(test: Callable[..., None], number: int, arguments: dict[str, Any]) -> None:
    if isinstance(folder := arguments.get("tmp_path"), pathlib.Path):
        arguments["tmp_path"] = folder / str(number)
        arguments["tmp_path"].mkdir()
    if "caplog" in arguments:
        arguments["caplog"].clear()
    if "capsys" in arguments:
        arguments["capsys"].readouterr()
    with pytest.MonkeyPatch.context() as patch:
        if "monkeypatch" in arguments:
            arguments["monkeypatch"] = patch
        test(**arguments)
