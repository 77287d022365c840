"""Fine-tunes on own data: what the recipe leaves open is chosen, recorded, and kept."""

import copy
import json
import logging
import shutil

import numpy as np
import pytest

from experiments import own
from tests.backbones.test_peft_targets import write_adapter
from tests.backbones.tiny_texts import write_bert
from tests.jobs import tiny_run
from unime_jax import Embedder, config_reader, main
from unime_jax.config import TrainConfig
from unime_jax.data import formats
from unime_jax.jobs import plan, preflight, train
from unime_jax.jobs.common_checks import Problems
from unime_jax.training import automatic

# All texts have as many tokens, so that runs choose one bucket: half as much to compile.
WORDS = ("small", "large", "round", "white", "brown")
ROWS = [{"qry": f"a {word} circle", "pos_text": f"is {word}"} for word in WORDS]
LONG = " ".join(["a red circle left of a blue square"] * 9)


def make_config(backbone, **changes):
    config = own.get_config()
    config.backbone = str(backbone)
    config.data.train = "mini_mmeb/train"
    config.steps, config.export.verify = 3, False
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def five_rows(monkeypatch):
    """The training data of any path, to be changed."""
    rows = {"pairs": list(ROWS)}
    monkeypatch.setattr(formats, "open_dataset", lambda folder, *_, **__: rows)
    return rows


def test_five_texts_train_a_sentence_transformer(five_rows, one_device, workdir, tmp_path, caplog):
    folder = write_bert(tmp_path / "bert")
    with caplog.at_level(logging.INFO):
        train.run(make_config(folder, **{"log_every": 1, "steps": 4}), workdir)
    assert "4 steps of 64 pairs: 51.2 passes over 5 rows" in caplog.text
    assert "config.batch_size=64 is more than the 5 rows" in caplog.text
    assert "no evaluation data is named" in caplog.text
    assert "config.lora.rank = 0" in caplog.text
    lines = tiny_run.metrics(workdir)
    assert len(lines) == 4 and lines[-1]["loss"] < lines[0]["loss"]
    # Copies of a row are one target, and never each other's negatives.
    assert lines[0]["negatives_per_query"] == 4
    before, after = (
        Embedder.from_pretrained(str(place), dtype="float32") for place in (folder, workdir / "hf")
    )
    # Rows were shorter, but no text of other uses is cut for that.
    assert after.max_length == before.max_length == 32
    buckets = json.loads((workdir / automatic.FILE).read_text())["data.buckets"]
    assert max(bucket["tokens"] for bucket in buckets) < 32
    cosines = np.sum(
        before.encode([LONG, "a red circle"]) * after.encode([LONG, "a red circle"]), 1
    )
    assert (cosines < 0.9999).all()


@pytest.mark.slow
def test_an_adapter_of_a_multimodal_export_is_tuned(data, straight, workdir, tmp_path, plain_step):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(straight / "hf", adapter, target_modules=["q_proj", "down_proj"], r=4)
    config = make_config(adapter, **{"data.folder": str(data), "lora.rank": 2})
    config.evaluation.rows = 16
    train.run(config, workdir)
    recorded = json.loads((workdir / "hf" / "embedder.json").read_text())
    exported = json.loads((straight / "hf" / "embedder.json").read_text())
    for key in ("prompt", "missing_images", "pinpoints", "max_length"):
        assert recorded[key] == exported[key], key
    values = automatic.read(workdir)
    assert values["optimizer.learning_rate"] == 1e-4 and values["trainable"] == automatic.ADAPTERS
    assert max(bucket.tiles for bucket in values["data.buckets"]) >= 2
    assert len(tiny_run.saved(workdir, 3)) > 3
    assert not any("kernel" in path for path in tiny_run.saved(workdir, 3))


