"""An existing work directory: a full disk at the start, and which job forgets which scores."""

import dataclasses
import json
import resource
import types

import jax
import pytest

from experiments import own, stage2
from unime_jax.training import evaluations, resume


@pytest.fixture
def config():
    text = json.dumps(stage2.get_config().to_dict(), default=dataclasses.asdict)
    return json.loads(text)


@pytest.fixture
def workdir(tmp_path, config):
    """Of a run that has a checkpoint and scores."""
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("evaluation.json", evaluations.FILE):
        (tmp_path / name).write_text("{}")
    return tmp_path


def scores(workdir):
    return sorted(path.name for path in workdir.glob("evaluation*"))


BOTH = ["evaluation.json", evaluations.FILE]


def test_only_training_forgets_the_scores_of_another_evaluation(workdir, config):
    """A change of when it is made, of other keys, or none, makes no scores wrong."""
    for job, changed, left in (
        ("train", {}, BOTH),
        ("train", {"every": 3}, BOTH),
        ("export", {"limit": 7}, BOTH),
        ("train", {"every": 3, "limit": 7}, []),
    ):
        asked = json.loads(json.dumps(config)) | {"job": job, "log_every": 77}
        asked["evaluation"] |= changed
        resume.check_config(workdir, asked)
        assert scores(workdir) == left, (job, changed)


def test_other_own_data_make_scores_wrong_and_a_config_without_the_key_does_not(workdir, config):
    earlier = json.loads(json.dumps(config))
    del earlier["data"]["eval"], earlier["loss"]["pool"], earlier["loss"]["closed_sources"]
    (workdir / "config.json").write_text(json.dumps(earlier))
    resume.check_config(workdir, config)
    assert scores(workdir) == BOTH
    config["data"]["eval"] = "own"
    resume.check_config(workdir, config)
    assert scores(workdir) == []


def test_own_data_had_the_number_of_steps_of_its_warmup(workdir):
    config = json.loads(json.dumps(own.get_config().to_dict(), default=dataclasses.asdict))
    earlier = {key: value for key, value in config.items() if key != "epochs"}
    for warmup in (30, 31):
        earlier["optimizer"] = config["optimizer"] | {"warmup_steps": warmup}
        (workdir / "config.json").write_text(json.dumps(earlier))
        if warmup == 30:
            resume.check_config(workdir, config)
    with pytest.raises(ValueError, match="config.optimizer.warmup_steps: 31 -> null"):
        resume.check_config(workdir, config)


def test_other_processes_than_0_leave_the_folder_to_it(workdir, config, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    config["seed"] += 1  # which process 0 refuses
    config["evaluation"]["limit"] = 7
    resume.check_config(workdir, config)
    assert scores(workdir) == BOTH


def test_groups_of_keys_are_free_by_name_and_an_export_may_have_other_steps(workdir, config):
    """ "mesh" frees "mesh.fsdp", and no key called "meshes"."""
    config["mesh"]["fsdp"] = 2
    resume.check_config(workdir, config)
    for key in ("meshes", "log_every_other"):
        with pytest.raises(ValueError, match=f"config.{key}: - -> 1"):
            resume.check_config(workdir, config | {key: 1})

    # An export may have other steps.
    config["steps"] += 1
    with pytest.raises(ValueError, match="config.steps: (.|\n)*schedule_steps=") as longer:
        resume.check_config(workdir, config)
    with pytest.raises(ValueError, match="config.seed: ") as other:  # advice for steps alone
        resume.check_config(workdir, config | {"seed": 7})
    with pytest.raises(ValueError, match="config.steps: ") as shorter:
        resume.check_config(workdir, config | {"steps": config["steps"] - 2})
    advice = "--config.optimizer.schedule_steps="
    assert advice in str(longer.value)
    assert advice not in str(other.value) and advice not in str(shorter.value)
    resume.check_config(workdir, config | {"job": "export"})


def test_a_disk_that_is_full_at_the_start_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    """It may have room for an empty file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    workdir = tmp_path / "new" / "run"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resume.PROBE // 2, limits[1]))
    try:
        with pytest.raises(ValueError, match="--workdir=.*run cannot be written: File too large"):
            resume.open_workdir(workdir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(workdir.iterdir()) == []
    resume.open_workdir(workdir)
    resume.open_workdir(workdir)
    assert list(workdir.iterdir()) == []

    # Fingerprints are of every file but the record of a self check
    hashes = {"config.json": "1", "model.safetensors": "2", "self_check.json": "3"}
    monkeypatch.setattr(resume, "fingerprint", lambda backbone: hashes)
    backbone = types.SimpleNamespace()
    before = resume.fingerprints(backbone, {"a": 3})
    assert before["data"] == {"a": 3} and len(bytes.fromhex(before["backbone"])) == 16
    assert resume.fingerprints(backbone) == {"backbone": before["backbone"]}
    hashes["self_check.json"] = "4"
    assert resume.fingerprints(backbone, {"a": 3}) == before
    for changes in (
        {"config.json": "5"},
        {"model.safetensors": "5"},
        {"self.json": "5"},
        {"config.json": "2", "model.safetensors": "1"},
    ):
        kept = dict(hashes)
        hashes.update(changes)
        assert resume.fingerprints(backbone)["backbone"] != before["backbone"], changes
        hashes.clear()
        hashes.update(kept)
    hashes["weights.safetensors"] = hashes.pop("model.safetensors")
    assert resume.fingerprints(backbone)["backbone"] != before["backbone"]  # another name
