"""Small files that a run reads back, damaged: set aside with a warning, or refused by name."""

import itertools
import json
import os
import shutil

import pytest

from tests.jobs import tiny_run
from tests.jobs.tiny_run import metrics
from unime_jax import files, main
from unime_jax.data import embedding_store, quarantine
from unime_jax.evaluation import scores
from unime_jax.evaluation.stored import earlier
from unime_jax.jobs import train
from unime_jax.models import forward
from unime_jax.operations.goodput import Goodput
from unime_jax.training import outcome, resume
from unime_jax.training.metrics import MetricsWriter, cut_after

DAMAGES = {
    "empty": b"",
    "zeros": bytes(300),
    "not UTF-8": b'{"step": 1, "seconds": "\xff\xfe"}\n',
    "cut": b'{"step": 1, "seconds": {"com',
    "list": b"[]\n",
    "null": b"null\n",
    "number": b"7\n",
    "string": b'"text"\n',
    "nested": b"[" * 100_000,
    "wrong kinds": b'{"step": "x", "seconds": [1], "compute_at": {"a": 1}, "starts": null}\n',
    "strings": b'{"step": null, "seconds": {"compute": "much"}, "before": {"datasets": 1}}\n',
    "infinite": b'{"step": NaN, "seconds": {"compute": Infinity}, "after": []}\n',
    "folder": None,
}


@pytest.fixture
def folder(tmp_path):
    """A new folder at each call."""
    numbers = itertools.count()

    def make():
        made = tmp_path / str(next(numbers))
        made.mkdir()
        return made

    return make


def damage(path, kind):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if DAMAGES[kind] is None:
        path.mkdir()
    else:
        path.write_bytes(DAMAGES[kind])


# Statistics: begun again


def test_goodput_and_outcome_are_begun_again(folder, caplog):
    for kind in DAMAGES:
        caplog.clear()
        workdir = folder()
        damage(workdir / "goodput.json", kind)
        clock = Goodput(workdir, writes=True)
        clock.resumed(4)
        clock.saved(5)
        found = json.loads((workdir / "goodput.json").read_text())
        assert found["starts"] == 1 and set(found["compute_at"]) == {"5"}, kind
        assert "goodput.json is damaged" in caplog.text, kind
        assert len(list(workdir.glob("goodput.json.damaged-*"))) == 1, kind

    # An outcome is as good as none
    for kind in (*DAMAGES, "findings"):
        workdir = folder()
        if kind == "findings":
            (workdir / outcome.FILE).write_text('{"steps": 3, "findings": [{"name": 1}]}')
        else:
            damage(workdir / outcome.FILE, kind)
        assert outcome.read(workdir) == {}, kind
        outcome.say(workdir)


def test_metrics_go_on_with_the_lines_that_are_whole(tmp_path, caplog, folder):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    with MetricsWriter(tmp_path, total_steps=9, wandb_project=None, resume_step=2):
        pass
    assert [line["step"] for line in metrics(tmp_path)] == [1] and "damaged" not in caplog.text

    # Metrics go on with the lines that are whole
    for kind in DAMAGES:
        caplog.clear()
        workdir = folder()
        path = workdir / "metrics.jsonl"
        damage(path, kind)
        if path.is_file():
            good = b'{"step": 1, "loss": 2.0}\n'
            path.write_bytes(good + path.read_bytes().rstrip(b"\n") + b"\n" + b'{"step": 2}\n{"ste')
        cut_after(path, 2)  # as a run does that goes on
        with MetricsWriter(workdir, total_steps=9, wandb_project=None, resume_step=2) as writer:
            writer.write(3, {"loss": 1.0})
        steps = [line["step"] for line in metrics(workdir)]
        assert steps == ([3] if kind == "folder" else [1, 2, 3]), kind
        assert "metrics.jsonl is damaged" in caplog.text, kind
        assert len(list(workdir.glob("metrics.jsonl.damaged-*"))) == 1, kind


