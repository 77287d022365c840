"""Which tests reach a mutant: of those that cover its module, the files that execute its lines."""

import ast
import hashlib
from collections.abc import Iterable
from typing import TypedDict

from tests.mutation import sample, scope

# They run the code in processes of their own, whose lines nobody counts.
ELSEWHERE = ("tests/jobs/", "tests/multihost/")


class Reached(TypedDict):
    """Seconds of a file of tests, and the lines that it executes by module.

    `code` is the digest of that file and these modules.
    """

    seconds: float
    lines: dict[str, list[int]]
    code: str


Reach = dict[str, Reached]  # by file of tests


def reached(tests: str, seconds: float, lines: dict[str, list[int]]) -> Reached:
    """What a file of tests executes, of today's code."""
    lines = {module: executed for module, executed in lines.items() if executed}
    return Reached(seconds=seconds, lines=lines, code=_digest([tests, *sorted(lines)]))


def is_of_today(tests: str, known: Reached) -> bool:
    """Whether nothing that it executes has changed since; nor was it removed."""
    names = [tests, *sorted(known["lines"])]
    are_there = all((scope.ROOT / name).exists() for name in names)
    return are_there and known["code"] == _digest(names)


def _digest(names: Iterable[str]) -> str:
    contents = [f"{name}\0{(scope.ROOT / name).read_text()}\0" for name in names]
    return hashlib.blake2b("".join(contents).encode(), digest_size=16).hexdigest()


def tests_of(mutant: sample.Mutant, source: str, known: Reach) -> tuple[list[str], float]:
    """Files of tests that execute the mutant's lines, and their seconds together.

    The file named like the module comes first, then the quickest.
    """
    first, last = statement_lines(source, mutant.start[0])
    named, *others = scope.tests_of(mutant.module)
    tests = [
        name
        for name in (named, *sorted(others, key=lambda name: known[name]["seconds"]))
        if name.startswith(ELSEWHERE)
        or any(first <= line <= last for line in known[name]["lines"].get(mutant.module, ()))
    ]
    return tests, sum(known[name]["seconds"] for name in tests)


def statement_lines(source: str, line: int) -> tuple[int, int]:
    """First and last line of the innermost statement around a line, without the body it may have.

    A statement over several lines is executed as a whole, but only some of its lines are told.
    """
    innermost = (line, line)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            body = getattr(node, "body", None)
            start = getattr(node, "lineno", None) or node.pattern.lineno
            end = max(start, body[0].lineno - 1) if body else node.end_lineno
            if start <= line <= end:
                innermost = start, end  # inner statements are walked later
    return innermost
