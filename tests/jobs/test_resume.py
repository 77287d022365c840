"""What may change between two starts in one work directory, and what is refused with a diff."""

import copy
import dataclasses
import errno
import json
import os
import pathlib
import shutil

import pytest

from tests.jobs import tiny_run
from unime_jax.data.settings import Bucket
from unime_jax.jobs import train
from unime_jax.operations import config_file
from unime_jax.operations.recipes import base
from unime_jax.training import resume


@pytest.fixture
def workdir(workdir, config):
    """Of a run that has a checkpoint."""
    (workdir / "checkpoints" / "2").mkdir(parents=True)
    config_file.write_config(workdir, config)
    return workdir


def check(workdir, config):
    resume.check_config(workdir, config.to_dict())


def test_the_same_config_says_nothing_and_the_rest_is_applied_and_logged(workdir, config, caplog):
    check(workdir, config)
    assert not caplog.text

    # The rest is applied and logged
    (workdir / "evaluation.json").write_text("{}")
    config.update_from_flattened_dict(ALLOWED)
    with caplog.at_level("INFO"):
        check(workdir, config)
    for key, value in ALLOWED.items():
        assert f"  config.{key}: " in caplog.text and f" -> {json.dumps(value)}" in caplog.text
    assert (workdir / "evaluation.json").exists()


REFUSED = {
    "seed": 1,
    "batch_size": 32,
    "infonce_steps": 3,
    "init": "random",
    "loss.temperature": 0.05,
    "loss.hard_negatives": 4,
    "optimizer.learning_rate": 1e-4,
    "optimizer.weight_decays": ((".*", 0.1),),
    "lora.rank": 4,
    "trainable": ((".*embed.*", False), (".*", True)),
    "processing.missing_images": "keep",
    "data.train": "mini_mmeb/eval",
    "data.source_run": 0,
    "data.first_rows": 5,
    "processing.resolution": "mid",
    "data.buckets": (Bucket(tokens=40, tiles=0), Bucket(tokens=64, tiles=3)),
    "execution.dtype": "bfloat16",
    "execution.frozen_dtype": "bfloat16",
    "steps": 12,
}


ALLOWED = {
    "log_every": 5,
    "chunk_size": 8,
    "mesh.fsdp": 2,
    "checkpoint.every": 3,
    "data.workers": 2,
    "data.max_bad_share": 0.5,
    "execution.remat": "full",
    "execution.recompute": False,
    "execution.keep_features": True,
    "export.verify": True,
    "watchdog.seconds": 5.0,
    "profile.steps": 2,
    "max_skipped": 3,
}


def test_another_evaluation_forgets_the_scores_before(workdir, config):
    files = [workdir / name for name in ("evaluation.json", "evaluations.jsonl")]
    for file in files:
        file.write_text("{}")
    config.evaluation.every = 3  # the same at other steps
    check(workdir, config)
    assert all(file.exists() for file in files)
    config.evaluation.limit = 7
    config.job = "export"  # which evaluates nothing
    check(workdir, config)
    assert all(file.exists() for file in files)
    config.job = "train"
    check(workdir, config)
    assert not any(file.exists() for file in files)


def test_steps_may_change_where_the_rates_so_far_do_not(workdir, config):
    config.optimizer.schedule = "constant"
    config_file.write_config(workdir, config)
    config.steps = 12
    check(workdir, config)
    config.optimizer.schedule = "cosine"
    with pytest.raises(ValueError, match="(?s)optimizer.schedule: .*config.steps: 6 -> 12\n"):
        check(workdir, config)


def test_a_run_that_is_part_of_a_longer_schedule_is_extended(workdir, config):
    """Also one that goes on at the rate where its schedule ended."""
    config.optimizer.schedule_steps = 12
    config_file.write_config(workdir, config)
    config.steps = 12
    check(workdir, config)
    config.optimizer.schedule_steps = 0  # the same, said otherwise
    check(workdir, config)
    config.optimizer.schedule_steps, config.steps = 6, 6
    with pytest.raises(ValueError, match="config.optimizer.schedule_steps: 12 -> 6"):
        check(workdir, config)


