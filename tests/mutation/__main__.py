"""Runs a sample of mutants: python -m tests.mutation --folder DIR [--seed 0] [--count 304].

Every worker has a copy of the working tree, which itself is never changed. The session (a database
of cosmic-ray) and the copies lie in the folder; the same command again goes on where it stopped.
"""

import argparse
import contextlib
import difflib
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult

from tests.mutation import reach, sample, scope
from tests.mutation.fork_server import ForkServer

Servers: TypeAlias = "queue.Queue[ForkServer]"
NO_TESTS = 5  # pytest's status where all tests of a file are slow
HUNG = "hung"
NOT_REACHED = {"status": 0, "seconds": 0.0, "output": "no test executes the line"}


def main() -> None:
    given = arguments()
    drawn = sample.draw(sample.sources(given.only), seed=given.seed, count=given.count)
    folder = given.folder.resolve()
    (folder / "compiled").mkdir(parents=True, exist_ok=True)
    with use_db(folder / "session.sqlite") as session:
        remember(session, drawn, again=given.again)
        known = dict(session.results)
        left = [mutant for mutant in drawn if mutant.key not in known]
        print(f"{len(drawn)} mutants, {len(left)} to run", flush=True)
        if left:
            run(left, folder, given.workers, session)
        print("\n".join(report(drawn, dict(session.results))))


def run(left: list[sample.Mutant], folder: pathlib.Path, workers: int, session: WorkDB) -> None:
    """Tries the mutants, and writes each result into the session."""
    servers: Servers = queue.Queue()
    for number in range(workers):
        copy = copy_tree(folder / f"copy{number}")
        shutil.copytree(folder / "compiled", copy / "compiled", copy_function=link)
        servers.put(ForkServer(copy))
    try:
        reached = measure(folder, left, servers)
        with ThreadPoolExecutor(workers) as pool:
            tried = pool.map(lambda mutant: try_mutant(mutant, folder, servers, reached), left)
            for number, (mutant, seconds, result) in enumerate(tried, 1):
                session.set_result(mutant.key, result)
                word = HUNG if result.output == HUNG else result.test_outcome.value
                place = f"{mutant.module}:{mutant.start[0]} {mutant.operator}"
                print(f"{number}/{len(left)} {word} in {seconds:.0f} s: {place}", flush=True)
    finally:
        while not servers.empty():
            servers.get().close()


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


def measure(folder: pathlib.Path, mutants: list[sample.Mutant], servers: Servers) -> reach.Reach:
    """Seconds and executed lines of each file of tests, without any mutant.

    They are kept in the folder, and so is what the tests compile: mutants mostly compile the same.

    Raises:
      SystemExit: tests fail.
    """
    file = folder / "reach.json"
    earlier: reach.Reach = json.loads(file.read_text()) if file.exists() else {}
    known = {tests: of for tests, of in earlier.items() if reach.is_of_today(tests, of)}
    wanted = {name for mutant in mutants for name in scope.tests_of(mutant.module)}
    lock = threading.Lock()

    def measure_file(tests: str) -> None:
        with borrowed(servers) as server:
            lines = server.copy / "lines.json"
            result = server.run([tests], limit=3600, lines=lines)
            if result["status"] not in (0, NO_TESTS):
                sys.exit(f"{tests} fails as it is:\n{result['output']}")
            executed = json.loads(lines.read_text())
            known[tests] = reach.reached(tests, result["seconds"], executed)
            shutil.copytree(
                server.compiled, folder / "compiled", copy_function=link, dirs_exist_ok=True
            )
            with lock:
                file.write_text(json.dumps(known))

    with ThreadPoolExecutor(servers.qsize()) as pool:
        list(pool.map(measure_file, sorted(wanted - known.keys())))
    return known


def link(source: str, target: str) -> None:
    """A hard link; programs that are there already stay."""
    with contextlib.suppress(FileExistsError):
        os.link(source, target)


@contextlib.contextmanager
def borrowed(servers: Servers) -> Iterator[ForkServer]:
    server = servers.get()
    try:
        yield server
    finally:
        servers.put(server)


def try_mutant(
    mutant: sample.Mutant, folder: pathlib.Path, servers: Servers, known: reach.Reach
) -> tuple[sample.Mutant, float, WorkResult]:
    """The mutant, the seconds that its tests took, and their result."""
    with borrowed(servers) as server:
        file = server.copy / mutant.module
        source = file.read_text()
        mutated = mutant.code(source)
        tests, usual = reach.tests_of(mutant, source, known)
        shutil.rmtree(server.compiled)  # the mutant's own programs are nobody else's
        shutil.copytree(folder / "compiled", server.compiled, copy_function=link)
        try:
            file.write_text(mutated)
            result = server.run(tests, limit=60 + 5 * usual) if tests else NOT_REACHED
        finally:
            file.write_text(source)
    outcome = TestOutcome.SURVIVED if result["status"] == 0 else TestOutcome.KILLED
    output = HUNG if result["status"] is None else result["output"]
    lines = [text.splitlines() for text in (source, mutated)]
    diff = "\n".join(difflib.unified_diff(*lines, mutant.module, mutant.module, lineterm="", n=2))
    return mutant, result["seconds"], WorkResult(WorkerOutcome.NORMAL, output, outcome, diff)


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
