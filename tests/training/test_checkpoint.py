"""Checkpoints that are damaged, cannot be written, or are read on another mesh."""

import dataclasses
import errno
import json
import logging
import pathlib
import shutil
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.training.states import make_state, mesh_of
from unime_jax.training import checkpoint, damaged_checkpoints
from unime_jax.training.checkpoint import Checkpoints

FINGERPRINTS = {"backbone": "abc", "data": {"a": 3}}


def open_checkpoints(folder, keep=3, fingerprints=FINGERPRINTS, **options):
    return Checkpoints(folder, every=2, keep=keep, fingerprints=fingerprints, **options)


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three checkpoints; read-only."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    with open_checkpoints(folder) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, make_state(step))
    return folder


@pytest.fixture
def folder(three, tmp_path):
    """Three checkpoints of a test's own."""
    return pathlib.Path(shutil.copytree(three, tmp_path / "checkpoints"))


def test_none_yet(tmp_path):
    with open_checkpoints(tmp_path / "other", read_only=True) as checkpoints:
        assert checkpoints.latest_step() is None
    assert not (tmp_path / "other").exists()
    with open_checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step() is None and checkpoints.restore(make_state(0)) is None
        assert [step for step in range(7) if checkpoints.is_due(step)] == [0, 2, 4, 6]


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


# Damage


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max(folder.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())


def flip(step: pathlib.Path):
    file = largest_file(step)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def truncate(step: pathlib.Path):
    file = largest_file(step)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def record_of(content):
    """Damage: the record says this instead."""
    return lambda step: (step / "record" / "metadata").write_bytes(content)


DAMAGES = {
    "record without fingerprints": record_of(b'{"checksums": {}}'),
    "record of no fingerprints": record_of(b'{"facts": {}, "checksums": {}}'),
    "record of fewer fingerprints": record_of(b'{"facts": {"data": {"a": 3}}, "checksums": {}}'),
    "fingerprints that are a list": record_of(b'{"facts": ["backbone", "data"], "checksums": {}}'),
    "fingerprints that are null": record_of(b'{"facts": null, "checksums": {}}'),
    "checksums that are a list": record_of(b'{"facts": {"backbone": "abc"}, "checksums": []}'),
    "record that is a list": record_of(b"[]"),
    "record that is null": record_of(b"null"),
    "record that is not UTF-8": record_of(b"\xff\xfe{}"),
    "record that is a file": lambda step: (
        shutil.rmtree(step / "record"),
        (step / "record").write_text(""),
    ),
    "nothing at all": lambda step: (shutil.rmtree(step), step.mkdir()),
    "state's metadata that are a list": lambda step: (step / "state" / "_METADATA").write_text(
        "[]"
    ),
    "flipped": flip,
    "truncated": truncate,
    "no record": lambda step: (step / "record").rename(step.parent / "elsewhere"),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "no index": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "empty record": lambda step: largest_file(step / "record").write_bytes(b""),
}


def test_the_one_before_a_damaged_checkpoint_is_used(three, tmp_path, caplog):
    for number, (damage, do) in enumerate(DAMAGES.items()):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(three, folder)
        do(folder / "6")
        caplog.clear()
        with caplog.at_level(logging.WARNING), open_checkpoints(folder) as checkpoints:
            found = checkpoints.restore(make_state(0))
            assert_same(found, make_state(4))
            assert "checkpoint of step 6" in caplog.text, damage
            assert "step 4 is used instead" in caplog.text, damage
            assert checkpoints.latest_step() == 4, damage
        assert len(list(folder.with_name("checkpoints_bad").iterdir())) == 1, damage
        assert steps(folder) == [2, 4], damage


def test_a_run_gets_past_a_damaged_checkpoint_twice(folder):
    """Two of one step are both kept out of the way."""
    for _ in range(2):
        flip(folder / "6")
        with open_checkpoints(folder) as checkpoints:
            assert_same(checkpoints.restore(make_state(0)), make_state(4))
            checkpoints.save(6, make_state(6))  # the run gets there again
    assert steps(folder) == [2, 4, 6]
    assert len(list(folder.with_name("checkpoints_bad").iterdir())) == 2
    with open_checkpoints(folder) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(6))


def test_notes_on_a_checkpoint_are_no_part_of_it(three, tmp_path):
    contents = [None, b"", b"[]", b"7", b"\xff\xfe", b'{"item_handlers": 7}', b"{"]
    for number, content in enumerate(contents):
        folder = tmp_path / str(number)
        shutil.copytree(three, folder)
        for step in steps(folder):
            notes = folder / str(step) / damaged_checkpoints.NOTES
            notes.unlink()
            if content is not None:
                notes.write_bytes(content)
        with open_checkpoints(folder) as checkpoints:
            assert_same(checkpoints.restore(make_state(0)), make_state(6))
            if content in (None, b"[]"):
                checkpoints.save(8, make_state(8))
        assert steps(folder) == ([4, 6, 8] if content in (None, b"[]") else [2, 4, 6]), content


def test_leftovers_of_interrupted_saves_are_removed_by_the_next_run(folder):
    """Also where the best checkpoint is kept; and they are never taken for a checkpoint."""
    for best in (None, lambda steps: None):
        leftover = folder / "8.orbax-checkpoint-tmp"
        (leftover / "state").mkdir(parents=True)
        (leftover / "state" / "part").write_bytes(b"x")
        with open_checkpoints(folder, read_only=True) as checkpoints:
            assert checkpoints.steps() == [2, 4, 6] and leftover.exists()
        with open_checkpoints(folder, best=best) as checkpoints:
            assert checkpoints.steps() == [2, 4, 6] and checkpoints.latest_step() == 6
        assert not leftover.exists()


