"""The training job from end to end: what it leaves, how it resumes, what it says when it fails."""

import dataclasses
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoImageProcessor, AutoTokenizer, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from experiments import llave, stage2
from tests.backbones.images import encoded, noise
from tests.jobs import tiny_run
from tests.jobs.tiny_run import checkpoint_steps, metrics, saved
from unime_jax import files, main
from unime_jax.config import TrainConfig
from unime_jax.config_reader import read as read_config
from unime_jax.data import formats, quarantine, schema
from unime_jax.data.settings import Bucket
from unime_jax.export import self_check
from unime_jax.jobs import export, train

LOGGED = {
    "loss", "gradient_norm", "learning_rate", "pairs_per_second", "negatives_per_query",
    "masked_share", "pad_fraction", "data_wait_share", "duplicate_items", "replaced_examples",
    "skipped_steps", "positive_similarity", "hard_negative_similarity", "easy_negative_similarity",
}  # fmt: skip
HOST_ONLY = {"pairs_per_second", "data_wait_share"}  # timings


def same_metrics(workdir, other):
    """Whether two runs logged the same numbers to the last bit, timings aside."""
    lines, others = (
        [{k: v for k, v in line.items() if k not in HOST_ONLY} for line in metrics(run)]
        for run in (workdir, other)
    )
    assert lines == others


def same_checkpoint(workdir, other, step):
    arrays, others = saved(workdir, step), saved(other, step)
    assert arrays.keys() == others.keys() and len(arrays) > 100
    assert [k for k in arrays if arrays[k].tobytes() != others[k].tobytes()] == []


# What a run leaves


def test_a_run_leaves_all_its_files(straight):
    names = {path.name for path in straight.iterdir()}
    assert names >= {
        "config.json", "parameters.txt", "metrics.jsonl", "tensorboard", "checkpoints",
        "evaluation.json", "report.html", "hf",
    }  # fmt: skip
    assert "quarantine.jsonl" not in names and not any(n.endswith(".partial") for n in names)
    assert json.loads((straight / "config.json").read_text())["batch_size"] == 16
    assert re.search(r"[\d,]+ parameters", (straight / "parameters.txt").read_text())
    assert any(path.stat().st_size for path in (straight / "tensorboard").iterdir())
    assert len((straight / "report.html").read_text()) > 10_000
    assert checkpoint_steps(straight) == [4, 6]  # keep=2


def test_metrics(straight):
    lines = metrics(straight)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line.keys() >= LOGGED
        assert all(isinstance(value, int | float) for value in line.values())
        assert line["loss"] > 0 and line["gradient_norm"] > 0 and line["skipped_steps"] == 0
        assert 0 <= line["pad_fraction"] < 1 and 0 <= line["data_wait_share"] <= 1
        assert 0 < line["negatives_per_query"] < 32 and 0 <= line["masked_share"] < 1


def test_evaluation(straight):
    found = json.loads((straight / "evaluation.json").read_text())
    assert found.keys() == {"before", "after"}
    for scores in found.values():
        averages = {"CLS", "VQA", "RET", "VG", "IND", "OOD", "All"}
        assert scores.keys() >= averages | {"datasets", "composition"}
        assert scores["composition"].keys() == {"replace", "swap", "add"}
        values = [*scores["datasets"].values(), *scores["composition"].values()]
        assert len(scores["datasets"]) > 4 and all(0 <= value <= 100 for value in values)
    assert found["before"] != found["after"]


# The export, read by torch


@pytest.fixture(scope="module")
def exported(straight):
    model, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
        straight / "hf", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


def test_export_self_check_holds_every_kind_of_input(straight):
    check = json.loads((straight / "hf" / "self_check.json").read_text())
    assert check.keys() == {"dtype", "inputs", "embeddings"} and check["dtype"] == "float32"
    kinds = set()
    for entry in check["inputs"]:
        assert entry.keys() == {"text", "image"}
        assert entry["image"] is None or (straight / "hf" / entry["image"]).is_file()
        body = re.fullmatch(r"(?s)<\|im_start\|>user (.*?)<\|im_end\|>.*", entry["text"])[1]
        kinds.add((entry["image"] is not None, bool(body.replace("<image>", "").strip())))
    assert kinds == {(False, True), (True, False), (True, True)}
    assert len(check["embeddings"]) == len(check["inputs"])


