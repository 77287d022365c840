"""Checkpoints: what is kept, read on another mesh, and said when they cannot be written."""

import dataclasses
import errno
import pathlib
import subprocess
import time

import jax
import orbax.checkpoint as ocp
import pytest

from tests.training.states import (
    FINGERPRINTS,
    assert_same,
    make_state,
    mesh_of,
    open_checkpoints,
    steps,
)
from unime_jax.training import checkpoint


def test_no_checkpoint_yet_and_a_first_one_that_cannot_be_read(tmp_path):
    # None yet.
    with open_checkpoints(tmp_path / "other", read_only=True) as checkpoints:
        assert checkpoints.latest_step() is None
    assert not (tmp_path / "other").exists()
    with open_checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step() is None and checkpoints.restore(make_state(0)) is None
        assert [step for step in range(7) if checkpoints.is_due(step)] == [0, 2, 4, 6]

    # One that cannot be read ends the run. As in a folder whose name is a pattern.
    for number, between_steps in enumerate((True, False)):
        with (
            pytest.raises(RuntimeError, match="first checkpoint.*step 2.*cannot be read back.*pla"),
            open_checkpoints(tmp_path / f"lr[{number}e-4]") as checkpoints,
        ):
            checkpoints.save(2, make_state(2))
            if between_steps:
                checkpoints._manager.wait_until_finished()
                checkpoints.check()
                raise AssertionError("it was relied on")


def test_any_mesh_restores_the_same_values(three):
    """Saved on 8 devices; read on 8, 2 and 1, each by the sharding it has there."""
    with open_checkpoints(three, read_only=True) as checkpoints:
        for shape in ((1, 4, 2), (8, 1, 1), (1, 1, 2), (1, 1, 1)):
            start = make_state(0, mesh_of(*shape))
            found = checkpoints.restore(start)
            # Counters, moments and all: what is not saved is as in `start`.
            assert_same(found, dataclasses.replace(make_state(6), frozen=start.frozen))
            assert found.trainable["kernel"].sharding == start.trainable["kernel"].sharding
            assert found.frozen is start.frozen


def test_other_fingerprints_are_refused(folder):
    for name, other in (("backbone", "abd"), ("data", {"a": 4})):
        with (
            open_checkpoints(folder, fingerprints=FINGERPRINTS | {name: other}) as checkpoints,
            pytest.raises(ValueError, match=f"step 6 .* another {name}: .* then, .* now"),
        ):
            checkpoints.restore(make_state(0))
    with open_checkpoints(folder, fingerprints={"backbone": "abc"}) as checkpoints:  # knows less
        assert int(checkpoints.restore(make_state(0)).step) == 6


# The best one


def test_the_best_checkpoint_is_kept_besides_the_newest(tmp_path):
    """Also by a process that starts later, and until there is a better one."""
    folder, scores = tmp_path / "checkpoints", {4: 3.0, 8: 2.0}

    def best(steps):
        return max(scores.keys() & set(steps), key=scores.get, default=None)

    with open_checkpoints(folder, keep=2, best=best) as checkpoints:
        for step in (2, 4, 6, 8, 10):
            checkpoints.save(step, make_state(step))
    assert steps(folder) == [4, 8, 10]
    with open_checkpoints(folder, keep=2, best=best) as checkpoints:
        assert checkpoints.steps() == [4, 8, 10]
        checkpoints.save(12, make_state(12))
        assert_same(checkpoints.restore_step(4, make_state(0)), make_state(4))
        scores[12] = 9.0
        checkpoints.save(14, make_state(14))
        checkpoints.save(16, make_state(16))
        checkpoints.save(18, make_state(18))
    assert steps(folder) == [12, 16, 18]
    with open_checkpoints(folder, keep=2) as checkpoints:  # no longer asked for
        checkpoints.save(20, make_state(20))
    assert steps(folder) == [18, 20]


# Names of folders


