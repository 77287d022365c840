"""The doctor looks at whole runs: nothing to say of good ones, all that was planted of others."""

import json
import shutil

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict

from tests.jobs import tiny_run
from unime_jax import config_reader, main
from unime_jax.config import DoctorConfig, kind_of
from unime_jax.jobs import doctor, doctor_report
from unime_jax.operations import config_help, doctor_command

COMMAND = {
    "recipe": "stage2",
    "distributed": False,
    "coordinator": None,
    "process_id": None,
    "num_processes": None,
}
FINDING = {"severity", "check", "what", "where", "do"}


def whole(values, *own):
    """The doctor's config of a run's, as the command line makes it."""
    return doctor_command.whole(values.lock(), own, COMMAND)


def looked(values, workdir, capsys, *own):
    """Exit status, text, and JSON of the doctor's look at a run."""
    status = 0
    try:
        doctor.run(whole(values, *own), workdir)
    except SystemExit as left:
        status = left.code
    return status, capsys.readouterr().out, json.loads((workdir / doctor.FILE).read_text())


def test_a_good_run_is_let_pass_and_what_was_not_checked_is_said(config, workdir, capsys):
    config = tiny_run.with_evaluation(config)
    before = jax.config.values["jax_platforms"]
    status, text, report = looked(config, workdir, capsys, ("doctor.slice", "v5e:2x4"))
    assert (status, report["status"]) == (0, 0), text
    assert [each for each in report["findings"] if each["severity"] != "note"] == []
    assert {each["check"] for each in report["unchecked"]} <= {
        "room.machine",
        "room.disk",
        "environment.versions.unime_jax",
    }
    assert set(report) == {
        "version", "recipe", "job", "workdir", "status", "counts", "findings", "unchecked", "facts",
    }  # fmt: skip
    assert report["version"] == 1 and report["job"] == "train"
    assert all(set(each) == FINDING for each in report["findings"])
    assert {"environment", "backbone", "model", "data", "batches", "plan", "room"} <= set(
        report["facts"]
    )
    # Keys that a recipe's method consists of, and that are not the recipe's here.
    assert "backbone     backbone: " in text and "room.machine: the host of v5e:2x4" in text
    assert text.endswith(f"{len(report['unchecked'])} not checked\n")
    # Nothing was left but the report, and JAX is as it was.
    assert [path.name for path in workdir.iterdir()] == [doctor.FILE]
    assert jax.config.values["jax_platforms"] == before


def test_a_problem_of_one_part_hides_none_of_another(config, data, tmp_path, capsys):
    """Each finding that was planted, by its name, and no others."""
    folder = tmp_path / "backbone"
    shutil.copytree(data / "mini_mmeb" / "backbone", folder)
    described = json.loads((folder / "config.json").read_text())
    described["auto_map"] = {"AutoModel": "modeling.Code"}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "model.safetensors").write_bytes(b"{}")
    config.backbone, config.init = str(folder), "pretrained"
    config.optimizer.warmup_steps = 9
    config.wandb_project = "no_such_package"
    config.loss.temperature = 50.0
    config.loss.mask_same_target = False
    config.seed = 2**63
    config.checkpoint.keep = 1
    config.data.workers = 2
    config.data.folder = str(data)
    config.data.eval = "absent"
    status, text, report = looked(
        config, tmp_path / "run", capsys, ("doctor.step_seconds", "7200"), ("doctor.rows", "64")
    )
    assert status == report["status"] == 1
    named = [(each["severity"], each["check"]) for each in report["findings"]]
    assert sorted({each for each in named if each[0] != "note"}) == [
        ("error", "backbone.weights"),
        ("error", "config.problem"),
        ("error", "settings.seed"),
        ("warning", "schedule.checkpoint"),
        ("warning", "schedule.keep"),
        ("warning", "settings.temperature"),
    ], text
    problems = {e["where"]: e["what"] for e in report["findings"] if e["check"] == "config.problem"}
    assert set(problems) == {
        "config.wandb_project",
        "config.data.eval",
        "config.optimizer.warmup_steps",
    }
    notes = {each["where"] for each in report["findings"] if each["check"] == "settings.recipe"}
    assert notes == {"config.loss.mask_same_target", "config.loss.temperature"}
    assert "backbone.remote_code" in {name for _, name in named}
    assert report["counts"] == {s: sum(n[0] == s for n in named) for s in report["counts"]}
    assert text.index("ERRORS") < text.index("WARNINGS") < text.index("NOTES")


