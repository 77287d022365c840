"""Checkpoints that are damaged: the one before is used, and they are kept out of the way."""

import json
import logging
import pathlib
import shutil

import pytest

from tests.training.states import (
    assert_same,
    make_state,
    open_checkpoints,
    steps,
)
from unime_jax.training import damaged_checkpoints
from unime_jax.training.checkpoint import Checkpoints


def values_of(step: pathlib.Path) -> pathlib.Path:
    """The largest file of values; how many there are is a matter of timing."""
    return max(step.glob("state/**/d/*"), key=lambda path: path.stat().st_size)


def flip(step: pathlib.Path):
    file = values_of(step)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def truncate(step: pathlib.Path):
    file = values_of(step)
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
    "empty record": record_of(b""),
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
    for step, best in ((8, None), (10, lambda steps: None)):
        leftover = folder / "7.orbax-checkpoint-tmp"
        (leftover / "state").mkdir(parents=True)
        (leftover / "state" / "part").write_bytes(b"x")
        with open_checkpoints(folder, read_only=True) as checkpoints:
            assert checkpoints.latest_step() == step - 2 and leftover.exists()
        with open_checkpoints(folder, best=best) as checkpoints:
            assert 7 not in checkpoints.steps() and checkpoints.latest_step() == step - 2
            checkpoints.save(step, make_state(step))  # which waits until they are gone
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


def test_reading_changes_nothing_and_one_after_the_other_is_damaged(folder):
    """An export of a run that goes on: neither its save in progress nor a bad one is touched."""
    flip(folder / "6")
    (folder / "8.orbax-checkpoint-tmp").mkdir()
    with open_checkpoints(folder, read_only=True) as checkpoints:
        assert int(checkpoints.restore(make_state(0)).step) == 4
    assert steps(folder) == [2, 4, 6] and (folder / "8.orbax-checkpoint-tmp").exists()

    # A damaged checkpoint that is asked for is refused.
    flip(folder / "4")
    with (
        open_checkpoints(folder, read_only=True) as checkpoints,
        pytest.raises(ValueError, match="checkpoint of step 4 in .*: "),
    ):
        checkpoints.restore_step(4, make_state(0))

    # No checkpoint is good.
    flip(folder / "2")
    with (
        open_checkpoints(folder) as checkpoints,
        pytest.raises(ValueError, match="No checkpoint.*\n  step 6.*\n  step 4.*\n  step 2.*\nBr"),
    ):
        checkpoints.restore(make_state(0))
    assert steps(folder) == [2, 4, 6]


def test_a_checkpoint_is_proven_by_its_index_and_record(three, folder):
    record = json.loads((three / "6" / "record" / "metadata").read_bytes())
    damaged_checkpoints.check_readable(three, 6, record)
    for other in (record | {"checksums": {}}, {}):
        with pytest.raises(RuntimeError, match="step 6 .*it is not what was saved"):
            damaged_checkpoints.check_readable(three, 6, other)
    with pytest.raises(RuntimeError, match="step 8 .*cannot be read back: FileNotFoundError"):
        damaged_checkpoints.check_readable(three, 8, record)

    # An empty index is no proof
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