CAME_LATER = {
    "data": (
        "columns", "eval", "first_rows", "first_rows_by_source", "size_temperature",
        "split_modalities", "mined", "mined_use", "cluster_size", "cluster_ranks", "packing",
    ),
    "processing": ("resolution",),
    "evaluation": ("instructions", "dims", "precisions"),
}  # fmt: skip


def test_a_run_of_before_keys_came_or_were_renamed_goes_on(workdir, config, caplog):
    caplog.set_level("INFO", logger="absl")
    earlier = json.loads((workdir / "config.json").read_text())
    del earlier["optimizer"]["schedule_steps"]
    (workdir / "config.json").write_text(json.dumps(earlier))
    check(workdir, config)
    config_file.write_config(workdir, config)

    # A judge's loss of before it had forms, and its contrast of before all of today's options
    judged = config.copy_and_resolve_references()
    judged.loss = base.judge_distillation()
    config_file.write_config(workdir, judged)
    earlier = json.loads((workdir / "config.json").read_text())
    for key in ("form", "smallest_gap"):
        del earlier["loss"][key]
    for key in ("pool", "graded_sources", "teacher_weight"):
        del earlier["loss"]["contrastive"][key]
    (workdir / "config.json").write_text(json.dumps(earlier))
    check(workdir, judged)
    config_file.write_config(workdir, config)

    # A run of before keys were renamed goes on. Buckets were (tokens, tiles, share), and the keys
    # of planning a part of every config.
    earlier = json.loads((workdir / "config.json").read_text())
    data, loss, processing = earlier["data"], earlier["loss"], earlier["processing"]
    data["homogeneous"] = data.pop("source_run")
    for group, keys in CAME_LATER.items():
        for key in keys:
            del earlier[group][key]
    del earlier["epochs"], earlier["matryoshka"]
    loss["tile"] = loss.pop("column_block")
    processing["orphans"] = processing.pop("missing_images")
    data["buckets"] = [list(bucket.values()) for bucket in data["buckets"]]
    earlier["plan"] = {"topologies": ["v5e:1x1"]}
    (workdir / "config.json").write_text(json.dumps(earlier))
    with caplog.at_level("INFO"):
        check(workdir, config)
    assert not caplog.text
    config.data.source_run = 8
    with pytest.raises(ValueError, match="config.data.source_run: 4 -> 8"):
        check(workdir, config)


def test_who_wants_more_steps_is_told_which_key_to_set(workdir, config):
    for rate in (0.0, 1e-4):
        config.steps, config.optimizer.final_learning_rate = 6, rate
        config_file.write_config(workdir, config)
        config.steps = 12
        with pytest.raises(ValueError) as raised:
            check(workdir, config)
        text = str(raised.value)
        assert f"ends at step 6 with a learning rate of {rate}. " in text
        assert "at its start: --config.optimizer.schedule_steps=12, or --config.opti" in text, rate
        assert ("add --config.optimizer.schedule_steps=6" in text) == bool(rate)
    config.optimizer.schedule_steps = 6
    check(workdir, config)

    # Passes over the data end the schedule, unless `schedule_steps` does.
    config.steps, config.epochs, config.optimizer.schedule_steps = 0, 2.0, 0
    config_file.write_config(workdir, config)
    config.epochs = 3.0
    with pytest.raises(ValueError, match="config.epochs: 2.0 -> 3.0"):
        check(workdir, config)
    config.epochs, config.optimizer.schedule_steps = 2.0, 12
    config_file.write_config(workdir, config)
    config.epochs = 3.0
    check(workdir, config)