def test_paths_of_any_name_but_patterns(tmp_path, monkeypatch):
    # Other names work. Also a link without such characters to a folder that has some.
    (tmp_path / "lr[1e-4]").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "lr[1e-4]")
    for name in ("{a,b} ]", "seed=0,lr=1e-4 ünï#%20'", "link"):
        checkpoint.check_name(tmp_path / name)
        with open_checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            checkpoints.save(2, make_state(2))
        with open_checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            assert_same(checkpoints.restore(make_state(0)), make_state(2))

    # A path that is a pattern is refused.
    (tmp_path := tmp_path / "next").mkdir()
    for name in ("lr[1e-4]", "lr[", "a*b", "a?b", "a**b", "a\\b", "x/[!a]/y"):
        with pytest.raises(ValueError, match="in a path is a pattern .*no checkpoint.*another na"):
            checkpoint.check_name(tmp_path / name)
        (tmp_path / name).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        with pytest.raises(ValueError, match="in a path is a pattern .* such as plain,"):
            checkpoint.check_name(pathlib.Path("runs/plain"))
    (tmp_path / "link").symlink_to(tmp_path / "lr[1e-4]")
    checkpoint.check_name(tmp_path / "link" / "run")
    for name, suggested in (("lr[1e-4]", "lr_1e-4"), ("a*?b", "a__b"), ("**", "run")):
        with pytest.raises(ValueError, match=f"another name, such as {suggested}, or a symbolic"):
            checkpoint.check_name(tmp_path / name)


def test_a_lost_process_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    """Processes agree while they save; the connection may break then."""

    def save(*_, **__):
        raise jax.errors.JaxRuntimeError("Gloo AllGather failed: connection reset by peer")

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(jax.errors.JaxRuntimeError, match="^Gloo AllGather failed"),
    ):
        checkpoints.save(2, make_state(2))


# Disks


@pytest.fixture
def disk(tmp_path):
    """A file system of one megabyte, to be unmounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("no permission to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays(disk):
    folder = disk / "checkpoints"
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(2, make_state(2))
    with (
        pytest.raises(RuntimeError, match=r"could not be written in .*[Nn]o space.*step 2.*room"),
        open_checkpoints(folder) as checkpoints,
    ):
        for step in range(4, 100, 2):
            checkpoints.save(step, make_state(step, size=4096))
            checkpoints.check()
    assert steps(folder) == [2]
    with open_checkpoints(folder) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(2))
        checkpoints.save(4, make_state(4))  # the failed one does not stay in the way
    assert steps(folder) == [2, 4]


def test_a_save_that_fails_is_noticed(tmp_path, monkeypatch):
    # A save that fails later is noticed between steps.
    with pytest.MonkeyPatch.context() as patch:
        with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
            checkpoints.save(2, make_state(2))
            with pytest.MonkeyPatch.context() as busy:
                busy.setattr(checkpoints._manager, "is_saving_in_progress", lambda: True)
                busy.setattr(checkpoints, "wait", None)
                checkpoints.check()  # steps do not wait for a save that goes on
            checkpoints._manager.wait_until_finished()
            checkpoints.check()

            def fails(*_, **__):
                raise OSError(errno.EIO, "Input/output error")

            handler = checkpoint.ocp.AsyncCheckpointer
            patch.setattr(handler, "_save_step_metadata", fails)  # in the background thread
            checkpoints.save(4, make_state(4))
            with pytest.raises(RuntimeError, match="Input/output error.*Complete: step 2"):
                for _ in range(3000):
                    checkpoints.check()
                    time.sleep(0.01)
            patch.undo()
        assert steps(tmp_path / "checkpoints") == [2]

    # A failed last save is not lost.
    (tmp_path := tmp_path / "next").mkdir()

    def fails(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with (
        pytest.raises(RuntimeError, match="Input/output error"),
        open_checkpoints(tmp_path / "checkpoints") as checkpoints,
    ):
        monkeypatch.setattr(checkpoint.ocp.AsyncCheckpointer, "_save_step_metadata", fails)
        checkpoints.save(2, make_state(2))
