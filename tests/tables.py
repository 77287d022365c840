"""Tests over tables: one behaviour, many cases, one test, and a failure that names every case."""

import functools
import inspect
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def for_each(
    names: str | Sequence[str], cases: Iterable[Any]
) -> Callable[[Callable[..., None]], Any]:
    """Runs a test over all cases in turn, for cases too cheap to be tests of their own.

    As `pytest.mark.parametrize`, of which it takes the first two arguments: all cases run, each
    with a `tmp_path` and a `monkeypatch` of its own and an empty `caplog` and `capsys`. Other
    fixtures are shared, so they must not be changed. Decorators may be stacked.

    Raises:
      ExceptionGroup: cases have failed; the note of each exception is its case.
    """
    single = isinstance(names, str) and "," not in names
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    table = [(case,) if single else tuple(case) for case in cases]
    assert table, "a table without cases tests nothing"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            failures: list[Exception] = []
            for number, case in enumerate(table):
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
        run.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return run

    return decorate


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
