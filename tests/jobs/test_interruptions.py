"""Runs that are killed, told to stop, or left without a disk, and go on as if nothing had been."""

import contextlib
import functools
import json
import shutil
import signal
import subprocess

import jax
import numpy as np
import pytest

from tests import children
from tests.jobs import forked_train, tiny_run
from tests.jobs.tiny_run import metrics, saved
from unime_jax.jobs import train

TIMINGS = {"pairs_per_second", "data_wait_share"}


@pytest.fixture
def config(config):
    """A run with checkpoints to go on from."""
    config.checkpoint.every = 2
    return config


def assert_undisturbed(workdir, straight):
    """The same weights, optimizer and metrics to the last bit as of the run that was left alone."""
    arrays, expected = saved(workdir, 6), saved(straight, 6)
    assert arrays.keys() == expected.keys() and len(arrays) > 100
    assert [k for k in arrays if arrays[k].tobytes() != expected[k].tobytes()] == []
    lines, others = (
        [{k: v for k, v in line.items() if k not in TIMINGS} for line in metrics(run)]
        for run in (workdir, straight)
    )
    assert lines == others and len(lines) == 6
    assert (workdir / "hf" / "self_check.json").exists()


def disturbed(config, folder, ends, jax_options=None, plain=False):
    """What `forked_train` tells of these ends by work directory."""
    child = children.start(
        forked_train.all_disturbed,
        *(config.to_dict(), folder, ends, plain),
        output=folder / "log",
        jax_options=jax_options,
    )
    assert child.wait(timeout=3000) == 0, child.said()
    return json.loads((folder / "ends.json").read_text())


def moments(count, seed):
    """In equal parts: before the first step, between steps, in the midst of a save, at the end."""
    random = np.random.default_rng(seed)
    kinds = (
        lambda: (random.uniform(0, 3), 0.0),
        lambda: (f"step {random.integers(1, 6)}", random.uniform(0, 0.3)),
        lambda: (f"save {2 * random.integers(1, 4)}", random.uniform(0, 0.1)),
        lambda: ("step 6", random.uniform(0, 1.5)),
    )
    return [kinds[n % len(kinds)]() for n in range(count)]


def export_of_one_file(setup, parameters, steps, rows, workdir):
    """In the place of `export.write`: its last file."""
    (workdir / "hf").mkdir()
    (workdir / "hf" / "self_check.json").touch()


def test_goes_on_after_a_kill_in_a_save_and_a_signal(config, plain_step, tmp_path, monkeypatch):
    """Of one run: what a signal saves and what an unfinished save leaves are both gone on from.

    Steps and an export without the model; those below and at night are real ones.
    """
    config.checkpoint.every = 4  # the signal comes with steps to save, however long it takes
    ends = [(signal.SIGKILL, "save 4", 0.0), (signal.SIGTERM, "step 1", 0.0)]
    ((killed, stopped, seconds),) = disturbed(config, tmp_path, [ends], plain=True)
    said = (tmp_path / "0.log").read_text()
    assert (killed, stopped) == (-signal.SIGKILL, 143), said
    assert "told to stop: saving step" in said and seconds < 30
    assert not (tmp_path / "0" / "hf").exists()  # who is told to stop exports nothing
    monkeypatch.setattr(train.export, "write", export_of_one_file)
    for workdir in ("0", "straight"):
        train.run(config, tmp_path / workdir)
    assert_undisturbed(tmp_path / "0", tmp_path / "straight")


@pytest.mark.slow
def test_killed_at_twenty_random_moments(config, straight, tmp_path):
    ends = [(signal.SIGKILL, *moment) for moment in moments(20, seed=0)]
    found = disturbed(config, tmp_path, [[end] for end in ends])
    assert [again for _, again, _ in found] == [0] * 20
    killed = [status for status, _, _ in found]
    assert killed.count(-signal.SIGKILL) >= 15 and set(killed) <= {0, -signal.SIGKILL}
    for number in range(20):
        assert_undisturbed(tmp_path / str(number), straight)


@pytest.mark.slow
def test_told_to_stop_in_any_phase(config, straight, tmp_path):
    """While it starts and compiles there is nothing to save, nor is there after the last step."""
    config = tiny_run.with_evaluation(config)
    moments = [(0.5, 0.0), ("parameters", 2.0), ("step 3", 0.0), ("step 6", 0.3), ("step 6", 1.2)]
    found = disturbed(config, tmp_path, [[(signal.SIGTERM, *m)] for m in moments])
    for number, (status, again, seconds) in enumerate(found):
        assert status == 143 and again == 0 and seconds < 30, (number, found)
        assert_undisturbed(tmp_path / str(number), straight)


