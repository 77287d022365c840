"""Exports can be read by those whom the umask lets read any other file."""

import contextlib
import os

import jax
import numpy as np

from tests.backbones.tiny_texts import write_bert
from tests.tables import for_each
from unime_jax import backbones, paths
from unime_jax.backbones.io import adapters, tensor_files, weights
from unime_jax.export import folder as hf_folder
from unime_jax.models import lora

FLOAT32 = np.dtype(np.float32)


UMASKS = (0o022, 0o027, 0o002)


@contextlib.contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@for_each("shard_bytes", [20_000, weights.SHARD_BYTES])
def test_all_files_of_exports_and_adapters(tmp_path, monkeypatch, shard_bytes):
    backbone = backbones.open_backbone(str(write_bert(tmp_path / "bert")), max_length=64)
    config = lora.LoraConfig(2, 4.0, False, ((r".*\.query", True), (".*", False)))

    def make():
        model = backbone.make_model(jax.random.key(0))
        lora.add(model, config, key=jax.random.key(1))
        return model

    graph, shapes = paths.split(jax.eval_shape(make))
    parameters = {path: jax.device_put(np.ones(x.shape, x.dtype)) for path, x in shapes.items()}
    save = weights.save
    monkeypatch.setattr(weights, "save", lambda *a, **k: save(*a, **k, shard_bytes=shard_bytes))
    for mask in UMASKS:
        folder = tmp_path / oct(mask)
        folder.mkdir()
        with umask(mask):
            hf_folder.write(folder / "hf", backbone, graph, parameters, dtype=FLOAT32, prompts={})
            adapters.save(folder / "adapter", backbone, parameters, config, dtype=FLOAT32)
        files = [file for name in ("hf", "adapter") for file in (folder / name).rglob("*.*")]
        assert sum(file.suffix == ".safetensors" for file in files) > 1
        for file in filter(os.path.isfile, files):
            assert file.stat().st_mode & 0o777 == 0o666 & ~mask, file


@for_each("mask", UMASKS)
def test_what_was_left_there_before_gives_no_permissions(tmp_path, mask):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"")
    file.chmod(0o600)
    with umask(mask):
        tensor_files.save_file({"a": np.ones(3)}, file, metadata={})
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask
