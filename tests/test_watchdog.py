"""A loop that hangs, in a process of its own, because the watchdog ends it."""

import pathlib
import subprocess
import sys
import time

import pytest

from unime_jax.watchdog import STATUS, Watchdog

ROOT = pathlib.Path(__file__).resolve().parents[1]

SLOW = """
import pathlib, sys, time
from unime_jax.watchdog import Watchdog

def train_step(seconds):
    time.sleep(seconds)

with Watchdog(pathlib.Path(sys.argv[1]), seconds=0.5, exit=sys.argv[2] == "exit") as watchdog:
    train_step(1.5)  # compiles
    for seconds in (0.1, 0.1, 2.0, 0.1):
        train_step(seconds)
        watchdog.beat()
time.sleep(1.0)  # evaluates
"""


@pytest.mark.parametrize("exit", [True, False])
def test_a_step_that_hangs(tmp_path, exit):
    file = tmp_path / "stacks-0.txt"
    command = [sys.executable, "-c", SLOW, str(file), "exit" if exit else "stay"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == (STATUS if exit else 0)
    assert "no step has finished for 0.5 s" in done.stderr and "stacks-0.txt" in done.stderr
    for text in (done.stderr, file.read_text()):
        assert text.count("in train_step") == 1  # neither the first step nor what comes after
        assert "in _watch" in text  # all threads


def test_it_says_so_even_where_nothing_can_be_written(tmp_path, caplog):
    with Watchdog(tmp_path / "no" / "folder", seconds=0.1, exit=False) as watchdog:
        watchdog.beat()
        time.sleep(0.5)
    assert "no stacks in" in caplog.text


def test_off(tmp_path):
    with Watchdog(tmp_path / "stacks.txt", seconds=0, exit=True) as watchdog:
        watchdog.beat()
        time.sleep(0.3)
    assert not (tmp_path / "stacks.txt").exists()
