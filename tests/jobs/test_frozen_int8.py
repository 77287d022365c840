"""LoRA on a base in int8 from end to end: it learns, resumes, and leaves what it computed."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from transformers import AutoModelForImageTextToText

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_llava_qwen import write_llava_qwen
from tests.backbones.tiny_phi3_v import write_phi3_v, write_weights
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.jobs import test_distillation, tiny_run
from tests.jobs.test_distillation import sentences  # noqa: F401
from tests.jobs.test_families import assert_equal, by_torch, embedded
from tests.models.oracle import TEXT, VISION, pair_of
from unime_jax.data.settings import Bucket
from unime_jax.jobs import train

pytestmark = pytest.mark.slow

FAMILIES = {  # and the most tiles of an image
    "llava_onevision": (lambda f: pair_of(write_folder(f, vision=VISION, text=TEXT)), 5),
    "llava_next": (lambda f: pair_of(write_llava_next(f, decoder="mistral")), 5),
    "qwen2_vl": (lambda f: pair_of(write_qwen2_vl(f)), 1),
    "llava_qwen": (write_llava_qwen, 5),
    "phi3_v": (lambda f: write_weights(write_phi3_v(f)), 5),
}


def run_config(data: pathlib.Path, folder: pathlib.Path, family: str) -> ConfigDict:
    """DoRA on every layer of the decoder; of the tower, on none."""
    config = tiny_run.make_config(data)
    config.steps = 8
    config.checkpoint.every = 4
    config.backbone = str(folder)
    config.init = "pretrained"
    if family in ("llava_qwen", "phi3_v"):
        config.processing.prompt = "verbatim" if family == "llava_qwen" else "raw"
    config.trainable = ((r".*\.lora_(a|b|magnitude)", True), (".*", False))
    config.lora.rank = 4
    config.lora.alpha = 8.0
    config.lora.targets = ((r"language_model\..*_proj", True), (".*", False))
    config.optimizer.learning_rate = 2e-2
    config.data.source_run = 16
    config.data.buckets = (
        Bucket(tokens=320, tiles=0),
        Bucket(tokens=512, tiles=FAMILIES[family][1]),
    )
    config.execution.frozen_dtype = "int8"
    config.execution.remat = "full"
    config.export.adapter = True
    return config


def write(family: str, base: pathlib.Path) -> pathlib.Path:
    folder = base / "folder"
    folder.mkdir()
    FAMILIES[family][0](folder)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """A LLaVA-OneVision, and the work directory of a run on it."""
    folder = write("llava_onevision", tmp_path_factory.mktemp("int8"))
    config = run_config(data, folder, "llava_onevision")
    config.data.buckets = (Bucket(tokens=192, tiles=5),)
    config.batch_size = config.chunk_size = config.data.source_run = 8
    config.loss.hard_negatives = 4
    workdir = tmp_path_factory.mktemp("int8_run")
    train.run(config, workdir)
    return folder, workdir


def test_the_loss_falls(trained):
    losses = [line["loss"] for line in tiny_run.metrics(trained[1])]
    assert len(losses) == 8 and np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2]), losses
    table = (trained[1] / "parameters.txt").read_text()
    assert "q_proj.kernel_scale" in table and " int8 " in table


def test_the_export_and_the_adapters_alone_give_the_embeddings(trained):
    """Of the export, which passed its check against what was trained."""
    folder, workdir = trained
    model, info = AutoModelForImageTextToText.from_pretrained(
        workdir / "hf", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    found = embedded(workdir / "hf")
    assert_equal(by_torch(model.eval(), workdir / "hf"), found, 0.9999)
    assert np.all(np.sum(found * embedded(folder), axis=1) < 0.999)  # it was trained

    # Adapters alone are close on the original base. The base they name is the float one; the
    # card says so.
    _, workdir = trained
    cosine = np.sum(embedded(workdir / "hf_adapter") * embedded(workdir / "hf"), axis=1)
    assert np.all(cosine > 0.99) and np.any(cosine < 1 - 1e-6)
    assert "rounded to int8" in (workdir / "hf" / "README.md").read_text()


def test_a_run_goes_on_to_the_bit(trained, tmp_path):
    """Frozen weights are not saved but read and quantised again."""
    _, workdir = trained
    half = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(half / "hf")
    shutil.rmtree(half / "checkpoints" / "8")
    train.run(ConfigDict(json.loads((workdir / "config.json").read_text())), half)
    for file in ("hf/model.safetensors", "hf/self_check.json"):
        assert (half / file).read_bytes() == (workdir / file).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(data, tmp_path, family):
    """Training ends with the check that the export embeds as the trained model does."""
    config = run_config(data, write(family, tmp_path), family)
    config.steps = 2
    config.export.adapter = False
    config.mesh = ConfigDict({"data": 2, "fsdp": 2, "tensor": 2})
    train.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "hf" / "self_check.json").exists()


@pytest.mark.usefixtures("sentences")
def test_stage_1(data, tmp_path):
    """Of the language component; then the whole model, read and quantised again, is exported."""
    config = test_distillation.make_config(data)
    adapted = run_config(data, write("llava_onevision", tmp_path), "llava_onevision")
    for key in ("backbone", "init", "trainable", "lora"):
        config[key] = adapted[key]
    config.execution.frozen_dtype = "int8"
    config.optimizer.learning_rate = 2e-2
    train.run(config, tmp_path / "run")
    before, after = test_distillation.agreement(tmp_path / "run")
    assert after["kl"] < before["kl"]
    assert (tmp_path / "run" / "hf" / "self_check.json").exists()
