"""Runs a sample of mutants: python -m tests.mutation --folder DIR [--seed 0] [--count 304].

Every worker has a copy of the working tree, which itself is never changed. The session (a database
of cosmic-ray) and the copies lie in the folder; the same command again goes on where it stopped.
"""

import argparse
import difflib
import json
import os
import pathlib
import queue
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult

from tests.mutation import sample, scope

LAST = 2000  # characters of the tests' output that are kept
COMPILED = "compiled"  # programs of the tests without a mutant, in the folder and in each copy


def main() -> None:
    given = arguments()
    drawn = sample.draw(sample.sources(given.only), seed=given.seed, count=given.count)
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with use_db(folder / "session.sqlite") as session:
        remember(session, drawn, again=given.again)
        known = dict(session.results)
        left = [mutant for mutant in drawn if mutant.key not in known]
        print(f"{len(drawn)} mutants, {len(left)} to run", flush=True)
        copies: queue.Queue[pathlib.Path] = queue.Queue()
        for number in range(given.workers if left else 0):
            copies.put(copy_tree(folder / f"copy{number}"))
        limits = time_limits(folder, left, copies)
        with ThreadPoolExecutor(given.workers) as pool:
            run = lambda mutant: try_mutant(mutant, copies, limits)  # noqa: E731
            for number, (mutant, seconds, result) in enumerate(pool.map(run, left), 1):
                session.set_result(mutant.key, result)
                place = f"{mutant.module}:{mutant.start[0]} {mutant.operator}"
                hung = result.output == "timeout"
                word = "hung" if hung else result.test_outcome.value
                print(f"{number}/{len(left)} {word} in {seconds:.0f} s: {place}", flush=True)
        print("\n".join(report(drawn, dict(session.results))))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="of session and copies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=304, help="of all packages together")
    parser.add_argument("--only", default="", help="how a module's path begins: unime_jax/losses")
    parser.add_argument("--workers", type=int, default=1)
    again = "survivors of this folder once more, and mutants of lines that are new"
    parser.add_argument("--again", action="store_true", help=again)
    return parser.parse_args()


def remember(session: WorkDB, drawn: list[sample.Mutant], *, again: bool) -> None:
    """Writes a new session, or checks that it is the same sample's.

    Args:
      again: the code may have changed, of which only what was killed before is kept.

    Raises:
      SystemExit: another sample's, or the code has changed.
    """
    items = {
        m.key: WorkItem.single(
            m.key, MutationSpec(m.module, m.operator, m.occurrence, m.start, m.end)
        )
        for m in drawn
    }
    killed = {key: result for key, result in session.results if again and result.is_killed}
    if again:
        session.clear()
    known = {item.job_id: item for item in session.work_items}
    if known and known != items:
        sys.exit(f"{session.name()} is of another sample or of other code. Give another --folder.")
    if not known:
        session.add_work_items(items.values())
    for key in killed.keys() & items.keys():
        session.set_result(key, killed[key])


def copy_tree(folder: pathlib.Path) -> pathlib.Path:
    """A new copy of all files that git would keep."""
    shutil.rmtree(folder, ignore_errors=True)
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=scope.ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, names.stdout.split("\0")):
        if (scope.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(scope.ROOT / name, folder / name)
    return folder


def time_limits(
    folder: pathlib.Path, mutants: list[sample.Mutant], copies: queue.Queue[pathlib.Path]
) -> dict[str, float]:
    """Seconds that the tests of each module may take: a minute and five times the usual.

    What the tests compile stays in the folder, for mutants mostly compile the same.

    Raises:
      SystemExit: tests fail without any mutant.
    """
    tests = {mutant.module: scope.tests_of(mutant.module) for mutant in mutants}
    file = folder / "seconds.json"
    usual: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    new = sorted({name for names in tests.values() for name in names} - usual.keys())
    parts = [part for n in range(copies.qsize()) if (part := new[n :: copies.qsize()])]
    with ThreadPoolExecutor(max(len(parts), 1)) as pool:
        for seconds in pool.map(lambda part: measure(part, folder, copies), parts):
            usual |= seconds
    file.write_text(json.dumps(usual, indent=1))
    return {module: 60 + 5 * sum(map(usual.__getitem__, names)) for module, names in tests.items()}


def measure(
    tests: list[str], folder: pathlib.Path, copies: queue.Queue[pathlib.Path]
) -> dict[str, float]:
    """Seconds by file of tests."""
    copy = copies.get()
    compiled, junit = folder / COMPILED, copy / "junit.xml"
    outcome, output = run_tests(in_copy(copy, [*tests, f"--junit-xml={junit}"], compiled), 7200)
    copies.put(copy)
    if outcome != TestOutcome.SURVIVED:
        sys.exit(f"Tests fail as they are:\n{output[-LAST:]}")
    seconds = dict.fromkeys(tests, 0.0)
    for case in ElementTree.parse(junit).iter("testcase"):
        seconds[case.attrib["classname"].replace(".", "/") + ".py"] += float(case.attrib["time"])
    return seconds


def in_copy(copy: pathlib.Path, tests: list[str], compiled: pathlib.Path) -> str:
    """Command that runs files of tests there, until the first that fails."""
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    place, programs = shlex.quote(str(copy)), shlex.quote(str(compiled))
    environment = f"PYTHONPATH={place} UNIME_JAX_TESTS_COMPILED={programs}"
    return shlex.join(["sh", "-c", f"cd {place} && {environment} exec {shlex.join(pytest)}"])


def try_mutant(
    mutant: sample.Mutant, copies: queue.Queue[pathlib.Path], limits: dict[str, float]
) -> tuple[sample.Mutant, float, WorkResult]:
    """The mutant, its seconds and its tests' result."""
    started, copy = time.monotonic(), copies.get()
    file = copy / mutant.module
    source = file.read_text()
    mutated = mutant.code(source)
    compiled = copy / COMPILED  # the mutant's own programs are nobody else's
    shutil.rmtree(compiled, ignore_errors=True)
    shutil.copytree(copy.parent / COMPILED, compiled, copy_function=os.link)
    try:
        file.write_text(mutated)
        outcome, output = run_tests(
            in_copy(copy, scope.tests_of(mutant.module), compiled), limits[mutant.module]
        )
    finally:
        file.write_text(source)
        copies.put(copy)
    lines = [text.splitlines() for text in (source, mutated)]
    diff = "\n".join(difflib.unified_diff(*lines, mutant.module, mutant.module, lineterm="", n=2))
    result = WorkResult(WorkerOutcome.NORMAL, output[-LAST:], outcome, diff)
    return mutant, time.monotonic() - started, result


def report(drawn: list[sample.Mutant], results: dict[str, WorkResult]) -> Iterator[str]:
    """Survivors, then a line for each package and one for all."""
    survived = {key for key, result in results.items() if not result.is_killed}
    for mutant in drawn:
        if mutant.key in survived:
            yield f"\nsurvived: {mutant.operator}\n{results[mutant.key].diff}"
    yield f"\n{'':12} killed  survived  score"
    for package in [*scope.PACKAGES, "all"]:
        of_it = [m.key for m in drawn if package in ("all", m.package)]
        if of_it:
            killed = len(of_it) - len(survived.intersection(of_it))
            share = f"{killed / len(of_it):.0%}"
            yield f"{package:12} {killed:6}  {len(of_it) - killed:8}  {share:>5}"


if __name__ == "__main__":
    main()
