"""Small files that a run reads back, damaged: set aside with a warning, or refused by name."""

import json
import os
import shutil

import pytest

from tests.jobs import tiny_run
from tests.jobs.tiny_run import metrics
from unime_jax import files, main
from unime_jax.data import embedding_store, quarantine
from unime_jax.evaluation import earlier, scores
from unime_jax.jobs import train
from unime_jax.operations.goodput import Goodput
from unime_jax.training import outcome, resume
from unime_jax.training.metrics import MetricsWriter

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


@pytest.mark.parametrize("kind", DAMAGES)
def test_goodput_is_begun_again(tmp_path, caplog, kind):
    damage(tmp_path / "goodput.json", kind)
    clock = Goodput(tmp_path, writes=True)
    clock.resumed(4)
    clock.saved(5)
    found = json.loads((tmp_path / "goodput.json").read_text())
    assert found["starts"] == 1 and set(found["compute_at"]) == {"5"}
    assert "goodput.json is damaged" in caplog.text
    assert len(list(tmp_path.glob("goodput.json.damaged-*"))) == 1


@pytest.mark.parametrize("kind", DAMAGES)
def test_metrics_go_on_with_the_lines_that_are_whole(tmp_path, caplog, kind):
    path = tmp_path / "metrics.jsonl"
    damage(path, kind)
    if path.is_file():
        good = b'{"step": 1, "loss": 2.0}\n'
        path.write_bytes(good + path.read_bytes().rstrip(b"\n") + b"\n" + b'{"step": 2}\n{"ste')
    with MetricsWriter(tmp_path, total_steps=9, wandb_project=None, resume_step=2) as writer:
        writer.write(3, {"loss": 1.0})
    steps = [line["step"] for line in metrics(tmp_path)]
    assert steps == ([3] if kind == "folder" else [1, 2, 3])
    assert "metrics.jsonl is damaged" in caplog.text
    assert len(list(tmp_path.glob("metrics.jsonl.damaged-*"))) == 1


def test_a_last_line_that_was_cut_is_no_damage(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    with MetricsWriter(tmp_path, total_steps=9, wandb_project=None, resume_step=2):
        pass
    assert [line["step"] for line in metrics(tmp_path)] == [1] and "damaged" not in caplog.text


@pytest.mark.parametrize("kind", [*DAMAGES, "findings"])
def test_an_outcome_is_as_good_as_none(tmp_path, kind):
    if kind == "findings":
        (tmp_path / outcome.FILE).write_text('{"steps": 3, "findings": [{"name": 1}]}')
    else:
        damage(tmp_path / outcome.FILE, kind)
    assert outcome.read(tmp_path) == {}
    outcome.say(tmp_path)


@pytest.mark.parametrize("kind", DAMAGES)
def test_scores_are_made_again(tmp_path, caplog, kind):
    damage(tmp_path / "evaluation.json", kind)
    earlier.set_damaged_aside(tmp_path)
    assert scores.read_scores(tmp_path) == {} and "evaluation.json is damaged" in caplog.text


@pytest.mark.parametrize("kind", DAMAGES)
def test_scores_without_results_are_made_again(straight, tmp_path, kind):
    for name in ("evaluation.json", "results_before.npz", "results_after.npz"):
        shutil.copy(straight / name, tmp_path)
    earlier.set_damaged_aside(tmp_path)
    assert scores.read_scores(tmp_path).keys() == {"before", "after"}  # nothing was damaged
    damage(tmp_path / "results_before.npz", kind)
    earlier.set_damaged_aside(tmp_path)
    assert scores.read_scores(tmp_path) == {}


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "folder"])
def test_quarantine_keeps_the_lines_that_are_whole(tmp_path, kind):
    path = tmp_path / "quarantine.jsonl"
    item = quarantine.BadItem("a", "1", "", "broken")
    wrong = b'{"source": [], "id": {}, "path": 1, "reason": null}\n'
    line = json.dumps(item._asdict()).encode() + b"\n"
    path.write_bytes(line + DAMAGES[kind].rstrip(b"\n") + b"\n" + wrong)
    kept = quarantine.Quarantine(path)
    assert len(kept) == 1
    kept.add([item._replace(id="2")], 1)
    assert [item.id for item in quarantine.read_quarantine(path)] == ["1", "2"]


# What matters: refused in a sentence


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_config_is_refused_or_compared(tmp_path, config, kind):
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    damage(tmp_path / "config.json", kind)
    with pytest.raises(ValueError, match=r"config\.json|another config") as raised:
        resume.check_config(tmp_path, config.to_dict())
    assert main.says_it_all(raised.value)
    assert "remove it if the config" in str(raised.value) or "Changed since" in str(raised.value)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_record_of_embeddings_is_refused(tmp_path, kind):
    damage(tmp_path / embedding_store.RECORD, kind)
    with pytest.raises(ValueError, match=r"embeddings\.json is not as written here") as raised:
        embedding_store.open_embeddings(tmp_path)
    assert main.says_it_all(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("provenance", []), ("block", "a"), ("blocks", None), ("complete", 1.5), ("dimension", "8")],
)
def test_so_is_one_of_other_kinds(tmp_path, key, value):
    record = dict(
        count=1, dimension=8, dtype="float32", block=1, blocks=1, complete=True, provenance={}
    )
    (tmp_path / embedding_store.RECORD).write_text(json.dumps(record | {key: value}))
    with pytest.raises(ValueError, match=f"embeddings.json .*{key} is"):
        embedding_store.read_record(tmp_path)


# A whole run, all of it damaged


@pytest.mark.parametrize("kind", ["wrong kinds", "folder"])
def test_a_run_with_damaged_statistics_goes_on(config, straight, workdir, kind):
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    for name in ("goodput.json", "evaluation.json"):
        damage(workdir / name, "list")
    damage(workdir / "quarantine.jsonl", "wrong kinds")
    damage(workdir / "run.lock", "cut")
    if kind == "folder":
        damage(workdir / "metrics.jsonl", kind)
    else:
        whole = (workdir / "metrics.jsonl").read_bytes()
        (workdir / "metrics.jsonl").write_bytes(DAMAGES[kind] + whole + b"\xff\xfe\n")
    os.utime(workdir / "run.lock", (0, 0))
    train.run(tiny_run.with_evaluation(config), workdir)
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == ([5, 6] if kind == "folder" else [1, 2, 3, 4, 5, 6])
    assert lines[-1]["loss"] == metrics(straight)[-1]["loss"]
    assert json.loads((workdir / "evaluation.json").read_text()) == json.loads(
        (straight / "evaluation.json").read_text()
    )


def test_what_is_read_is_an_object(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert files.read_object(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(FileNotFoundError):
        files.read_object(tmp_path / "b.json")