def test_scores_are_made_again(folder, caplog, straight):
    for kind in DAMAGES:
        caplog.clear()
        workdir = folder()
        damage(workdir / "evaluation.json", kind)
        earlier.set_damaged_aside(workdir)
        assert scores.read_scores(workdir) == {}, kind
        assert "evaluation.json is damaged" in caplog.text, kind

    # Scores without results are made again
    for kind in DAMAGES:
        workdir = folder()
        for name in ("evaluation.json", "results_before.npz", "results_after.npz"):
            shutil.copy(straight / name, workdir)
        earlier.set_damaged_aside(workdir)
        assert scores.read_scores(workdir).keys() == {"before", "after"}  # nothing was damaged
        damage(workdir / "results_before.npz", kind)
        earlier.set_damaged_aside(workdir)
        assert scores.read_scores(workdir) == {}, kind


def test_quarantine_keeps_the_lines_that_are_whole(folder):
    for kind in DAMAGES.keys() - {"folder"}:
        path = folder() / "quarantine.jsonl"
        item = quarantine.BadItem("a", "1", "", "broken")
        wrong = b'{"source": [], "id": {}, "path": 1, "reason": null}\n'
        line = json.dumps(item._asdict()).encode() + b"\n"
        path.write_bytes(line + DAMAGES[kind].rstrip(b"\n") + b"\n" + wrong)
        kept = quarantine.Quarantine(path)
        assert len(kept) == 1, kind
        kept.add([item._replace(id="2")], 1)
        assert [item.id for item in quarantine.read_quarantine(path)] == ["1", "2"], kind


# What matters: refused in a sentence


def test_a_config_is_refused_or_compared(folder, config):
    for kind in DAMAGES:
        workdir = folder()
        (workdir / "checkpoints" / "2").mkdir(parents=True)
        damage(workdir / "config.json", kind)
        with pytest.raises(ValueError, match=r"config\.json|another config") as raised:
            resume.check_config(workdir, config.to_dict())
        assert main.says_it_all(raised.value), kind
        text = str(raised.value)
        assert "remove it if the config" in text or "Changed since" in text, kind


def test_a_record_of_embeddings_is_refused(folder, tmp_path):
    for kind in DAMAGES:
        workdir = folder()
        damage(workdir / embedding_store.RECORD, kind)
        with pytest.raises(ValueError, match=r"embeddings\.json is not as written here") as raised:
            embedding_store.open_embeddings(workdir)
        assert main.says_it_all(raised.value), kind

    # So is one of other kinds
    record = dict(
        count=1, dimension=8, dtype="float32", block=1, blocks=1, complete=True, provenance={}
    )
    for key, value in (
        ("provenance", []),
        ("block", "a"),
        ("blocks", None),
        ("complete", 1.5),
        ("dimension", "8"),
    ):
        (tmp_path / embedding_store.RECORD).write_text(json.dumps(record | {key: value}))
        with pytest.raises(ValueError, match=f"embeddings.json .*{key} is"):
            embedding_store.read_record(tmp_path)


# A whole run, all of it damaged


@pytest.mark.slow
def test_a_run_with_damaged_statistics_goes_on(config, straight, workdir, monkeypatch, caplog):
    """Scores before and after are both made again, by one program."""
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    for name in ("goodput.json", "evaluation.json"):
        damage(workdir / name, "list")
    damage(workdir / "quarantine.jsonl", "wrong kinds")
    damage(workdir / "run.lock", "cut")
    whole = (workdir / "metrics.jsonl").read_bytes()
    (workdir / "metrics.jsonl").write_bytes(DAMAGES["wrong kinds"] + whole + b"\xff\xfe\n")
    os.utime(workdir / "run.lock", (0, 0))
    monkeypatch.setattr(train.export, "write", lambda *_: None)
    forward.make_encode.cache_clear()  # what earlier runs of this process compiled
    with caplog.at_level("INFO"):
        train.run(tiny_run.with_evaluation(config), workdir)
    assert caplog.text.count("compiling the encoder") == 1
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] == metrics(straight)[-1]["loss"]
    assert json.loads((workdir / "evaluation.json").read_text()) == json.loads(
        (straight / "evaluation.json").read_text()
    )


def test_what_is_read_is_an_object(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert files.read_object(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(FileNotFoundError):
        files.read_object(tmp_path / "b.json")