def test_values_that_no_file_format_would_notice(folder, monkeypatch):
    """As if a wrong array had been read in full health."""
    restore = Checkpoints._restore

    def restore_badly(self, step, **parts):
        found = restore(self, step, **parts)
        if step == 6 and "state" in parts:
            found["state"]["trainable"]["bias"] = found["state"]["trainable"]["bias"] + 1e-7
        return found

    monkeypatch.setattr(Checkpoints, "_restore", restore_badly)
    with open_checkpoints(folder) as checkpoints:
        assert int(checkpoints.restore(make_state(0)).step) == 4


def test_no_good_checkpoint(folder):
    for step in steps(folder):
        flip(folder / str(step))
    with (
        open_checkpoints(folder) as checkpoints,
        pytest.raises(ValueError, match="No checkpoint.*\n  step 6.*\n  step 4.*\n  step 2.*\nBr"),
    ):
        checkpoints.restore(make_state(0))
    assert steps(folder) == [2, 4, 6]


def test_reading_changes_nothing(folder):
    """An export of a run that goes on: neither its save in progress nor a bad one is touched."""
    flip(folder / "6")
    (folder / "8.orbax-checkpoint-tmp").mkdir()
    with open_checkpoints(folder, read_only=True) as checkpoints:
        assert int(checkpoints.restore(make_state(0)).step) == 4
    assert steps(folder) == [2, 4, 6] and (folder / "8.orbax-checkpoint-tmp").exists()


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


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(folder):
    flip(folder / "4")
    with (
        open_checkpoints(folder, read_only=True) as checkpoints,
        pytest.raises(ValueError, match="checkpoint of step 4 in .*: "),
    ):
        checkpoints.restore_step(4, make_state(0))


# Names of folders


def test_a_path_that_is_a_pattern_is_refused(tmp_path, monkeypatch):
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


def test_other_names_work(tmp_path):
    """Also a link without such characters to a folder that has some."""
    (tmp_path / "lr[1e-4]").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "lr[1e-4]")
    for name in ("{a,b} ]", "seed=0,lr=1e-4 ünï#%20'", "link"):
        checkpoint.check_name(tmp_path / name)
        with open_checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            checkpoints.save(2, make_state(2))
        with open_checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            assert_same(checkpoints.restore(make_state(0)), make_state(2))


def test_a_first_checkpoint_that_cannot_be_read_ends_the_run(tmp_path):
    """As one in a folder whose name is a pattern, which nobody has refused here."""
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


def test_a_checkpoint_is_proven_by_its_index_and_record(three):
    record = json.loads((three / "6" / "record" / "metadata").read_bytes())
    damaged_checkpoints.check_readable(three, 6, record)
    for other in (record | {"checksums": {}}, {}):
        with pytest.raises(RuntimeError, match="step 6 .*it is not what was saved"):
            damaged_checkpoints.check_readable(three, 6, other)
    with pytest.raises(RuntimeError, match="step 8 .*cannot be read back: FileNotFoundError"):
        damaged_checkpoints.check_readable(three, 8, record)


def test_an_empty_index_is_no_proof(folder):
    record = json.loads((folder / "6" / "record" / "metadata").read_bytes())
    (folder / "6" / "state" / damaged_checkpoints.MANIFEST).write_bytes(b"")
    with pytest.raises(RuntimeError, match="it is not what was saved"):
        damaged_checkpoints.check_readable(folder, 6, record)


def test_a_long_reason_is_cut_in_its_middle():
    short = damaged_checkpoints.in_short(ValueError("a\n  b"))
    assert short == "ValueError: a b"
    text = damaged_checkpoints.in_short(OSError("begin " + 1000 * "x" + " end"))
    assert len(text) == 405 and text.startswith("OSError: begin") and text.endswith("x end")
    exact = damaged_checkpoints.in_short(OSError(391 * "x"))
    assert exact == "OSError: " + 391 * "x" and len(exact) == 400


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


def test_a_save_that_fails_later_is_noticed_between_steps(tmp_path, monkeypatch):
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(2, make_state(2))
        checkpoints._manager.wait_until_finished()
        checkpoints.check()

        def fails(*_, **__):
            raise OSError(errno.EIO, "Input/output error")

        handler = checkpoint.ocp.AsyncCheckpointer
        monkeypatch.setattr(handler, "_save_step_metadata", fails)  # in the background thread
        checkpoints.save(4, make_state(4))
        with pytest.raises(RuntimeError, match="Input/output error.*Complete: step 2"):
            for _ in range(3000):
                checkpoints.check()
                time.sleep(0.01)
        monkeypatch.undo()
    assert steps(tmp_path / "checkpoints") == [2]


def test_a_failed_last_save_is_not_lost(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with (
        pytest.raises(RuntimeError, match="Input/output error"),
        open_checkpoints(tmp_path / "checkpoints") as checkpoints,
    ):
        monkeypatch.setattr(checkpoint.ocp.AsyncCheckpointer, "_save_step_metadata", fails)
        checkpoints.save(2, make_state(2))
