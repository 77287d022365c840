"""Reads that hang: SIGTERM and Ctrl-C save what is done and leave; the watchdog sees all phases."""

import functools
import os
import shutil
import signal
import time

import pytest

from tests import children
from tests.jobs import tiny_run
from tests.jobs.hanging_train import hang_after
from tests.jobs.tiny_run import checkpoint_steps, metrics
from tests.multihost import launch
from unime_jax import main
from unime_jax.jobs import train
from unime_jax.operations import watchdog


def start(config, workdir, reads):
    return children.start(
        launch.command,
        functools.partial(hang_after, reads),
        output=workdir.with_suffix(".log"),
        argv=[*tiny_run.flags(config), f"--workdir={workdir}"],
    )


def until_it_hangs(process, workdir):
    """Its third step is done, and one more was dispatched at most."""
    end = time.monotonic() + 200
    while not any(line["step"] >= 3 for line in metrics(workdir)):
        assert process.poll() is None, process.said()
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_told_to_stop_while_a_read_hangs(config, straight, workdir, number, status):
    config.checkpoint.every = 100
    process = start(config, workdir, reads=4 * 16 + 4)
    until_it_hangs(process, workdir)
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=60) == status and time.monotonic() - began < 30, process.said()
    output = process.said()
    assert "Traceback" not in output and "told to stop: saving step" in output
    assert "the same command goes on" in output or number == signal.SIGTERM
    (stopped,) = checkpoint_steps(workdir)
    assert stopped >= 3 and metrics(workdir)[-1]["step"] == stopped
    assert not (workdir / "run.lock").exists()
    if number == signal.SIGTERM:
        train.run(config, workdir)
        assert metrics(workdir)[-1]["loss"] == metrics(straight)[-1]["loss"]


@pytest.mark.slow
def test_of_several_processes_all_leave_a_read_that_hangs(config, workdir):
    """They cannot save: the state of the last step went into the next one, which waits for rows."""
    config.checkpoint.every = 2
    run = launch.start(config, workdir, 2, before=functools.partial(hang_after, 4 * 8 + 2))
    run.wait_until(lambda: any(line["step"] >= 3 for line in metrics(workdir)))
    time.sleep(2)
    for process in run.processes:
        process.send_signal(signal.SIGTERM)
    seconds, codes = run.seconds_to_end(), run.wait()
    assert 143 in codes and set(codes) <= {1, 143} and seconds < 30, run.said(0) + run.said(1)
    assert any("has not been read within 15 s" in run.said(process) for process in range(2))
    assert checkpoint_steps(workdir) and not (workdir / "run.lock").exists()


@pytest.mark.slow
def test_the_watchdog_ends_a_run_whose_first_batch_never_comes(config, workdir):
    config.watchdog.seconds = 3.0
    process = start(config, workdir, reads=0)
    assert process.wait(timeout=120) == watchdog.STATUS, process.said()
    assert "no step has finished for 3 s" in process.said()
    assert "read_or_hang" in (workdir / "stacks-0.txt").read_text()
    assert not (workdir / "run.lock").exists()


def test_the_watchdog_ends_a_run_with_a_pipe_in_place_of_a_file(config, data, workdir, tmp_path):
    """It is opened long before the first step."""
    shutil.copytree(data / "mini_mmeb", tmp_path / "data" / "mini_mmeb")
    config.data.folder = str(tmp_path / "data")
    config.backbone = str(tmp_path / "data" / "mini_mmeb" / "backbone")
    file = tmp_path / "data" / "mini_mmeb" / "backbone" / "config.json"
    file.unlink()
    os.mkfifo(file)
    config.watchdog.setup_seconds = 0.5
    process = children.start(
        main.run,
        output=tmp_path / "log",
        argv=[*tiny_run.flags(config), f"--workdir={workdir}"],
    )
    assert process.wait(timeout=120) == watchdog.STATUS, process.said()
    assert "the set-up has not gone on for 0.5 s" in process.said()