def test_what_would_train_something_else_is_refused(workdir, config):
    found = config.to_dict()
    found["optimizer"]["momentum"] = 0.9
    del found["seed"]
    with pytest.raises(
        ValueError, match=r"config.seed: 0 -> -\n  config.optimizer.mom.*: - -> 0.9"
    ):
        resume.check_config(workdir, found)

    # What would train something else is refused
    config.log_every = 5  # not what it is about
    for key, value in REFUSED.items():
        old = _json(_value(config, key))
        changed = copy.deepcopy(config)
        changed.update_from_flattened_dict({key: value})
        with pytest.raises(ValueError, match="(?s)another config.*another work dir") as raised:
            check(workdir, changed)
        line = f"  config.{key}: {old} -> {_json(value)}\n"
        assert line in str(raised.value) and "log_every" not in str(raised.value), key
        assert json.loads((workdir / "config.json").read_text())["log_every"] == 1


def test_nothing_trained_nothing_compared(workdir, config, caplog):
    (workdir / "checkpoints" / "2").rename(workdir / "checkpoints" / "2.orbax-checkpoint-tmp")
    config.seed = 1
    check(workdir, config)
    (workdir / "checkpoints" / "2.orbax-checkpoint-tmp").rename(workdir / "checkpoints" / "2")

    # A record that is gone or broken
    config.seed = 1
    (workdir / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match="config.json is not JSON"):
        check(workdir, config)
    (workdir / "config.json").unlink()
    check(workdir, config)
    assert "cannot be compared" in caplog.text


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--workdir=.*file/run cannot be written: Not a dir"):
        resume.open_workdir(tmp_path / "file" / "run")

    # A disk without room is said at the start. A full one still takes an empty file.
    write = pathlib.Path.write_bytes

    def full(path, data):
        if len(data) > 2**16:
            write(path, data[: 2**16])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(ValueError, match="--workdir=.*cannot be written: No space left"):
        resume.open_workdir(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


# The job itself, on a work directory that has been trained in


def test_a_run_is_not_continued_as_another_one(config, straight):
    before = {file: file.read_bytes() for file in straight.rglob("*") if file.is_file()}
    config = tiny_run.with_evaluation(config)
    config.optimizer.learning_rate = 1e-2
    with pytest.raises(ValueError, match="config.optimizer.learning_rate: 0.0015 -> 0.01"):
        train.run(config, straight)
    assert before == {file: file.read_bytes() for file in straight.rglob("*") if file.is_file()}


def test_a_backbone_may_move_but_not_change(config, straight, tmp_path, monkeypatch):
    workdir, moved = tmp_path / "run", tmp_path / "backbone"
    shutil.copytree(straight, workdir)
    shutil.copytree(config.backbone, moved)
    config = tiny_run.with_evaluation(config)
    config.backbone = str(moved)
    monkeypatch.setattr(train.loop, "run", lambda *_: _reached())
    with pytest.raises(Reached):
        train.run(config, workdir)
    file = moved / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(ValueError, match="step 6 .* belongs to another backbone: .* then, .* now"):
        train.run(config, workdir)


def test_scores_of_fewer_steps_do_not_outlive_an_extension(config, straight, tmp_path, monkeypatch):
    """Else a run that is stopped on the way would be exported with them."""
    workdir = tmp_path / "extended"
    shutil.copytree(straight, workdir)
    config = tiny_run.with_evaluation(config)
    config.optimizer.schedule = "constant"
    config_file.write_config(workdir, config)
    config.steps = 8
    monkeypatch.setattr(train.loop, "run", lambda *_: _reached())
    with pytest.raises(Reached):
        train.run(config, workdir)
    assert json.loads((workdir / "evaluation.json").read_text()).keys() == {"before"}


class Reached(Exception):  # noqa: N818
    """The loop would begin."""


def _reached():
    raise Reached


def _json(value):
    return json.dumps(value, sort_keys=True, default=dataclasses.asdict)


def _value(config, key):
    found = config.to_dict()
    for part in key.split("."):
        found = found[part]
    return found