def test_torch_reproduces_the_self_check(straight, exported):
    folder = straight / "hf"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    check = json.loads((folder / "self_check.json").read_text())
    counter = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)  # its maths, not its videos
    counter.image_processor = image_processor
    counter.num_image_tokens = json.loads((folder / "processor_config.json").read_text())[
        "num_image_tokens"
    ]
    counter.vision_aspect_ratio = exported.config.vision_aspect_ratio
    for entry, expected in zip(check["inputs"], check["embeddings"], strict=True):
        text, pixels = entry["text"], {}
        if entry["image"]:
            image = Image.open(folder / entry["image"]).convert("RGB")
            pixels = dict(image_processor(image, return_tensors="pt"))
            size = image_processor.size
            count = counter._get_number_of_features(
                image.height, image.width, size["height"], size["width"]
            )
            assert text.count("<image>") == 1
            text = text.replace("<image>", "<image>" * count)
            pixels = {key: pixels[key] for key in ("pixel_values", "image_sizes")}
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = exported.model(**ids, **pixels).last_hidden_state[0, -1]
        embedding = torch.nn.functional.normalize(hidden, dim=0).numpy()
        assert np.linalg.norm(expected) == pytest.approx(1, abs=1e-5)
        assert embedding @ np.array(expected) >= 0.99999, entry


# Resuming


