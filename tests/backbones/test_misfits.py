"""Checkpoints that do not fit, or are broken: what is wrong is said, all of it at once."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file as save_torch

from tests.backbones.checkpoints import (
    assert_same,
    targets,
    tensors,
    write,
)
from tests.models.oracle import load
from tests.tables import for_each
from unime_jax.backbones.io import names, tensor_files, weights


@pytest.fixture
def pair(pairs):
    return pairs("llava_onevision")


def test_all_misfits_come_in_one_table(pair, tmp_path):
    found = tensors(pair.backbone.folder)
    del found["image_newline"]
    del found["language_model.model.layers.2.mlp.up_proj.weight"]
    found["language_model.model.layers.3.mlp.up_proj.weight"] = np.zeros((64, 48), np.float32)
    found["extra.weight"] = np.zeros(3, np.float32)
    found["language_model.model.norm.weight"] = np.zeros(47, np.float32)
    found["vision_tower.embeddings.patch_embedding.weight"] = np.zeros((32, 147), np.float32)
    found["language_model.model.layers.0.mlp.up_proj.weight"] = np.zeros((64, 48), np.int8)
    found["model.vision_tower.post_layernorm.bias"] = np.zeros(32, np.float32)
    backbone = write(pair, tmp_path / "given", found, shards=2)
    promised = json.loads((tmp_path / "given" / tensor_files.INDEX).read_text())
    promised["weight_map"]["language_model.model.ghost.weight"] = "part-1.safetensors"
    (tmp_path / "given" / tensor_files.INDEX).write_text(json.dumps(promised))
    twice = "vision_tower.vision_model.post_layernorm.bias"
    as_given = {"vision_tower.post_layernorm.bias", "model.vision_tower.post_layernorm.bias"}
    with pytest.raises(ValueError) as error:
        backbone.load(targets(backbone))
    lines = str(error.value).splitlines()
    assert str(tmp_path / "given") in lines[0] and "9 problem(s)" in lines[0]
    *rest, ghost, both = [line.strip() for line in lines[1:]]
    assert rest == [
        "missing     image_newline (48,)",
        "missing     language_model.model.layers.2.mlp.up_proj.weight (64, 48)",
        "left over   extra.weight",
        "left over   language_model.model.layers.3.mlp.up_proj.weight",
        "not a float language_model.model.layers.0.mlp.up_proj.weight: int8",
        "wrong shape language_model.model.norm.weight: (47,) in the file, (48,) in the model",
        "wrong shape vision_tower.vision_model.embeddings.patch_embedding.weight: (32, 147) in the "
        "file, (32, 3, 7, 7) in the model",
    ]
    assert ghost == (
        "not in file language_model.model.ghost.weight: "
        "model.safetensors.index.json says part-1.safetensors"
    )
    assert both.startswith(f"twice       {twice}: also as ")
    assert any(name in both for name in as_given)

    # A pooling head of the tower is not left over. Nor are the integers that older versions
    # saved; they come back as they are.
    (tmp_path := tmp_path / "next").mkdir()
    found = tensors(pair.backbone.folder) | {
        "vision_tower.head.probe": np.ones(3, np.float32),
        "vision_tower.embeddings.position_ids": np.arange(16)[None],
    }
    backbone = write(pair, tmp_path / "given", found)
    (tmp_path / "saved").mkdir()
    backbone.save_weights(tmp_path / "saved", load(backbone), np.dtype(np.float32))
    assert_same(tensors(tmp_path / "saved"), found)


def test_what_is_absent_or_cannot_be_read_is_named(pair, tmp_path):
    # No weights.
    backbone = write(pair, tmp_path / "given", {})
    (tmp_path / "given" / tensor_files.SINGLE).unlink()
    (tmp_path / "given" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"holds no model.safetensors(.|\n)*convert pickled"):
        backbone.load(targets(backbone))

    # An index of absent files.
    (tmp_path := tmp_path / "next").mkdir()
    backbone = write(pair, tmp_path / "given", tensors(pair.backbone.folder), shards=3)
    (tmp_path / "given" / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match="absent: part-1.safetensors"):
        backbone.load(targets(backbone))

    # A parameter outside the family is an error.
    with pytest.raises(ValueError, match="covers the parameter audio_tower.weight"):
        names.table({"audio_tower.weight": (3,)}, pair.backbone.names)

    (tmp_path := tmp_path / "next").mkdir()
    # Files that are broken.
    file = tmp_path / "x.safetensors"
    save_torch({"a": torch.ones(100), "b": torch.ones(100)}, file)
    whole = file.read_bytes()
    for size in (0, 5, 40, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="x.safetensors is cut short"):
            tensor_files.open_file(file)
    file.write_bytes(whole.replace(b"[100]", b"[101]"))
    with pytest.raises(ValueError, match=r"the header gives a 400 bytes for \(101,\)"):
        tensor_files.open_file(file)
    file.write_bytes(b"PK\x03\x04" + b"pickled" * 20)
    with pytest.raises(ValueError, match="is no safetensors file"):
        tensor_files.open_file(file)

    # Quantised weights.
    (tmp_path := tmp_path / "next").mkdir()
    save_torch({"a": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="such as a of F8_E4M3; quantised weights must be conv"):
        tensor_files.open_file(tmp_path / "x.safetensors")


def test_tensors_are_what_safetensors_wrote(tmp_path):
    """Of every dtype, of no elements and of no axes, too."""
    given = {
        "a": torch.arange(12.0).reshape(3, 4).to(torch.bfloat16),
        "b": torch.arange(5, dtype=torch.int64),
        "c": torch.tensor(2.5, dtype=torch.float16),
        "d": torch.zeros(0, 7),
        "e": torch.tensor([True, False, True]),
        "f": torch.randn(2, 3, 4, dtype=torch.float64),
        "g": torch.arange(7, dtype=torch.uint8),
    }
    save_torch(given, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = tensor_files.open_file(tmp_path / "x.safetensors")
    assert found.keys() == given.keys()
    for name, x in given.items():
        assert found[name].shape == found[name].open().shape == tuple(x.shape)
        expected = x.float().numpy().astype(ml_dtypes.bfloat16) if name == "a" else x.numpy()
        np.testing.assert_array_equal(found[name].open(), expected)
        assert found[name].dtype == expected.dtype


def save(folder, pair, shard_bytes):
    weights.save(
        folder,
        pair.parameters,
        pair.backbone.names,
        np.dtype(np.float32),
        shard_bytes=shard_bytes,
    )


@for_each("shard_bytes", [50_000, weights.SHARD_BYTES])
def test_what_is_cut_short_is_no_checkpoint(pair, tmp_path, monkeypatch, shard_bytes):
    """Neither a new one, nor at the price of the one that was there."""
    written = weights.save_file

    def fails(tensors, file, **kwargs):
        if "shard-1" in file.name or shard_bytes > 50_000:
            raise OSError("disk full")
        written(tensors, file, **kwargs)

    monkeypatch.setattr(weights, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, pair, shard_bytes)
    assert tensor_files.checkpoint_files(tmp_path) == {}
    assert not list(tmp_path.glob("*.safetensors*"))

    monkeypatch.setattr(weights, "save_file", written)
    save(tmp_path, pair, weights.SHARD_BYTES)
    before = tensors(tmp_path)
    monkeypatch.setattr(weights, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, pair, shard_bytes)
    assert_same(tensors(tmp_path), before)


@for_each("sizes", [(50_000, weights.SHARD_BYTES), (weights.SHARD_BYTES, 50_000)])
def test_a_later_save_is_the_one_that_is_read(pair, tmp_path, sizes):
    save(tmp_path, pair, sizes[0])
    doubled = {path: 2 * x for path, x in pair.parameters.items()}
    save(tmp_path, dataclasses.replace(pair, parameters=doubled), sizes[1])
    np.testing.assert_array_equal(
        tensors(tmp_path)["image_newline"], 2 * pair.parameters["image_newline"]
    )
    sharded = sizes[1] < weights.SHARD_BYTES  # other libraries may prefer the index
    assert (tmp_path / tensor_files.INDEX).exists() is sharded
    assert (tmp_path / tensor_files.SINGLE).exists() is not sharded
