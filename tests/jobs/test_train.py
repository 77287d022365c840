"""The training job from end to end: what it leaves, and numbers that are not finite."""

import dataclasses
import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoImageProcessor, AutoTokenizer, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from tests.jobs import tiny_run
from tests.jobs.tiny_run import checkpoint_steps, metrics, saved
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

    # Metrics
    lines = metrics(straight)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line.keys() >= LOGGED
        assert all(isinstance(value, int | float) for value in line.values())
        assert line["loss"] > 0 and line["gradient_norm"] > 0 and line["skipped_steps"] == 0
        assert 0 <= line["pad_fraction"] < 1 and 0 <= line["data_wait_share"] <= 1
        assert 0 < line["negatives_per_query"] < 32 and 0 <= line["masked_share"] < 1

    # Evaluation
    found = json.loads((straight / "evaluation.json").read_text())
    assert found.keys() == {"before", "after"}
    for scores in found.values():
        averages = {"CLS", "VQA", "RET", "VG", "IND", "OOD", "All"}
        assert scores.keys() >= averages | {"datasets", "composition"}
        assert scores["composition"].keys() == {"replace", "swap", "add"}
        values = [*scores["datasets"].values(), *scores["composition"].values()]
        assert len(scores["datasets"]) > 4 and all(0 <= value <= 100 for value in values)
    assert found["before"] != found["after"]

    # Export self check holds every kind of input
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


# The export, read by torch


@pytest.fixture(scope="module")
def exported(straight):
    model, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
        straight / "hf", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


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


def test_a_finished_run_started_again_changes_nothing(config, straight, workdir):
    shutil.copytree(straight, workdir)
    train.run(config, workdir)
    same_metrics(workdir, straight)
    exports = [load_file(run / "hf" / "model.safetensors") for run in (workdir, straight)]
    assert all(exports[0][name].tobytes() == exports[1][name].tobytes() for name in exports[1])


# Meshes


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 1, 1)])
def test_losses_do_not_depend_on_the_mesh(config, straight, workdir, monkeypatch, mesh):
    """`straight` ran on (8, 1, 1)."""
    devices = jax.devices()[: int(np.prod(mesh))]
    monkeypatch.setattr(train, "make_mesh", functools.partial(train.make_mesh, devices=devices))
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
    monkeypatch.setattr(export, "write", lambda *_: None)
    train.run(config, workdir)
    losses, expected = ([line["loss"] for line in metrics(run)[:3]] for run in (workdir, straight))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


# Numbers that are not finite


def test_non_finite_steps_are_skipped_counted_and_end_the_run(
    config, straight, workdir, plain_step, one_device, monkeypatch
):
    """Weights go bad after step 4, as if a device had failed; the steps from there are plain."""
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    shutil.rmtree(workdir / "hf")
    intact, restore = saved(workdir, 4), train.Checkpoints.restore

    def restore_badly(self, state):
        state = restore(self, state)
        bad = jax.tree.map(lambda x: x * np.nan, state.trainable)
        return dataclasses.replace(state, trainable=bad)

    monkeypatch.setattr(train.Checkpoints, "restore", restore_badly)
    config = tiny_run.with_evaluation(config)
    config.max_skipped = 2
    config.checkpoint.update({"every": 1, "keep": 1})
    with pytest.raises(RuntimeError, match="2 steps in a row.*step 6.*learning_rate.*checkpoint"):
        train.run(config, workdir)
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 0, 0, 1, 2]
    assert [line["loss"] is None for line in lines] == [False] * 4 + [True] * 2
    # The good checkpoint is neither lost nor pushed out by those of skipped steps.
    assert checkpoint_steps(workdir) == [4]
    assert all(np.array_equal(intact[k], array) for k, array in saved(workdir, 4).items())
    assert not (workdir / "hf").exists()
