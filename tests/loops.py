"""Cases of one behaviour, looped over within one test."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def each(names: str, cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `pytest.mark.parametrize`, in one test: the first case that fails ends it and is named.

    Fixtures are those of the one test, but for `tmp_path`, which is a new folder for each case.
    """
    keys, values = [name.strip() for name in names.split(",")], list(cases)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def loop(**fixtures: Any) -> None:
            for number, value in enumerate(values):
                case = dict(zip(keys, value if len(keys) > 1 else [value], strict=True))
                given = dict(fixtures)
                if "tmp_path" in fixtures:
                    given["tmp_path"] = fixtures["tmp_path"] / f"case{number}"
                    given["tmp_path"].mkdir()
                try:
                    test(**given, **case)
                except BaseException as error:
                    error.add_note(f"in the case {case}")
                    raise

        signature = inspect.signature(test)
        others = [x for name, x in signature.parameters.items() if name not in keys]
        loop.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return loop

    return decorate
