"""Weights from Hugging Face files and back: every bit, every spelling, every mesh, every misfit."""

import dataclasses
import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import LlavaOnevisionForConditionalGeneration

from tests.backbones.tiny_folders import write_folder
from tests.models.oracle import load, make_pair
from unime_jax import backbones, paths, sharding
from unime_jax.backbones import weights

SPELLINGS = {  # how transformers 5 names a tensor -> how other files do
    "today": lambda name: name,
    "hub": lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
    "module": lambda name: re.sub(
        "^model.lm_head",
        "lm_head",
        "model."
        + name.replace("language_model.model.", "language_model.").replace(
            "language_model.lm_head", "lm_head"
        ),
    ),
}
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("weights") / "folder", grid=2)


def tensors(folder):
    """All tensors of a folder by name."""
    files = weights.checkpoint_files(folder)
    return {name: x for file in files for name, x in load_file(folder / file).items()}


def copy(pair, folder, found, shards=1):
    """The pair's folder with other tensors, in one file or in several with an index."""
    shutil.copytree(pair.backbone.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if shards == 1:
        save_file(found, folder / weights.SINGLE, metadata={"format": "pt"})
    else:
        weight_map = {name: f"part-{i % shards}.safetensors" for i, name in enumerate(found)}
        for file in set(weight_map.values()):
            part = {name: x for name, x in found.items() if weight_map[name] == file}
            save_file(part, folder / file, metadata={"format": "pt"})
        (folder / weights.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return backbones.open_backbone(str(folder), max_length=4096)


def targets(backbone, mesh=None, dtype=jnp.float32):
    mesh = mesh or sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    placed = sharding.parameter_shardings(mesh, {path: x.shape for path, x in shapes.items()})
    return {
        path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=placed[path])
        for path, x in shapes.items()
    }


def assert_same(found, expected):
    """Names, dtypes and bits."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].tobytes() == expected[name].tobytes(), name
        assert found[name].shape == expected[name].shape, name


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_there_and_back_changes_no_bit(pair, tmp_path, spelling, dtype, shards):
    """The tensors of the language-model head come along; names stay the folder's own."""
    given = {
        SPELLINGS[spelling](name): x.astype(DTYPES[dtype])
        for name, x in tensors(pair.backbone.folder).items()
    }
    assert any("lm_head" in name for name in given)
    backbone = copy(pair, tmp_path / "given", given, shards)
    parameters = backbone.load(targets(backbone, dtype=DTYPES[dtype]))
    assert all(x.dtype == DTYPES[dtype] for x in parameters.values())
    (tmp_path / "saved").mkdir()
    backbone.save_weights(tmp_path / "saved", parameters, DTYPES[dtype])
    assert_same(tensors(tmp_path / "saved"), given)


def test_dtypes_of_file_memory_and_export_are_independent(pair, tmp_path):
    """A bfloat16 file trained in float32 comes back as the file it was; or wider, if asked for."""
    given = {n: x.astype(ml_dtypes.bfloat16) for n, x in tensors(pair.backbone.folder).items()}
    backbone = copy(pair, tmp_path / "given", given)
    parameters = load(backbone)
    assert all(x.dtype == np.float32 for x in parameters.values())
    for dtype in DTYPES:
        folder = tmp_path / dtype
        folder.mkdir()
        backbone.save_weights(folder, parameters, DTYPES[dtype])
        expected = {n: x if "lm_head" in n else x.astype(DTYPES[dtype]) for n, x in given.items()}
        assert_same(tensors(folder), expected)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_reads_the_same(pair, tmp_path, spelling):
    given = {SPELLINGS[spelling](n): x for n, x in tensors(pair.backbone.folder).items()}
    assert_same(
        *(
            {path: np.asarray(x) for path, x in parameters.items()}
            for parameters in (load(copy(pair, tmp_path / "given", given)), pair.parameters)
        )
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("shard_bytes", [weights.SHARD_BYTES, 50_000])
def test_transformers_loads_what_is_saved(pair, tmp_path, spelling, shard_bytes, monkeypatch):
    given = {SPELLINGS[spelling](n): x for n, x in tensors(pair.backbone.folder).items()}
    backbone = copy(pair, tmp_path / "given", given)
    changed = {path: 2 * x for path, x in pair.parameters.items()}
    saved = tmp_path / "saved"
    shutil.copytree(backbone.folder, saved, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(weights, "save", functools.partial(weights.save, shard_bytes=shard_bytes))
    backbone.save_weights(saved, changed, np.dtype(np.float32))
    assert (len(list(saved.glob("*.safetensors"))) > 2) == (shard_bytes == 50_000)

    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        saved, output_loading_info=True
    )
    assert not any(info.values()), info
    before = pair.torch_model.state_dict()
    for name, value in model.state_dict().items():
        factor = 1 if "lm_head" in name else 2
        torch.testing.assert_close(value, factor * before[name], rtol=0, atol=0)


def test_shards_and_their_index(pair, tmp_path):
    weights.save(
        tmp_path, pair.parameters, pair.backbone.names, 7, np.dtype(np.float32), shard_bytes=50_000
    )
    index = json.loads((tmp_path / weights.INDEX).read_text())
    files = sorted(path.name for path in tmp_path.iterdir())
    count = len(files) - 1
    expected = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert files == [*expected, weights.INDEX] and count > 2
    sizes = {}
    for file in expected:
        part = load_file(tmp_path / file)
        sizes[file] = sum(x.nbytes for x in part.values())
        assert len(part) == 1 or sizes[file] <= 50_000
        assert all(index["weight_map"][name] == file for name in part)
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert len(index["weight_map"]) == len(tensors(tmp_path))


def test_a_backbone_without_weights_saves_published_names(pair, tmp_path):
    """As after training from scratch; only the head, which nothing trained, is missing."""
    folder = tmp_path / "given"
    shutil.copytree(pair.backbone.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    backbone = backbones.open_backbone(str(folder), max_length=4096)
    backbone.save_weights(folder, pair.parameters, np.dtype(np.float32))
    own = {SPELLINGS["hub"](name) for name in tensors(pair.backbone.folder)}
    assert own - set(tensors(folder)) == {"language_model.lm_head.weight"}
    assert set(tensors(folder)) < own
    _, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert info["missing_keys"] == {"lm_head.weight"} and not info["unexpected_keys"]


@pytest.mark.parametrize("shape", [(2, 4, 1), (2, 2, 2)])
def test_sharded_read_equals_unsharded_read(pair, shape):
    wanted = targets(pair.backbone, sharding.make_mesh(*shape))
    read = pair.backbone.load(wanted)
    assert_same(
        {path: np.asarray(x) for path, x in read.items()},
        {path: np.asarray(x) for path, x in pair.parameters.items()},
    )
    assert all(read[path].sharding == wanted[path].sharding for path in wanted)


class Counted:
    """A lazy tensor that reports how much of it is read."""

    def __init__(self, lazy, report):
        self._lazy, self._report = lazy, report

    def get_shape(self):
        return self._lazy.get_shape()

    def __getitem__(self, index):
        part = self._lazy[index]
        self._report(part.nbytes)
        return part


def test_only_slices_are_read_and_each_byte_once(pair, monkeypatch):
    """Devices that hold the same part share a read; nobody reads a whole tensor to cut it."""
    reads = {}
    slice_of = weights.Checkpoint.slice

    def counted(self, name):
        return Counted(slice_of(self, name), reads.setdefault(name, []).append)

    monkeypatch.setattr(weights.Checkpoint, "slice", counted)
    pair.backbone.load(targets(pair.backbone, sharding.make_mesh(2, 2, 2)))
    held = tensors(pair.backbone.folder)
    for name in held:
        if "lm_head" in name:
            continue
        published = SPELLINGS["hub"](name)
        if "patch_embedding.weight" not in name:  # small: read whole by each that holds a part
            assert sum(reads[published]) == held[name].nbytes, name
    assert reads["language_model.model.layers.1.self_attn.q_proj.weight"] == [48 * 48 * 4 // 4] * 4
    assert (
        "language_model.lm_head.weight" not in reads or not reads["language_model.lm_head.weight"]
    )


def test_all_misfits_come_in_one_table(pair, tmp_path):
    found = tensors(pair.backbone.folder)
    del found["image_newline"]
    del found["language_model.model.layers.2.mlp.up_proj.weight"]
    found["language_model.model.layers.3.mlp.up_proj.weight"] = np.zeros((64, 48), np.float32)
    found["extra.weight"] = np.zeros(3, np.float32)
    found["language_model.model.norm.weight"] = np.zeros(47, np.float32)
    found["vision_tower.embeddings.patch_embedding.weight"] = np.zeros((32, 147), np.float32)
    backbone = copy(pair, tmp_path / "given", found)
    with pytest.raises(ValueError) as error:
        backbone.load(targets(backbone))
    lines = str(error.value).splitlines()
    assert str(tmp_path / "given") in lines[0] and "6 problem(s)" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        "missing     image_newline (48,)",
        "missing     language_model.model.layers.2.mlp.up_proj.weight (64, 48)",
        "left over   extra.weight",
        "left over   language_model.model.layers.3.mlp.up_proj.weight",
        "wrong shape language_model.model.norm.weight: (47,) in the file, (48,) in the model",
        "wrong shape vision_tower.vision_model.embeddings.patch_embedding.weight: (32, 147) in the "
        "file, (32, 3, 7, 7) in the model",
    ]


def test_a_pooling_head_of_the_tower_is_not_left_over(pair, tmp_path):
    found = tensors(pair.backbone.folder) | {"vision_tower.head.probe": np.ones(3, np.float32)}
    backbone = copy(pair, tmp_path / "given", found)
    (tmp_path / "saved").mkdir()
    backbone.save_weights(tmp_path / "saved", load(backbone), np.dtype(np.float32))
    assert_same(tensors(tmp_path / "saved"), found)


def test_no_weights(pair, tmp_path):
    backbone = copy(pair, tmp_path / "given", {})
    (tmp_path / "given" / weights.SINGLE).unlink()
    (tmp_path / "given" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r'holds no model.safetensors(.|\n)*init="random"'):
        backbone.load(targets(backbone))


def test_an_index_of_absent_files(pair, tmp_path):
    backbone = copy(pair, tmp_path / "given", tensors(pair.backbone.folder), shards=3)
    (tmp_path / "given" / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match="absent: part-1.safetensors"):
        backbone.load(targets(backbone))


def test_a_parameter_outside_the_family_is_an_error(pair):
    with pytest.raises(ValueError, match="covers the parameter audio_tower.weight"):
        weights.table({"audio_tower.weight": (3,)}, pair.backbone.names, 7)


def save(folder, pair, shard_bytes):
    weights.save(
        folder,
        pair.parameters,
        pair.backbone.names,
        7,
        np.dtype(np.float32),
        shard_bytes=shard_bytes,
    )


@pytest.mark.parametrize("shard_bytes", [50_000, weights.SHARD_BYTES])
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
    assert weights.checkpoint_files(tmp_path) == []
    assert not list(tmp_path.glob("*.safetensors*"))

    monkeypatch.setattr(weights, "save_file", written)
    save(tmp_path, pair, weights.SHARD_BYTES)
    before = tensors(tmp_path)
    monkeypatch.setattr(weights, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, pair, shard_bytes)
    assert_same(tensors(tmp_path), before)


@pytest.mark.parametrize("sizes", [(50_000, weights.SHARD_BYTES), (weights.SHARD_BYTES, 50_000)])
def test_a_later_save_is_the_one_that_is_read(pair, tmp_path, sizes):
    save(tmp_path, pair, sizes[0])
    doubled = {path: 2 * x for path, x in pair.parameters.items()}
    save(tmp_path, dataclasses.replace(pair, parameters=doubled), sizes[1])
    np.testing.assert_array_equal(
        tensors(tmp_path)["image_newline"], 2 * pair.parameters["image_newline"]
    )


def test_sharded_parameters_are_saved_whole(pair, tmp_path):
    mesh = sharding.make_mesh(2, 2, 2)
    parameters = pair.backbone.load(targets(pair.backbone, mesh))
    pair.backbone.save_weights(tmp_path, parameters, np.dtype(np.float32))
    assert_same(tensors(tmp_path), tensors(pair.backbone.folder))


@pytest.mark.parametrize("model_type", ["qwen2_vl", "no_such_family", None])
def test_an_unsupported_family(tmp_path, model_type):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": model_type} if model_type else {})
    )
    with pytest.raises(ValueError) as error:
        backbones.open_backbone(str(tmp_path), max_length=64)
    text = str(error.value)
    assert f'model_type "{model_type}" is not supported; supported: llava_onevision' in text


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        backbones.open_backbone(str(tmp_path), max_length=64)
    with pytest.raises(ValueError, match="is not a local folder"):
        backbones.open_backbone(str(tmp_path / "absent"), max_length=64)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("text_config", "use_sliding_window", True),
        ("text_config", "hidden_act", "relu"),
        (
            "text_config",
            "rope_parameters",
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        ),
        ("vision_config", "hidden_act", "relu"),
        (None, "vision_feature_layer", -2),
    ],
)
def test_a_configuration_that_the_code_does_not_do(tmp_path, group, key, value):
    folder = write_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (config[group] if group else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config.json: ({group}\.)?{key}.* supports"):
        backbones.open_backbone(str(folder), max_length=256)
