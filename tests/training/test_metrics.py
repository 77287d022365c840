"""MetricsWriter: what is on disk after writing, dying and resuming."""

import io
import json
import math
import os
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from unime_jax import files
from unime_jax.training import metrics, progress
from unime_jax.training.metrics import MetricsWriter


def open_writer(workdir, total_steps=10, wandb_project=None, **options):
    return MetricsWriter(workdir, total_steps=total_steps, wandb_project=wandb_project, **options)


def fail(message):
    raise OSError(message)


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def lines(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_one_flushed_line_for_every_step_and_steps_increase(tmp_path):
    # A line a step, which is flushed.
    with open_writer(tmp_path / "new" / "run") as writer:
        writer.write(1, {"loss": 2.5, "pairs_per_second": 10})
        assert lines(tmp_path / "new" / "run") == [
            {"step": 1, "loss": 2.5, "pairs_per_second": 10.0}
        ]
        writer.write(5, {"loss": jnp.float32(0.5), "masked_share": np.float32(0.25)})
    written = lines(tmp_path / "new" / "run")
    assert written[1] == {"step": 5, "loss": 0.5, "masked_share": 0.25}
    assert next(iter(written[1])) == "step"

    # Steps increase, also from the one that a run goes on from.
    with open_writer(tmp_path, resume_step=2) as writer:
        for last in (2, 3):
            for step in (2, 1, 0):
                with pytest.raises(
                    ValueError, match=f"step {step} come after those of step {last}"
                ):
                    writer.write(step, {"loss": 1})
            if last == 2:
                writer.write(3, {"loss": 1})
        with pytest.raises(ValueError, match='called "step"'):
            writer.write(4, {"step": 1})
    assert len(lines(tmp_path)) == 1


def test_whatever_is_logged_is_strict_json(tmp_path, monkeypatch):
    # What is not finite is null.
    with open_writer(tmp_path) as writer:
        writer.write(1, {"loss": math.nan, "a": math.inf, "b": -math.inf, "c": 1.0})
    assert lines(tmp_path) == [{"step": 1, "loss": None, "a": None, "b": None, "c": 1.0}]

    # Any name and number is strict JSON.
    events = types.SimpleNamespace(write=lambda *args: None, close=lambda: None)
    monkeypatch.setattr(metrics, "TensorBoard", lambda *args: events)  # has rules for names
    values = {"": 0.1, '\n\t"\\\0': 1e308, "\ud800\u2028": -5e-324, "ü 蛇": math.nan, "a": -0.0}
    with open_writer(tmp_path) as writer:
        writer.write(1, values)
    (line,) = lines(tmp_path)
    assert line == {"step": 1} | {k: v if math.isfinite(v) else None for k, v in values.items()}


def test_resuming_cuts_what_the_dead_run_wrote_and_the_file_is_whole_at_any_moment(
    tmp_path, monkeypatch
):
    with open_writer(tmp_path) as writer:
        for step in range(1, 7):
            writer.write(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # died in the middle of a line
    with open_writer(tmp_path, resume_step=4) as writer:
        assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
        writer.write(5, {"loss": 50})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)][-2:] == [(4, 4), (5, 50)]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["metrics.jsonl", "tensorboard"]

    with open_writer(tmp_path) as writer:  # from the start: nothing of the old run is left
        assert lines(tmp_path) == []

    # A cut file is whole at any moment
    (tmp_path := tmp_path / "next").mkdir()
    # Nothing to cut leaves the file alone.
    with open_writer(tmp_path) as writer:
        writer.write(1, {"loss": 1})
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    with open_writer(tmp_path, resume_step=1):
        pass
    assert (tmp_path / "metrics.jsonl").stat().st_ino == inode

    # A cut one is whole and on the disk before it has its name.
    (tmp_path := tmp_path / "cut").mkdir()
    path = tmp_path / "metrics.jsonl"
    text = "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3))
    path.write_text(text)
    events = []
    replace = pathlib.Path.replace

    def named(source, target):
        assert source.read_text() == '{"step": 1}\n{"step": 2}\n' and path.read_text() == text
        events.append("named")
        return replace(source, target)

    monkeypatch.setattr(pathlib.Path, "replace", named)
    monkeypatch.setattr(files.os, "fsync", lambda number: events.append("flushed"))
    metrics.cut_after(path, 2)
    assert events[:2] == ["flushed", "named"] and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()

    # A failing cut leaves the file as it was.
    (tmp_path := tmp_path / "failing").mkdir()
    with open_writer(tmp_path) as writer:
        for step in range(1, 4):
            writer.write(step, {"loss": step})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        open_writer(tmp_path, resume_step=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_lines_are_flushed_to_the_disk_before_a_checkpoint_of_their_steps(tmp_path, monkeypatch):
    """A reader sees them at once; a power cut after the checkpoint keeps them."""
    flushed = []

    def fsync(number):
        path = pathlib.Path(os.readlink(f"/proc/self/fd/{number}"))
        if path.name == "metrics.jsonl":
            flushed.append(path.read_text())

    with open_writer(tmp_path) as writer:
        monkeypatch.setattr(files.os, "fsync", fsync)
        writer.write(1, {"loss": 1.0})
        assert not flushed and len(lines(tmp_path)) == 1
        writer.flush()
        assert flushed == ['{"step": 1, "loss": 1.0}\n']
        assert tensorboard_scalars(tmp_path) == [("loss", 1, 1.0)]


def test_damaged_lines_are_kept_aside_and_a_cut_last_one_is_not(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    for content, kept, aside in (
        (b'{"step": 1}\n{"st', b'{"step": 1}\n', 0),
        (b'{"step": 1}\n{"step": 2}\n', b'{"step": 1}\n{"step": 2}\n', 0),
        (b'{"step": 1}\n{"st\n{"step": 2}\n', b'{"step": 1}\n{"step": 2}\n', 1),
        (b'{"step": NaN}\n{"step": "1"}\n{"step": 2}\n[]\n', b'{"step": 2}\n', 2),
    ):
        caplog.clear()
        path.write_bytes(content)
        metrics.cut_after(path, 2)
        assert path.read_bytes() == kept
        assert len(list(tmp_path.glob("metrics.jsonl.damaged-*"))) == aside, content
    assert "3 lines are not a step's metrics" in caplog.text


def test_tensorboard_gets_the_same_numbers_and_drops_those_of_steps_run_again(tmp_path):
    # The same numbers.
    with open_writer(tmp_path) as writer:
        writer.write(1, {"loss": 2.5})
        writer.write(3, {"loss": 0.5, "rows_without_negatives": 4})
    assert tensorboard_scalars(tmp_path) == [
        ("loss", 1, 2.5),
        ("loss", 3, 0.5),
        ("rows_without_negatives", 3, 4.0),
    ]

    # Readers drop those of steps that are run again, by the number of the first that comes anew.
    (tmp_path := tmp_path / "again").mkdir()
    with open_writer(tmp_path, resume_step=4):
        pass
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found.append((event.step, event.session_log.status))
        data = data[16 + size :]
    assert found[-1] == (5, SessionLog.START)


def tensorboard_scalars(workdir):
    """(tag, step, value) of all event files; a record is length, crc, payload, crc."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[16 + size :]
    return found


def test_progress_its_rate_and_the_time_left_are_of_this_start(tmp_path, capsys, monkeypatch):
    """Of a run that goes on: a step with compiling, then two in 60 s, so that the last is 30 s."""
    clock = types.SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(progress, "time", clock)
    with open_writer(tmp_path, total_steps=10, resume_step=6) as writer:
        clock.now += 300.0
        writer.write(7, {})
        clock.now += 60.0
        writer.write(9, {})
    compiled, later = capsys.readouterr().err.splitlines()
    assert compiled.startswith("7/10 [05:00<?,")
    assert later == "9/10 [06:00<00:30, 30.00s/step]"

    class Bar:
        disable = False

        def __init__(self, **options):
            assert (options["initial"], options["total"]) == (6, 10)

        def close(self):
            pass

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "tqdm", Bar)
    with open_writer(tmp_path, total_steps=10, resume_step=6):
        pass

    (tmp_path := tmp_path / "next").mkdir()
    monkeypatch.undo()
    # A bar on a terminal.
    with pytest.MonkeyPatch.context() as patch:
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        patch.setattr(sys, "stderr", terminal)
        with open_writer(tmp_path, total_steps=8, resume_step=4) as writer:
            writer.write(8, {"loss": 0.25, "pairs_per_second": 3})
        text = terminal.getvalue()
        assert "\r" in text
        assert "50%" in text and "4/8" in text
        assert "8/8" in text and "loss 0.2500, 3.0 pairs/s" in text

    # Plain lines where stderr is no terminal.
    (tmp_path := tmp_path / "next").mkdir()
    capsys.readouterr()
    with open_writer(tmp_path, total_steps=30) as writer:
        for step in range(1, 31):
            writer.write(step, {"loss": 1 / step, "pairs_per_second": 64})
    out, err = capsys.readouterr()
    assert out == ""
    first, last = err.splitlines()  # the first step and the end; in between, one every 30 s
    assert "\r" not in err
    assert first.startswith("1/30 [") and "loss 1.0000, 64.0 pairs/s" in first
    assert last.startswith("30/30 [") and "loss 0.0333" in last

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with open_writer(tmp_path, total_steps=4) as writer:
        for step in range(1, 5):
            writer.write(step, {})
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_wandb_if_asked_for_and_nothing_from_other_processes(tmp_path, monkeypatch):
    # Wandb that is not there is a clear error.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", None)  # makes `import wandb` fail
        with pytest.raises(ModuleNotFoundError, match=r"'my_project'.*pip install wandb"):
            open_writer(tmp_path / "run", wandb_project="my_project")
        assert not (tmp_path / "run").exists()
        with open_writer(tmp_path / "run"):
            pass

    # Wandb if asked for.
    calls = []

    def init(**options):
        calls.append(("init", options))
        return types.SimpleNamespace(
            log=lambda values, step: calls.append(("log", values, step)),
            finish=lambda exit_code: calls.append(("finish", exit_code)),
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    writer = open_writer(tmp_path / "run7", wandb_project="p")
    with pytest.raises(KeyboardInterrupt), writer:
        writer.write(2, {"loss": 1})
        writer.write_scores({2: {"All": 5.0}, 4: {"All": 7.0}})
        raise KeyboardInterrupt
    assert [call[0] for call in calls] == ["init", "log", "log", "finish"]
    assert calls.pop(2) == ("log", {"evaluation/All": 7.0}, 4)  # the newest evaluation
    assert list((tmp_path / "run7" / "tensorboard" / "evaluation").iterdir())
    assert calls[0][1]["resume"] == "auto"
    assert calls[0][1]["project"] == "p"
    assert calls[0][1]["name"] == "run7"
    assert calls[1:] == [("log", {"loss": 1.0}, 2), ("finish", 1)]

    # Of other processes nothing is written.
    monkeypatch.undo()
    (tmp_path := tmp_path / "other").mkdir()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with open_writer(tmp_path / "run", wandb_project="never_imported") as writer:
        writer.write(1, {"loss": 1})
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    with MetricsWriter(tmp_path, total_steps=9, wandb_project=None) as writer:
        writer.write(1, {"loss": 1.0})
        with open("/dev/full", "wb", buffering=0) as full:
            monkeypatch.setattr(writer, "_file", io.TextIOWrapper(full, write_through=True))
            with pytest.raises(RuntimeError, match="No space left.*metrics of step 2") as raised:
                writer.write(2, {"loss": 1.0})
            monkeypatch.undo()
    with pytest.raises(OSError, match="at the end"), open_writer(tmp_path / "other") as writer:
        monkeypatch.setattr(
            writer, "_file", types.SimpleNamespace(close=lambda: fail("at the end"))
        )
    with pytest.raises(KeyError), open_writer(tmp_path / "another") as writer:
        monkeypatch.setattr(writer, "_file", types.SimpleNamespace(close=lambda: fail("later")))
        raise KeyError  # which matters more
    assert str(tmp_path) in str(raised.value) and "the same command" in str(raised.value)
