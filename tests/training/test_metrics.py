"""MetricsWriter: what is on disk after writing, dying and resuming."""

import io
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies
from tensorboardX.proto.event_pb2 import Event

from unime_jax import files
from unime_jax.training import metrics, progress
from unime_jax.training.metrics import MetricsWriter


def open_writer(workdir, total_steps=10, wandb_project=None, **options):
    return MetricsWriter(workdir, total_steps=total_steps, wandb_project=wandb_project, **options)


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def lines(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_one_flushed_line_a_step(tmp_path):
    with open_writer(tmp_path / "new" / "run") as writer:
        writer.write(1, {"loss": 2.5, "pairs_per_second": 10})
        assert lines(tmp_path / "new" / "run") == [
            {"step": 1, "loss": 2.5, "pairs_per_second": 10.0}
        ]
        writer.write(5, {"loss": jnp.float32(0.5), "masked_share": np.float32(0.25)})
    written = lines(tmp_path / "new" / "run")
    assert written[1] == {"step": 5, "loss": 0.5, "masked_share": 0.25}
    assert next(iter(written[1])) == "step"


def test_what_is_not_finite_is_null(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(1, {"loss": math.nan, "a": math.inf, "b": -math.inf, "c": 1.0})
    assert lines(tmp_path) == [{"step": 1, "loss": None, "a": None, "b": None, "c": 1.0}]


@settings(max_examples=30, deadline=None)
@given(values=strategies.dictionaries(strategies.text(), strategies.floats(), max_size=3))
def test_any_name_and_number_is_strict_json(tmp_path_factory, values):
    values.pop("step", None)
    workdir = tmp_path_factory.mktemp("run")
    events = types.SimpleNamespace(write=lambda *args: None, close=lambda: None)
    with pytest.MonkeyPatch.context() as patch:  # TensorBoard has rules of its own for names
        patch.setattr(metrics, "TensorBoard", lambda *args: events)
        with open_writer(workdir) as writer:
            writer.write(1, values)
    (line,) = lines(workdir)
    assert line == {"step": 1} | {k: v if math.isfinite(v) else None for k, v in values.items()}


def test_resuming_cuts_what_the_dead_run_wrote_after_its_checkpoint(tmp_path):
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


def test_a_failing_cut_leaves_the_file_as_it_was(tmp_path, monkeypatch):
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


def test_nothing_to_cut_leaves_the_file_alone(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(1, {"loss": 1})
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    with open_writer(tmp_path, resume_step=1):
        pass
    assert (tmp_path / "metrics.jsonl").stat().st_ino == inode


@pytest.mark.parametrize("step", [2, 1, 0])
def test_steps_increase(tmp_path, step):
    with open_writer(tmp_path) as writer:
        writer.write(2, {"loss": 1})
        with pytest.raises(ValueError, match=f"step {step} come after those of step 2"):
            writer.write(step, {"loss": 1})
        with pytest.raises(ValueError, match='called "step"'):
            writer.write(3, {"step": 1})
    assert len(lines(tmp_path)) == 1


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


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(1, {"loss": 2.5})
        writer.write(3, {"loss": 0.5, "rows_without_negatives": 4})
    assert tensorboard_scalars(tmp_path) == [
        ("loss", 1, 2.5),
        ("loss", 3, 0.5),
        ("rows_without_negatives", 3, 4.0),
    ]


def test_plain_lines_where_stderr_is_no_terminal(tmp_path, capsys, monkeypatch):
    with open_writer(tmp_path, total_steps=300) as writer:
        for step in range(1, 301):
            writer.write(step, {"loss": 1 / step, "pairs_per_second": 64})
    out, err = capsys.readouterr()
    assert out == ""
    first, last = err.splitlines()  # the first step and the end; in between, one every 30 s
    assert "\r" not in err
    assert first.startswith("1/300 [") and "loss 1.0000, 64.0 pairs/s" in first
    assert last.startswith("300/300 [") and "loss 0.0033" in last

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with open_writer(tmp_path, total_steps=4) as writer:
        for step in range(1, 5):
            writer.write(step, {})
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with open_writer(tmp_path, total_steps=8, resume_step=4) as writer:
        writer.write(8, {"loss": 0.25, "pairs_per_second": 3})
    text = terminal.getvalue()
    assert "\r" in text
    assert "50%" in text and "4/8" in text
    assert "8/8" in text and "loss 0.2500, 3.0 pairs/s" in text


def test_wandb_that_is_not_there_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes `import wandb` fail
    with pytest.raises(ModuleNotFoundError, match=r"'my_project'.*pip install wandb"):
        open_writer(tmp_path / "run", wandb_project="my_project")
    assert not (tmp_path / "run").exists()
    with open_writer(tmp_path / "run"):
        pass


def test_wandb_if_asked_for(tmp_path, monkeypatch):
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
        raise KeyboardInterrupt
    assert [call[0] for call in calls] == ["init", "log", "finish"]
    assert calls[0][1]["project"] == "p"
    assert calls[0][1]["name"] == "run7"
    assert calls[1:] == [("log", {"loss": 1.0}, 2), ("finish", 1)]


def test_only_process_0_writes(tmp_path, monkeypatch):
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
    assert str(tmp_path) in str(raised.value) and "the same command" in str(raised.value)