@pytest.mark.slow
def test_a_second_start_compiles_nothing(config, tmp_path):
    config.compilation_cache, config.init = str(tmp_path / "cache"), "random"
    never = (signal.SIGKILL, 1e9, 0.0)
    found = disturbed(config, tmp_path, [[never], [never]], {"jax_compilation_cache_dir": None})
    assert [(status, again) for status, again, _ in found] == [(0, 0)] * 2
    second = (tmp_path / "0" / "goodput.json").stat().st_mtime  # the last that the first wrote
    programs = list((tmp_path / "cache").glob("*-cache"))
    kinds = {file.name.partition("-")[0] for file in programs}
    assert kinds >= {"jit_make_base", "jit_init_fn", "jit_step", "jit_run"}
    assert [file.name for file in programs if file.stat().st_mtime > second] == []


# Damaged checkpoints and other machines


@pytest.fixture
def trained(straight, workdir):
    """A copy of the undisturbed run, up to the checkpoint of step 4."""
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    shutil.rmtree(workdir / "hf")
    return workdir


def test_goes_on_from_the_checkpoint_before_a_damaged_one(config, straight, trained, caplog):
    """Also: a profile of a step, and an account of the time, with what was lost."""
    shutil.copytree(straight / "checkpoints" / "6", trained / "checkpoints" / "6")
    for file in (trained / "checkpoints" / "6" / "state").rglob("d/*"):  # where the values are
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    config.profile.update({"first_step": 6, "steps": 1})
    with caplog.at_level("INFO"):
        train.run(config, trained)
    assert (
        "step 4 is used instead" in caplog.text and "time of this run in 2 start(s)" in caplog.text
    )
    assert_undisturbed(trained, straight)
    assert list((trained / "profile").rglob("*.xplane.pb"))
    time = json.loads((trained / "goodput.json").read_text())
    assert time["starts"] == 2 and time["steps"] == 6
    spent = {name for name, seconds in time["seconds"].items() if seconds > 0}
    assert spent >= {"compute", "input", "checkpoint", "compile", "export", "other", "lost"}
    assert sum(time["shares"].values()) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 2, 1), (1, 2, 1), (1, 1, 1)])
def test_goes_on_on_another_mesh(config, straight, trained, monkeypatch, shape):
    """What 8 devices saved, on 8, 4, 2 and 1; then the same losses."""
    devices = jax.devices()[: int(np.prod(shape))]
    monkeypatch.setattr(train, "make_mesh", functools.partial(train.make_mesh, devices=devices))
    monkeypatch.setattr(train.export, "write", lambda *_: None)
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), shape, strict=True)))
    train.run(config, trained)
    losses, expected = ([line["loss"] for line in metrics(run)] for run in (trained, straight))
    assert losses[:4] == expected[:4] and len(losses) == 6
    np.testing.assert_allclose(losses[4:], expected[4:], rtol=1e-5)


# Disks


@contextlib.contextmanager
def mounted(disk, options):
    """A file system of its own, in memory."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # what failed may be open


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(config, straight, tmp_path):
    with mounted(tmp_path / "disk", "size=64m") as disk:
        config.steps = 6
        filler = disk / "filler"
        full = functools.partial(_fill_at, filler, disk / "run")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.Checkpoints, "check", full(train.Checkpoints.check))
            with pytest.raises(RuntimeError, match="(?s)[Nn]o space.*the same command"):
                train.run(config, disk / "run")
        assert tiny_run.checkpoint_steps(disk / "run") == [2]
        with pytest.raises(ValueError, match="cannot be written: No space left"):
            train.run(config, disk / "run")
        filler.unlink()
        train.run(config, disk / "run")
        assert_undisturbed(disk / "run", straight)


@pytest.mark.slow
def test_a_read_only_disk_is_said_at_once(config, tmp_path):
    with (
        mounted(tmp_path / "disk", "ro") as disk,
        pytest.raises(ValueError, match="--workdir=.*cannot be written: Read-only file system"),
    ):
        train.run(config, disk / "run")


def _fill_at(filler, workdir, check):
    """`Checkpoints.check`, before which somebody else fills the disk once there is a checkpoint."""

    def fill_and_check(self):
        if (workdir / "checkpoints" / "2").exists() and not filler.exists():
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(2**16)):
                    pass
        check(self)

    return fill_and_check