def test_passes_over_the_data_say_how_long_a_run_is(
    five_rows, workdir, tmp_path, plain_step, one_device, monkeypatch
):
    monkeypatch.setattr("unime_jax.jobs.export.write", lambda *_: None)
    config = make_config(write_bert(tmp_path / "bert"), epochs=20, batch_size=8)
    with pytest.raises(ValueError, match="steps=3 and config.epochs=20: a run has one length"):
        train.run(config, workdir)
    config.steps, config.checkpoint.every = 0, 100
    train.run(config, workdir)
    assert tiny_run.checkpoint_steps(workdir)[-1] == 13  # 100 of 8 pairs
    chosen = automatic.read(workdir)
    assert (chosen["steps"], chosen["optimizer.warmup_steps"]) == (13, 1)
    config.epochs = 24
    with pytest.raises(ValueError, match="Changed since:\n  config.epochs: 20.0 -> 24.0"):
        train.run(config, workdir)

    # Extended, it goes on with the warm-up that it has had.
    config.epochs, config.optimizer.schedule = 20, "constant"
    train.run(config, tmp_path / "extended")
    config.epochs = 40
    train.run(config, tmp_path / "extended")
    assert tiny_run.checkpoint_steps(tmp_path / "extended")[-1] == 25
    extended = automatic.read(tmp_path / "extended")
    assert (extended["steps"], extended["optimizer.warmup_steps"]) == (25, 1)


@pytest.fixture
def no_export(monkeypatch):
    monkeypatch.setattr("unime_jax.jobs.export.write", lambda *_: None)


@pytest.mark.slow
def test_a_run_goes_on_with_what_it_chose(
    five_rows, workdir, tmp_path, plain_step, no_export, caplog
):
    config = make_config(write_bert(tmp_path / "bert"), **{"optimizer.schedule": "constant"})
    config.checkpoint.every = 1
    train.run(config, workdir)
    chosen = automatic.read(workdir)
    five_rows["pairs"][:] = [row | {"qry": LONG} for row in ROWS]  # as many, and longer
    longer = copy.deepcopy(config)
    longer.steps = 4
    with caplog.at_level(logging.INFO):
        train.run(longer, workdir)
    assert "chosen by the record of this run" in caplog.text
    assert automatic.read(workdir) == chosen
    assert tiny_run.metrics(workdir)[-1]["truncated_rows"] > 0
    # A value of one's own is another config, as ever.
    longer.lora.rank = 4
    with pytest.raises(ValueError, match="config.lora.rank: null -> 4"):
        train.run(longer, workdir)
    longer.lora.rank = None
    record = workdir / automatic.FILE
    record.write_text('{"lora.rank": "x"}')
    with pytest.raises(ValueError, match="automatic.json: config.lora.rank must be of type int"):
        train.run(longer, workdir)
    # What was chosen before a first checkpoint binds nobody.
    shutil.rmtree(workdir / "checkpoints")
    train.run(config, workdir)
    assert automatic.read(workdir)["data.buckets"] != chosen["data.buckets"]


def test_what_is_left_open_is_asked_for(tmp_path):
    config = own.get_config()
    with pytest.raises(ValueError) as error:
        train.run(config, tmp_path / "run")
    assert main.says_it_all(error.value)
    assert "config.backbone is empty: name the folder or hub id" in str(error.value)
    assert "config.data.train is empty: name the training data" in str(error.value)

    # A plan needs values
    with pytest.raises(ValueError, match="(?s)leaves open .*run.lora.rank, .*run.data.buckets"):
        plan.read(
            {
                "job": "plan",
                "name": "own",
                "topologies": ("v5e:1x1",),
                "rows": (),
                "tokens": (),
                "lengths": "",
                "model": "",
                "teacher": 0,
                "suggest": False,
                "search": 0,
                "run": own.get_config().to_dict(),
            }
        )


def test_one_row_needs_a_negative_of_its_own(five_rows, tmp_path):
    folder = write_bert(tmp_path / "bert")

    def problems(row, **changes):
        five_rows["pairs"][:] = [row]
        settings = config_reader.read(TrainConfig, make_config(folder, **changes).to_dict())
        problems = Problems()
        preflight.check_training(settings, tmp_path, problems)
        problems.raise_any()

    own_negative = ROWS[0] | {"neg_text": ["blue it is"]}
    problems(own_negative)
    for row, changes in ((ROWS[0], {}), (own_negative, {"data.negatives": 0})):
        with pytest.raises(ValueError, match="has a single row, without negatives that are read"):
            problems(row, **changes)
