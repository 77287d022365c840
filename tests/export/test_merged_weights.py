"""Weights of merges in files: values, dtypes, names, memory."""

import copy
import json
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments import merge as recipe
from tests.backbones.checkpoints import tensors
from tests.backbones.tiny_texts import BERT, write_bert
from unime_jax import backbones, config_reader
from unime_jax.backbones.io import tensor_files
from unime_jax.config import MergeConfig
from unime_jax.export import merged_weights

FLOAT32, HALF = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
SAME = "pooler"  # tensors that all parts have alike
WIDE = BERT | {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}


def settings_of(folders, **changes):
    config = recipe.get_config()
    config.models = tuple(map(str, folders))
    config.update(changes)
    return config_reader.read(MergeConfig, config.to_dict())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Four models of one shape; `SAME` is the same in all. Read-only."""
    root = tmp_path_factory.mktemp("models")
    first = write_bert(root / "0", config=WIDE)
    before = tensors(first)
    for number in (1, 2, 3):
        folder = shutil.copytree(first, root / str(number))
        rng = np.random.default_rng(number)
        moved = {
            name: x if SAME in name else x + rng.normal(scale=0.1, size=x.shape).astype(x.dtype)
            for name, x in before.items()
        }
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return [root / str(number) for number in range(4)]


def written(folder, sources, *, dtype=FLOAT32, base="", shard_bytes=10**9, **changes):
    """Tensors of a merge, and its tally."""
    folder.mkdir()
    settings = settings_of(sources, base=str(base), **changes)
    opened = [backbones.open_backbone(str(source), max_length=32) for source in sources]
    start = backbones.open_backbone(str(base), max_length=32) if base else None
    tally = merged_weights.write(
        folder,
        opened[0],
        [merged_weights.open_weights(backbone) for backbone in opened],
        start and merged_weights.open_weights(start),
        settings,
        dtype,
        shard_bytes=shard_bytes,
    )
    return tensors(folder), tally


def test_a_mean_is_rounded_once_and_what_is_equal_is_copied(folders, tmp_path):
    parts = [tensors(folder) for folder in folders[1:]]
    merged, tally = written(tmp_path / "a", folders[1:], weights=(1.0, 1.0, 2.0))
    assert merged.keys() == parts[0].keys()
    for name, x in merged.items():
        values = [part[name].astype(np.float64) for part in parts]
        expected = (values[0] + values[1] + 2 * values[2]) / 4
        np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-7, err_msg=name)
        if SAME in name:
            np.testing.assert_array_equal(x, parts[0][name])
    same = sum(SAME in name for name in merged)
    assert same and (tally.copied, tally.merged) == (same, len(merged) - same)
    rounded, _ = written(tmp_path / "b", folders[1:], weights=(1.0, 1.0, 2.0), dtype=HALF)
    for name, x in rounded.items():
        np.testing.assert_array_equal(x, merged[name].astype(HALF), err_msg=name)


def test_differences_are_dropped_by_the_seed_alone(folders, tmp_path):
    """And half of them in each tensor, the same ones whatever else is merged."""
    base, parts, both = folders[0], folders[1:3], {"method": "dare_ties", "density": 0.5}
    first, _ = written(tmp_path / "a", parts, base=base, **both)
    again, _ = written(tmp_path / "b", parts, base=base, **both)
    other, _ = written(tmp_path / "c", parts, base=base, seed=1, **both)
    name = "encoder.layer.1.output.dense.weight"
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first[name], other[name])
    shape, settings = first[name].shape, settings_of(parts, base=str(base), **both)
    masks = [merged_weights.kept(name, i, shape, settings) for i in range(2)]
    assert all(0.45 < mask.mean() < 0.55 for mask in masks)
    assert 0.45 < (masks[0] == masks[1]).mean() < 0.55
    # Each number that neither keeps is the base's, and no other one is.
    untouched = first[name] == tensors(base)[name]
    np.testing.assert_array_equal(untouched, ~masks[0] & ~masks[1])
    # Of one tensor after another, no part has what another one drops.
    assert not np.array_equal(masks[0], merged_weights.kept("other", 0, shape, settings))


def test_shards_have_an_index_and_memory_is_that_of_a_few_tensors(folders, tmp_path):
    whole, _ = written(tmp_path / "whole", folders[1:], base=folders[0], method="ties")
    largest, total = (f(x.nbytes for x in whole.values()) for f in (max, sum))
    assert total > 12 * largest
    settings = settings_of(folders[1:], base=str(folders[0]), method="ties")
    opened = [backbones.open_backbone(str(folder), max_length=32) for folder in folders]
    base, *parts = map(merged_weights.open_weights, opened)
    target = tmp_path / "shards"
    target.mkdir()
    tracemalloc.start()
    try:
        merged_weights.write(
            target, opened[1], parts, base, settings, FLOAT32, shard_bytes=total // 3
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * largest
    files = tensor_files.checkpoint_files(target)
    assert len(files) >= 3 and set().union(*files.values()) == whole.keys()
    sharded = tensors(target)
    assert all(np.array_equal(sharded[name], x) for name, x in whole.items())


def test_tensors_that_are_not_in_all_parts_or_not_finite(folders, tmp_path):
    """The former are left out, if embeddings do not need them; the latter are refused."""
    headed = shutil.copytree(folders[1], tmp_path / "headed")
    content = tensors(headed) | {"cls.predictions.bias": np.ones(7, np.float32)}
    save_file(content, headed / "model.safetensors", metadata={"format": "pt"})
    merged, tally = written(tmp_path / "a", [headed, folders[2]])
    assert merged.keys() == tensors(folders[1]).keys()
    assert tally.left_out == ("cls.predictions.bias",)

    content = copy.deepcopy(content)
    name = "encoder.layer.0.output.dense.weight"
    content[name][0, 0] = np.inf
    save_file(content, headed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{name} is not finite when merged .* in .*headed"):
        written(tmp_path / "b", [folders[2], headed])
    content[name] = content[name][:-1]
    save_file(content, headed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"(?s)headed do not fit .*wrong shape {name}"):
        written(tmp_path / "c", [folders[2], headed])
    assert not list((tmp_path / "c").iterdir())


def test_an_adapter_is_a_part(folders, tmp_path):
    """Merged into its base without rounding: with its base, it is half of an adapter."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["query"]}
    config |= {"base_model_name_or_path": str(folders[0])}
    rng, deltas, parts = np.random.default_rng(5), {}, {}
    for layer in range(WIDE["num_hidden_layers"]):
        module = f"encoder.layer.{layer}.attention.self.query"
        a, b = rng.normal(size=(2, 96)), rng.normal(size=(96, 2))
        deltas[f"{module}.weight"] = 3 * b @ a
        for part, x in (("A", a), ("B", b)):
            name = f"base_model.model.{module}.lora_{part}.weight"
            parts[name] = np.float32(x)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file(parts, adapter / "adapter_model.safetensors")
    merged, _ = written(tmp_path / "merged", [folders[0], adapter])
    for name, x in tensors(folders[0]).items():
        expected = x + deltas[name] / 2 if name in deltas else x
        np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
