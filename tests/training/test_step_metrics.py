"""Metrics of steps, a step late: what is written when, what is summed, and when a run gives up."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from experiments import stage2
from tests.training.states import mesh_of
from unime_jax import config_reader
from unime_jax.config import TrainConfig
from unime_jax.data.packing import PackInfo
from unime_jax.data.quarantine import BadItem, read_quarantine
from unime_jax.training import outcome
from unime_jax.training.step_metrics import StepMetrics

INFO = PackInfo(
    read=16,
    bad=(),
    rows=(8,),
    chunks=(1,),
    pad_fraction=0.5,
    overflowed=2,
    duplicates=0,
    dropped_negatives=0,
    truncated=1,
    unmatched_markers=0,
)


def settings_of(**changes):
    settings = config_reader.read(TrainConfig, stage2.get_config().to_dict())
    changes = {"log_every": 3, "steps": 8, "batch_size": 64, "max_skipped": 2} | changes
    return dataclasses.replace(settings, **changes)


class Listener:
    """Stands for the writer and for the monitor."""

    def __init__(self):
        self.written, self.observed, self.flushes = [], [], 0

    def write(self, step, values):
        self.written.append((step, dict(values)))

    def observe(self, step, values):
        self.observed.append((step, values["loss"]))

    def flush(self):
        self.flushes += 1


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def stop():
    return types.SimpleNamespace(told=False)


def make(tmp_path, listener, stop, **changes):
    return StepMetrics(
        settings_of(**changes), mesh_of(1, 1, 1), tmp_path, ["a", "b"], listener, listener, stop
    )


def results(number, skipped=0, in_a_row=0, loss=None):
    return {
        "loss": np.float32(number if loss is None else loss),
        "source_loss": np.array([number, 0], np.float32),
        "source_rows": np.array([2, 0], np.float32),
        "skipped_steps": np.int32(skipped),
        "skipped_in_a_row": np.int32(in_a_row),
    }


def test_lines_are_written_a_step_late_and_before_a_save(tmp_path, listener, stop):
    # A line every few steps and at the end a step late.
    metrics = make(tmp_path, listener, stop)
    for number in range(1, 9):
        metrics.add(number, results(number), INFO, waited=0.0)
        assert [step for step, _ in listener.observed] == list(range(1, number))
    assert [step for step, _ in listener.written] == [3, 6]
    assert metrics.report() and metrics.report()  # the second one has nothing to wait for
    assert [step for step, _ in listener.written] == [3, 6, 8]
    assert listener.observed == [(step, float(step)) for step in range(1, 9)]
    first, second, last = (values for _, values in listener.written)
    # Sums since the line before, and the mean of losses by source over those steps.
    assert [line["truncated_rows"] for line in (first, second, last)] == [3, 3, 2]
    assert [line["source_loss/a"] for line in (first, second, last)] == [2, 5, 7.5]
    assert "source_loss/b" not in first and "source_loss" not in first
    assert first["pad_fraction"] == 0.5 and first["loss"] == 3.0

    # A step that is saved is written before.
    (tmp_path := tmp_path / "next").mkdir()
    listener = Listener()
    metrics = make(tmp_path, listener, stop)
    metrics.add(1, results(1), INFO, waited=0.0)
    assert metrics.flush() and [step for step, _ in listener.written] == [1]
    assert listener.flushes == 1
    metrics.add(2, results(2, skipped=1, in_a_row=1), INFO, waited=0.0)
    assert not metrics.flush() and listener.flushes == 2
    metrics.add(3, results(3, skipped=1), INFO, waited=0.0)
    assert metrics.report()
    assert listener.written[-1][1]["truncated_rows"] == 1  # those of step 3 alone


def test_rate_and_wait_are_of_one_step_and_alone_a_process_stops_when_told(
    tmp_path, listener, stop, monkeypatch
):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr("unime_jax.training.step_metrics.time.perf_counter", lambda: clock.now)
    metrics = make(tmp_path, listener, stop, log_every=1)
    for number, seconds, outside in ((1, 4.0, 0.0), (2, 8.0, 6.0)):
        clock.now += seconds + outside
        metrics.leave_out(outside)
        metrics.add(number, results(number), INFO, waited=1.0)
    metrics.report()
    lines = [values for _, values in listener.written]
    assert [line["pairs_per_second"] for line in lines] == [16.0, 8.0]
    assert [line["data_wait_share"] for line in lines] == [0.25, 0.125]

    # Alone a process stops as soon as it is told.
    metrics = make(tmp_path, listener, stop)
    assert not metrics.told_to_stop
    stop.told = True
    assert metrics.told_to_stop


def test_a_run_gives_up_after_too_many_skipped_steps_or_bad_examples(tmp_path, listener, stop):
    # A run gives up after so many skipped steps in a row.
    metrics = make(tmp_path, listener, stop)
    metrics.add(1, results(1), INFO, waited=0.0)
    metrics.add(2, results(2, 1, 1), INFO, waited=0.0)
    metrics.add(3, results(3, 2, 2, loss=np.nan), INFO, waited=0.0)
    with pytest.raises(RuntimeError, match="2 steps in a row .*step 3, loss nan.*checkpoints") as e:
        metrics.report()
    assert not isinstance(e.value, outcome.EveryStepSkipped)
    assert listener.written[-1][0] == 3  # its last line says so

    listener.written.clear()
    metrics = make(tmp_path, listener, stop)
    metrics.add(1, results(1, 1, 1), INFO, waited=0.0)
    metrics.add(2, results(2, 2, 2), INFO, waited=0.0)
    with pytest.raises(outcome.EveryStepSkipped, match="none of the first 2 steps"):
        metrics.report()
    assert [step for step, _ in listener.written] == [2]

    # Too many bad examples end a run and are listed.
    (tmp_path := tmp_path / "next").mkdir()
    listener = Listener()
    metrics = make(tmp_path, listener, stop)
    item = BadItem("a", "7", "", "no text")
    bad = dataclasses.replace(INFO, bad=(item,) * 16, read=64)
    with pytest.raises(ValueError, match="64 of 256 examples read were unusable"):
        for number in range(1, 9):
            metrics.add(number, results(number), bad, waited=0.0)
    path = metrics.refuse([item._replace(id="8")])
    assert path == tmp_path / "quarantine.jsonl"
    assert '"7"' in path.read_text() and '"8"' in path.read_text()


def test_process_0_takes_the_mean_of_shares_and_the_bad_items_of_others(
    tmp_path, listener, stop, monkeypatch
):
    metrics = make(tmp_path, listener, stop, log_every=1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # the sums are those of one
    metrics.add(1, results(1), INFO, waited=0.0)
    metrics.report()
    assert listener.written[0][1]["pad_fraction"] == 0.25
    assert not metrics.told_to_stop
    stop.told = True  # this one process
    metrics.add(2, results(2), INFO, waited=0.0)
    metrics.report()
    stop.told = False
    assert metrics.told_to_stop

    def listed():
        return {item.id for item in read_quarantine(tmp_path / "quarantine.jsonl")}

    own, theirs, later = (BadItem("a", name, "", "torn") for name in ("own", "theirs", "later"))
    (tmp_path / "quarantine-1.jsonl").write_text(json.dumps(theirs._asdict()) + "\n")
    assert metrics.refuse([own]) == tmp_path / "quarantine.jsonl"
    assert listed() == {"own", "theirs"}
    (tmp_path / "quarantine-2.jsonl").write_text(json.dumps(later._asdict()) + "\n")
    metrics.flush()
    assert listed() == {"own", "theirs", "later"}