def test_every_job_is_looked_at(config, data, tmp_path, capsys, monkeypatch):
    """With what its own start would say; a part that fails by itself is not checked."""
    from experiments import embed, evaluate, judge, merge, mine, rounds

    expected = {
        "embed": "config.data.datasets and config.data.texts name nothing",
        "evaluate": "config.backbone",
        "judge": "config.data.train is empty",
        "merge": "config.models",
        "mine": "1 of 2 rows that were read cannot be used (50.0%)",
    }
    rows = [{"query": "a", "positive": "b"}, {"query_image": "gone.png", "positive": "c"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    without_weights = shutil.ignore_patterns("*.safetensors")
    model = data / "mini_mmeb" / "backbone"
    bare = shutil.copytree(model, tmp_path / "bare", ignore=without_weights)
    for module in (embed, evaluate, judge, merge, mine):
        values = module.get_config()
        if values.job == "merge":
            values.models = ("/nowhere", "/here")
        else:
            values.backbone = str(bare)
        if values.job == "embed":
            values.data.datasets = values.data.texts = ()
        if values.job == "judge":
            values.data.train = ""
        if values.job == "mine":
            values.data.folder, values.data.train = str(tmp_path), "rows.jsonl"
        status, text, report = looked(values, tmp_path / values.job, capsys)
        assert status == 1 and expected[values.job] in text, text
        own = {"data.unusable"} if values.job == "mine" else set()
        assert {each["check"] for each in report["findings"]} == {"config.problem"} | own, text

    values = rounds.get_config()
    values.train.optimizer.warmup_steps = 10**6
    with values.unlocked():
        values.data.folder = str(tmp_path / "nothing_yet")
    status, text, report = looked(values, tmp_path / "rounds", capsys)
    assert status == 1 and "warmup_steps=1000000" in text
    assert "config.train.backbone: " in report["unchecked"][0]["why"]

    def broken(*_, **__):
        raise RuntimeError("a fault of the check")

    monkeypatch.setattr("unime_jax.jobs.doctor_rows.read", broken)
    status, text, report = looked(config, tmp_path / "broken", capsys)
    assert status == 0, text
    assert {"check": "data", "why": "the check itself failed: RuntimeError: a fault of the check"} \
        in report["unchecked"]  # fmt: skip
    assert "settings" in report["facts"]

    # The command line has its keys beside those of the run.
    overrides = [("steps", "9"), ("job", "doctor"), ("doctor.rows", "7")]
    assert doctor_command.split(overrides) == (True, [("doctor.rows", "7")], [("steps", "9")])
    assert doctor_command.split([("doctor.rows", "7")])[::2] == (False, [("doctor.rows", "7")])
    values = tiny_run.make_config("/nowhere")
    made = whole(values, ("doctor.rows", "7"), ("doctor.step_seconds", "1.5"))
    settings = config_reader.read(kind_of(made), made.to_dict())
    assert isinstance(settings, DoctorConfig) and settings.run.job == "train"
    assert (settings.doctor.rows, settings.doctor.step_seconds) == (7, 1.5)
    for own, message in {
        ("doctor.rowz", "1"): "did you mean --config.doctor.rows",
        ("doctor.rows", "many"): "config.doctor.rows must be of type int",
    }.items():
        with pytest.raises(ValueError, match=message):
            whole(values, own)
    for own, message in {
        ("doctor.rows", "0"): "config.doctor.rows=0",
        ("doctor.compile", "True"): "config.doctor.compile=True compiles for a TPU slice",
        ("doctor.lost_minutes", "-1"): "config.doctor.lost_minutes=-1.0 must be above 0",
        ("doctor.step_seconds", "0"): "config.doctor.step_seconds=0.0 must be above 0",
    }.items():
        with pytest.raises(ValueError, match=message):
            config_reader.read(DoctorConfig, whole(values, own).to_dict())
    with pytest.raises(ValueError, match="the recipe is for job plan, and the doctor looks at a"):
        whole(ConfigDict({"job": "plan"}))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    made, remarks = main._resolve("stage2", overrides)
    assert (made.job, made.doctor.rows, made.run.job, made.run.steps) == ("doctor", 7, "train", 9)
    assert made.run.optimizer.warmup_steps == 1 and len(remarks) == 2  # as the run's own are
    text = config_help.config_text(made, "the head")
    assert "\nconfig.doctor.rows = 7" in text and "\nconfig.steps = 9" in text
    assert doctor_report.STATUS == {"error": 1, "warning": 2, "note": 0}
