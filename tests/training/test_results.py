"""What a run leaves: scores after what the report shows of them, whole and on the disk; outcome."""

import dataclasses
import json
import math
import os
import types

import jax
import pytest

from experiments import stage2
from unime_jax import config_reader, files
from unime_jax.config import TrainConfig
from unime_jax.evaluation import scores, suite
from unime_jax.evaluation.report import page as report
from unime_jax.evaluation.stored import results as results_files
from unime_jax.training import results

SIDE = {"datasets": {"a": 50.0}, "All": 50.0, "composition": {}}
TESTS = types.SimpleNamespace(is_empty=False, table={}, composition_rows={}, images=lambda: None)


def encoder(items):
    raise AssertionError("suite.evaluate is a stand-in here")


@pytest.fixture(scope="module")
def settings() -> TrainConfig:
    return config_reader.read(TrainConfig, stage2.get_config().to_dict())


@pytest.fixture
def writes(monkeypatch):
    """Names of files as they are flushed to the disk and as they get their name, in order."""
    events = []

    def fsync(number):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{number}"))
        events.append(("flushed", name.split(".npz")[0].split(".json")[0]))

    replace = os.replace

    def named(source, target, **_):
        events.append(("named", os.path.basename(target).split(".")[0]))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", named)
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: named(self, target))
    return events


@pytest.fixture
def evaluated(monkeypatch):
    monkeypatch.setattr(suite, "evaluate", lambda tests, encoder: (SIDE, {}))


def test_scores_are_written_last_or_not_at_all(tmp_path, evaluated, writes, monkeypatch):
    """Flushed before it has its name; the scores say that the side is done."""
    assert results.evaluate_side(TESTS, encoder, tmp_path, "before") == SIDE
    wanted = [
        step
        for name in ("results_before", "evaluation")
        for step in (("flushed", name), ("named", name))
    ]
    assert [event for event in writes if event[1] != tmp_path.name] == wanted
    assert scores.read_scores(tmp_path) == {"before": SIDE}
    assert results_files.load_results(tmp_path / "results_before.npz") == {}

    # Results that cannot be written leave no scores
    (tmp_path := tmp_path / "next").mkdir()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(results_files, "save_results", fails)
    with pytest.raises(OSError, match="disk full"):
        results.evaluate_side(TESTS, encoder, tmp_path, "before")
    assert scores.read_scores(tmp_path) == {}


def test_results_are_written_by_process_0_if_anything_was_evaluated(
    tmp_path, evaluated, settings, monkeypatch, caplog
):
    # Without tests nothing is evaluated.
    empty = types.SimpleNamespace(is_empty=True)
    assert results.evaluate_side(empty, encoder, tmp_path, "after") == {}
    assert not list(tmp_path.iterdir())

    # Process 0 alone writes.
    caplog.clear()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert results.evaluate_side(TESTS, encoder, tmp_path, "after") == SIDE
    results.write_outcome(settings, tmp_path)
    results.write_report(settings, tmp_path, None, {}, 3)
    results.log_results(tmp_path)
    assert not list(tmp_path.iterdir()) and not caplog.text


def test_the_report_is_of_the_sides_that_there_are(tmp_path, settings, evaluated, monkeypatch):
    """And says which step it is of, if that is not the last."""
    reported = []
    monkeypatch.setattr(report, "write_report", lambda *_, **given: reported.append(given))
    goodput = {"seconds": {"compute": 3.0}, "starts": 1}
    results.write_report(settings, tmp_path, TESTS, goodput, settings.steps)
    assert not reported  # there are no scores
    results.evaluate_side(TESTS, encoder, tmp_path, "after")
    results.write_report(settings, tmp_path, TESTS, goodput, settings.steps)
    assert reported[-1]["before"] is None and reported[-1]["after"] == {}
    assert "best checkpoint" not in reported[-1]["headline"]
    results.write_report(settings, tmp_path, TESTS, goodput, settings.steps - 1)
    assert reported[-1]["headline"]["best checkpoint"] == f"of step {settings.steps - 1}"
    results.write_report(settings, tmp_path, None, goodput, settings.steps)
    assert reported[-1]["after"] is None and reported[-1]["table"] == {}
    empty = types.SimpleNamespace(is_empty=True)
    results.write_report(settings, tmp_path, empty, goodput, settings.steps)
    assert len(reported) == 3


def test_the_outcome_is_judged_from_all_lines(tmp_path, settings, writes, caplog):
    chance = math.log(9)
    lines = [
        {"step": n, "loss": chance, "chance_loss": chance, "mean_cosine": 1.0} for n in range(1, 90)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    results.write_outcome(dataclasses.replace(settings, infonce_steps=0), tmp_path)
    assert json.loads((tmp_path / "outcome.json").read_text())["verdict"] == "learnt_nothing"
    assert writes[:2] == [("flushed", "outcome"), ("named", "outcome")]
    scores.write_scores(tmp_path, "after", SIDE)
    with caplog.at_level("INFO"):
        results.log_results(tmp_path)
    assert str(tmp_path / report.FILE) in caplog.text and "has collapsed" in caplog.text
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    assert results.read_metrics(tmp_path) == []
    assert "is told from now on" in caplog.text