def wait_for(condition, process, seconds=300):
    """Polls until `condition()`; fails if the process ends first."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def killed_in_save(data, tmp_path_factory):
    """A run killed while it writes the checkpoint of step 4."""
    workdir = tmp_path_factory.mktemp("killed")
    process = tiny_run.start(tiny_run.make_config(data), workdir)
    wait_for(lambda: list(workdir.glob("checkpoints/4*")), process)
    process.kill()
    process.communicate()
    return workdir


def test_resumes_bitwise_after_a_kill_in_a_save(config, killed_in_save, straight, workdir):
    shutil.copytree(killed_in_save, workdir)
    complete = workdir / "checkpoints" / "4"
    if complete.exists():  # the kill came too late: leave what an earlier one leaves
        complete.rename(complete.with_name("4.orbax-checkpoint-tmp"))
        shutil.rmtree(complete.with_name("4.orbax-checkpoint-tmp") / "state")
    assert checkpoint_steps(workdir) == [2]
    train.run(config, workdir)
    assert checkpoint_steps(workdir) == [4, 6]
    same_checkpoint(workdir, straight, 4)
    same_checkpoint(workdir, straight, 6)
    same_metrics(workdir, straight)
    assert (workdir / "hf" / "self_check.json").exists()


def test_sigterm_saves_and_the_same_command_goes_on(
    config, killed_in_save, straight, workdir, data
):
    """Also a second interruption of one run: killed in a save, then told to stop."""
    shutil.copytree(killed_in_save, workdir)
    config.checkpoint.every = 100
    process = tiny_run.start(config, workdir)
    wait_for(lambda: metrics(workdir)[-1]["step"] == 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 143, output  # schedulers start it again
    assert "told to stop: saving step" in output
    stopped = checkpoint_steps(workdir)[-1]
    assert 3 <= stopped < 6 and metrics(workdir)[-1]["step"] == stopped
    assert not (workdir / "hf").exists()
    train.run(config, workdir)
    same_checkpoint(workdir, straight, 6)
    same_metrics(workdir, straight)


def test_a_finished_run_started_again_changes_nothing(config, straight, workdir):
    shutil.copytree(straight, workdir)
    train.run(config, workdir)
    same_metrics(workdir, straight)
    exports = [load_file(run / "hf" / "model.safetensors") for run in (workdir, straight)]
    assert all(exports[0][name].tobytes() == exports[1][name].tobytes() for name in exports[1])


# Meshes


@pytest.mark.parametrize("mesh", [(2, 2, 2), pytest.param((1, 1, 1), marks=pytest.mark.slow)])
def test_losses_do_not_depend_on_the_mesh(config, straight, workdir, monkeypatch, mesh):
    """`straight` ran on (8, 1, 1)."""
    devices = jax.devices()[: int(np.prod(mesh))]
    monkeypatch.setattr(train, "make_mesh", functools.partial(train.make_mesh, devices=devices))
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
    monkeypatch.setattr(export, "write", lambda *_: None)
    train.run(config, workdir)
    losses, expected = ([line["loss"] for line in metrics(run)[:3]] for run in (workdir, straight))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


# What is trained


@pytest.fixture
def pretrained(straight, config):
    """A config that starts from the weights that `straight` exported."""
    config.backbone = str(straight / "hf")
    config.init = "pretrained"
    config.steps = 2
    return config, load_file(straight / "hf" / "model.safetensors")


@pytest.mark.parametrize("dora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_adapters_train_and_are_merged_on_export(pretrained, workdir, dora):
    config, before = pretrained
    config.lora.rank, config.lora.dora = 4, dora
    layers = r"language_model\..*\.(self_attn\.[qv]_proj|mlp\.down_proj)"
    config.lora.targets = ((layers, True), (".*", False))
    config.trainable = ((r".*\.lora_(a|b|magnitude)", True), (".*", False))
    train.run(config, workdir)
    arrays = saved(workdir, 2)
    assert any("lora_b" in path for path in arrays)
    assert any("lora_magnitude" in path for path in arrays) == dora
    assert not any("kernel" in path for path in arrays)  # frozen weights are not saved
    after = load_file(workdir / "hf" / "model.safetensors")
    adapted = re.compile(layers + r"\.weight")
    assert after.keys() == before.keys()
    for name in before:
        changed = before[name].tobytes() != after[name].tobytes()
        assert changed == bool(adapted.fullmatch(name)), name
    check = json.loads((workdir / "hf" / "self_check.json").read_text())
    assert len(check["embeddings"]) > 3


def test_a_frozen_tower_stays_as_it_was(pretrained, workdir):
    """LLaVE's options, as far as they differ from stage 2's."""
    config, before = pretrained
    recipe = llave.get_config("llava_onevision_7b")
    config.loss = recipe.loss
    config.trainable, config.optimizer.schedule = recipe.trainable, recipe.optimizer.schedule
    config.optimizer.weight_decays = recipe.optimizer.weight_decays
    train.run(config, workdir)
    after = load_file(workdir / "hf" / "model.safetensors")
    for name in before:
        if "vision_tower" in name:
            assert before[name].tobytes() == after[name].tobytes(), name
    changed = [name for name in before if before[name].tobytes() != after[name].tobytes()]
    assert any("language_model" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)


# Numbers that are not finite


def test_non_finite_steps_are_skipped_counted_and_end_the_run(
    config, killed_in_save, workdir, monkeypatch
):
    """Weights go bad after step 2, as if a device had failed."""
    shutil.copytree(killed_in_save, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4", ignore_errors=True)
    intact, restore = saved(workdir, 2), train.Checkpoints.restore

    def restore_badly(self, state):
        state = restore(self, state)
        bad = jax.tree.map(lambda x: x * np.nan, state.trainable)
        return dataclasses.replace(state, trainable=bad)

    monkeypatch.setattr(train.Checkpoints, "restore", restore_badly)
    config.max_skipped = 3
    config.checkpoint.update({"every": 1, "keep": 2})
    with pytest.raises(RuntimeError, match="3 steps in a row.*step 5.*learning_rate.*checkpoint"):
        train.run(config, workdir)
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 2, 3]
    assert [line["loss"] is None for line in lines] == [False, False, True, True, True]
    # The good checkpoint is neither lost nor pushed out by those of skipped steps.
    assert checkpoint_steps(workdir) == [2]
    assert all(np.array_equal(intact[k], array) for k, array in saved(workdir, 2).items())


# Wrong configs


def put(config, path, value):
    """Sets a key whatever its type was, as a hand-written config file could."""
    *groups, key = path.split(".")
    group = functools.reduce(lambda group, name: group[name], groups, config.unlock())
    if key in group:
        del group[key]
    group[key] = value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.hard_negatives": 16}, "hard_negatives=16 must be below config.batch_size=16"),
        ({"batch_size": 20}, "batch_size=20 must be a multiple of 8"),
        ({"chunk_size": 12}, "chunk_size=12 must be a multiple of 8"),
        ({"mesh.tensor": 3}, r"mesh.tensor=3 does not give the 8 device"),
        ({"backbone": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"data.weights": {"digit": 1.0}}, "no such source: 'digit'"),
        ({"data.train": "mini_mmeb/trian"}, "no prepared dataset in .*trian"),
        ({"optimizer.lerning_rate": 1.0}, "lerning_rate; did you mean config.optimizer.learning_r"),
        ({"optimizer.schedule": "poly"}, "schedule is 'poly'; use one of 'linear'"),
        ({"optimizer.warmup_steps": 6}, "optimizer.warmup_steps=6 .* steps=6"),
        ({"steps": "many"}, "config.steps must be of type int, not 'many'"),
        ({"trainable": (("language_model.*", True),)}, "trainable: no rule matches"),
        ({"data.source_run": 5}, "source_run = 5 must divide batch_size = 16"),
        (
            {"data.buckets": (Bucket(tokens=56, tiles=3), Bucket(tokens=40, tiles=0))},
            "buckets must go from small to large",
        ),
        ({"init": "pretrained"}, "holds no model.safetensors"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_trained(config, workdir, changes, message):
    for path, value in changes.items():
        put(config, path, value)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        train.run(config, workdir)
    assert main.says_it_all(raised.value)  # no traceback on the command line
    assert not metrics(workdir)


def test_a_missing_key_is_named(config, workdir):
    del config.loss.temperature
    with pytest.raises(ValueError, match=r"missing key config.loss.temperature \(float\)"):
        train.run(config, workdir)


def test_the_command_line_answers_a_mistake_in_a_line(tmp_path):
    command = [sys.executable, "-m", "unime_jax.main", "--config=experiments/stage2.py"]
    result = subprocess.run(
        [*command, "--config.optimizer.learning_rte=1", f"--workdir={tmp_path}"],
        cwd=tiny_run.ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert '"learning_rate" instead of "learning_rte"' in result.stderr


def test_a_bug_keeps_its_traceback():
    with pytest.raises(TypeError) as raised:
        schema.check_names(None, [])
    assert not main.says_it_all(raised.value)


# Wrong data


@pytest.fixture
def spoil(monkeypatch, config):
    """Trains on one source of 24 rows, of which some are changed."""

    def change(changes: dict[int, dict]):
        def open_one(folder):
            rows = open_dataset(folder)[name]
            return {name: [dict(rows[i]) | changes.get(i, {}) for i in range(len(rows))]}

        open_dataset = formats.open_dataset
        name = sorted(open_dataset(f"{config.data.folder}/mini_mmeb/train"))[0]
        config.data.weights = {name: 1.0}
        monkeypatch.setattr(formats, "open_dataset", open_one)
        return name

    return change


NO_IMAGE = {"qry_image_path": b"", "qry_image": b""}
BAD_ROWS = {
    3: {"id": b"corrupt", "qry_image_path": b"a.png", "qry_image": b"\x89PNG\r\n\x1a\n0000"},
    5: {"id": b"absent", "qry_image_path": b"b.png", "qry_image": b""},
    8: {"id": b"empty", "qry": b"<|image_1|>\n", **NO_IMAGE},
    9: {"id": b"targetless", "pos_text": b"", "pos_image_path": b"", "pos_image": b""},
}


TWO = {"qry": b"<|image_1|> or <|image_2|>?", "qry_image_path": [b"c.png", b"d.png"]}
SEVERAL_IMAGES = {
    0: {"id": b"two", "qry_image": [encoded(noise(20, 30)), encoded(noise(50, 20))], **TWO},
    2: {"id": b"half", "qry_image": [encoded(noise(20, 30)), encoded(noise(90, 90))[:900]], **TWO},
}


def test_bad_rows_are_quarantined_and_the_run_ends_well(config, workdir, spoil):
    source = spoil(BAD_ROWS | SEVERAL_IMAGES)
    config.data.max_bad_share = 0.5
    train.run(config, workdir)
    found = {item.id: item for item in quarantine.read_quarantine(workdir / "quarantine.jsonl")}
    assert found.keys() == {"corrupt", "absent", "empty", "targetless", "half"}
    assert {item.source for item in found.values()} == {source}
    assert [found[id].path for id in ("corrupt", "absent", "empty")] == ["a.png", "b.png", ""]
    assert found["half"].path == "d.png"
    assert found["half"].reason.startswith("query: image 2 of 2 cannot be decoded: OSError")
    assert "cannot be decoded" in found["corrupt"].reason
    assert "missing" in found["absent"].reason
    assert "empty text and no image" in found["empty"].reason
    assert "no positive" in found["targetless"].reason
    assert sum(line["replaced_examples"] for line in metrics(workdir)) >= 4
    check = json.loads((workdir / "hf" / "self_check.json").read_text())
    several = [entry for entry in check["inputs"] if "images" in entry]
    assert [len(entry["images"]) for entry in several] == [2, 2]  # with their text, and without
    assert several[0]["text"].count("<image>") == 2
    self_check.repeat(files.as_path(workdir / "hf"))


def test_too_many_bad_rows_end_the_run(config, workdir, spoil, monkeypatch):
    spoil(BAD_ROWS)
    early = functools.partial(quarantine.Quarantine, min_read=32)
    monkeypatch.setattr(quarantine, "Quarantine", early)
    config.data.max_bad_share = 0.1
    with pytest.raises(ValueError, match="examples read were unusable.*quarantine.jsonl"):
        train.run(config, workdir)
    assert (workdir / "quarantine.jsonl").exists() and not (workdir / "hf").exists()


def test_a_source_without_a_usable_row_is_named(config, workdir, spoil):
    source = spoil(dict.fromkeys(range(24), BAD_ROWS[5]))
    with pytest.raises(
        ValueError, match=f"source '{source}' has no usable example.*All are listed in .*jsonl"
    ):
        train.run(config, workdir)
    (found,) = quarantine.read_quarantine(workdir / "quarantine.jsonl")  # all have one name
    assert found[:3] == (source, "absent", "b.png")


@pytest.mark.parametrize("experiment", [stage2, llave])
def test_every_variant_of_an_experiment_is_a_valid_config(experiment):
    for variant in ("mini", "llava_onevision_7b"):
        given = experiment.get_config(variant).to_dict()
        assert read_config(TrainConfig, given).optimizer.warmup_steps < given["steps"]
    with pytest.raises(KeyError, match="use one of mini, llava"):
        experiment.get_config("7b")
