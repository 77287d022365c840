"""The command itself, in a process: a short trial run, what it says, and what it does not say."""

import json
import re
import subprocess
import sys

import pytest

from tests.jobs import tiny_run

# absl's prefix, and the bare lines of progress; what belongs to a line of several stands indented
# or is a row of a table.
OURS = re.compile(r"[IW]\d{4} [\d:.]+ +\d+ (\w+\.py):\d+\] (.*)")
PROGRESS = re.compile(r"\d+/\d+ \[.*(s/step|step/s).*")


@pytest.fixture(
    scope="module",
    params=["plain_steps", pytest.param("real_steps", marks=pytest.mark.slow)],
)
def trial(request, data, tmp_path_factory):
    """Six steps of stage2.py, whose warm-up has fifteen, in a process that has no torch.

    At night they are real ones.
    """
    workdir = tmp_path_factory.mktemp("trial") / "run"
    config = tiny_run.make_config(data)
    flags = [flag for flag in tiny_run.flags(config) if "warmup_steps" not in flag]
    steps = PLAIN if request.param == "plain_steps" else ""
    done = subprocess.run(
        [sys.executable, "-c", f"{COMMAND}{steps}main.run()", *flags, f"--workdir={workdir}"],
        cwd=tiny_run.ROOT,
        capture_output=True,
        text=True,
    )
    return workdir, done


# sitecustomize would do, but is taken by some environments.
COMMAND = """
from tests import without_torch
from unime_jax import main
"""
PLAIN = """
from tests.jobs import plain_steps
plain_steps.replace_here()
"""


def test_a_trial_of_fewer_steps_than_the_warmup_runs(trial):
    workdir, done = trial
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in tiny_run.metrics(workdir)] == [1, 2, 3, 4, 5, 6]
    assert tiny_run.checkpoint_steps(workdir) == [6]
    assert (workdir / "hf" / "self_check.json").exists()
    recorded = json.loads((workdir / "config.json").read_text())
    assert recorded["optimizer"]["warmup_steps"] == 1
    assert "config.optimizer.warmup_steps: 15 -> 1, as a run of 6 steps would" in done.stderr
    assert "all 6 steps are plain InfoNCE" in done.stderr

    # Every line is ours and what compiles is said. No library's warning at start: each line is
    # of a file of this package, or progress.
    workdir, done = trial
    files = {file.name for file in (tiny_run.ROOT / "unime_jax").rglob("*.py")}
    table = (workdir / "parameters.txt").read_text().splitlines()
    foreign = []
    for line in done.stderr.splitlines():
        match = OURS.match(line)
        known = match and match[1] in files
        if not known and line not in table and not PROGRESS.match(line) and line:
            foreign.append(line)
    assert foreign == []
    assert done.stdout == ""

    # What compiles is said
    _, done = trial
    assert "compiling the training step of 16 pairs" in done.stderr
    assert re.search(r"compiled the training step of 16 pairs in [\d.]+ s", done.stderr)
    assert "compiling the encoder of 64 rows, 56 tokens, 3 tiles" in done.stderr
