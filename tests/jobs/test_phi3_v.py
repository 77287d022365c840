"""Phi-3.5-Vision from a folder through training and back; transformers has no class for it."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.backbones.checkpoints import tensors
from tests.backbones.tiny_phi3_v import write_phi3_v, write_weights
from tests.jobs import plain_steps, tiny_run
from tests.models.oracle import picture
from unime_jax import Embedder, backbones, sharding
from unime_jax.backbones.io import merging
from unime_jax.data.settings import Bucket
from unime_jax.export import self_check
from unime_jax.jobs import export, train

ELEMENTS = [
    "a red circle",
    {"image": picture(40, 31, 1)},
    {"text": "<|image_1|>\nRepresent the given image", "image": picture(30, 64, 2)},
    {"text": "<|image_2|> or <|image_1|>", "image": [picture(30, 64, 3), picture(9, 9, 4)]},
]


# By day names and fused tensors are tested in backbones/test_phi3_v_weights.py.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """A pretrained folder, and the work directory of three steps with DoRA on it.

    Steps without the model: its own are those of test_mesh_invariance.py.
    """
    folder = write_phi3_v(tmp_path_factory.mktemp("phi3_v") / "folder")
    write_weights(folder)
    config = tiny_run.make_config(data)
    config.steps = config.checkpoint.every = 3
    config.batch_size = config.chunk_size = 8
    config.loss.hard_negatives = 4
    config.backbone = str(folder)
    config.init = "pretrained"
    config.processing.prompt = "raw"
    config.processing.crops = 2
    config.mesh = ConfigDict({"data": 2, "fsdp": 2, "tensor": 2})
    config.trainable = ((r".*\.lora_(a|b|magnitude)", True), (".*", False))
    config.lora.rank = 4
    config.lora.alpha = 8.0
    config.lora.targets = (
        (r"(language_model|vision_tower)\..*\.(q|k|v|o|down|out|gate|up)_proj", True),
        (".*", False),
    )
    config.optimizer.learning_rate = 1e-2
    config.data.buckets = (Bucket(tokens=192, tiles=3),)
    config.export.adapter = True
    workdir = tmp_path_factory.mktemp("phi3_v_run")
    with pytest.MonkeyPatch.context() as patch:
        plain_steps.replace(patch, 2.0**-5)
        train.run(config, workdir)
    return folder, workdir


@functools.cache
def embedded(folder: pathlib.Path) -> np.ndarray:
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    model = Embedder.from_pretrained(folder, dtype="float32", max_length=192, mesh=mesh)
    return model.encode(ELEMENTS)


def test_the_export_is_the_trained_model_in_the_hubs_form(trained):
    folder, workdir = trained
    saved, given = tensors(workdir / "hf"), tensors(folder)
    assert {n: x.shape for n, x in saved.items()} == {n: x.shape for n, x in given.items()}
    changed = {n for n in given if np.any(saved[n] != given[n])}
    layers = {name.rsplit(".", 2)[-2] for name in changed}
    decoder = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert layers == decoder | {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert not any("layers.2" in name for name in changed)  # the tower's last is not read
    assert np.all(np.sum(embedded(workdir / "hf") * embedded(folder), axis=1) < 0.9999)
    backbone = backbones.open_backbone(str(workdir / "hf"), max_length=192)
    assert backbone.processing.crops == 2
    assert json.loads((workdir / "hf" / "preprocessor_config.json").read_text())["num_crops"] == 2
    before, after = (json.loads((x / "config.json").read_text()) for x in (folder, workdir / "hf"))
    assert {key: after[key] for key in before} == before
    assert (workdir / "hf" / "clip_vision_config.json").exists()

    # The card says what other libraries lack
    _, workdir = trained
    card = (workdir / "hf" / "README.md").read_text()
    assert "transformers has no class for this model" in card and "library_name: transf" in card
    assert not (workdir / "hf" / "modules.json").exists()  # of sentence-transformers


def test_the_export_passes_its_own_check(trained):
    """Prompts with images by number are worded as they were."""
    _, workdir = trained
    assert self_check.repeat(workdir / "hf") >= 0.99999


def test_the_adapter_alone_gives_the_embeddings(trained):
    _, workdir = trained
    found, expected = embedded(workdir / "hf_adapter"), embedded(workdir / "hf")
    assert np.all(np.sum(found * expected, axis=1) >= 0.99999)
    record = json.loads((workdir / "hf_adapter" / merging.CONFIG).read_text())
    assert sorted(record["rank_pattern"].values()) == [8, 12] and record["use_dora"]


def test_an_adapter_is_exported_merged_and_in_bfloat16(trained, tmp_path):
    _, workdir = trained
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    config.update({"job": "export", "steps": 0, "backbone": str(workdir / "hf_adapter")})
    config.update({"trainable": ((".*", True),)})
    config.lora.rank = 0
    config.export.adapter = False
    config.export.dtype = "bfloat16"
    export.run(config, tmp_path / "merged")
    written = tensors(tmp_path / "merged" / "hf")
    assert {x.dtype for x in written.values()} >= {np.dtype(jax.numpy.bfloat16)}
    found, expected = embedded(tmp_path / "merged" / "hf"), embedded(workdir / "hf")
    assert np.all(np.sum(found * expected, axis=1) >= 0.999)
