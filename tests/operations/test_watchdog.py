"""A loop that hangs, in a process of its own, because the watchdog ends it."""

import pathlib
import subprocess
import sys
import time

import pytest

from tests.tables import for_each
from unime_jax.operations.watchdog import STATUS, Watchdog

ROOT = pathlib.Path(__file__).resolve().parents[2]

SLOW = """
import pathlib, sys, time
from unime_jax.operations.watchdog import Watchdog

def train_step(seconds):
    time.sleep(seconds)

with Watchdog(pathlib.Path(sys.argv[1]), seconds=0.5, exit=sys.argv[2] == "exit") as watchdog:
    train_step(0.9)  # compiles
    for seconds in (0.1, 0.1, 1.0, 0.1):
        train_step(seconds)
        watchdog.beat()
time.sleep(0.9)  # evaluates
"""


PHASES = """
import pathlib, sys, time
from unime_jax.operations import watchdog

def hang():
    time.sleep(60)

with watchdog.Watchdog(pathlib.Path(sys.argv[1]), seconds=0.5, exit=True):
    time.sleep(0.9)  # no step yet
    with watchdog.phase("the set-up has not gone on", 0.6):
        for _ in range(3):
            time.sleep(0.3)
            watchdog.progress()
    watchdog.progress()  # of something that nobody waits for
    time.sleep(0.9)
    with watchdog.phase("no step has finished", 0.5):
        watchdog.progress()
        with watchdog.phase("the step has not compiled", 0):
            time.sleep(0.9)
        watchdog.progress()
    with watchdog.phase("the export has not gone on", 0.5):
        hang()
"""


SCRIPTS = {"exit": (SLOW, "exit"), "stay": (SLOW, "stay"), "phases": (PHASES, "")}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """By script: status, what was said, and the file of stacks; all ran at once, as they sleep."""
    folder = tmp_path_factory.mktemp("hanging")
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", script, str(folder / f"{name}-stacks-0.txt"), argument],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (script, argument) in SCRIPTS.items()
    }
    found = {}
    for name, process in running.items():
        said = process.communicate(timeout=60)[1]
        found[name] = process.returncode, said, folder / f"{name}-stacks-0.txt"
    return found


@for_each(("name", "status"), [("exit", STATUS), ("stay", 0)])
def test_a_step_that_hangs(ended, name, status):
    returned, said, file = ended[name]
    assert returned == status
    assert "no step has finished for 0.5 s" in said and "stacks-0.txt" in said
    for text in (said, file.read_text()):
        assert text.count("in train_step") == 1  # neither the first step nor what comes after
        assert "in _watch" in text  # all threads


def test_each_phase_has_a_bound_of_its_own(ended):
    """Also where Python's `finally` is not reached: what is registered is done before the end."""
    status, said, file = ended["phases"]
    assert status == STATUS, said
    assert "the export has not gone on for 0.5 s" in said
    assert "in hang" in file.read_text() and file.read_text().count("Current thread") <= 1


def test_it_says_so_even_where_nothing_can_be_written(tmp_path, caplog):
    with Watchdog(tmp_path / "no" / "folder", seconds=0.1, exit=False) as watchdog:
        watchdog.beat()
        time.sleep(0.5)
    assert "no stacks in" in caplog.text

    # Off
    with Watchdog(tmp_path / "stacks.txt", seconds=0, exit=True) as watchdog:
        watchdog.beat()
        time.sleep(0.3)
    assert not (tmp_path / "stacks.txt").exists()
