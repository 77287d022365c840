"""Weights and adapters of Phi-3.5-Vision: fused layers, two names of one table, PEFT."""

import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.backbones.checkpoints import DTYPES, assert_same, targets, tensors, with_adapters
from tests.models.oracle import load
from tests.tables import every_pair, every_value, for_each
from unime_jax import paths, sharding
from unime_jax.backbones import open_backbone
from unime_jax.backbones.io import adapters, merging, weights
from unime_jax.models import lora

FLOAT32 = np.dtype(np.float32)
WTE, EMBED = "model.vision_embed_tokens.wte.weight", "model.embed_tokens.weight"


def opened(folder):
    return open_backbone(str(folder), max_length=4096)


# Weights


def with_tensors(folder, target, given, shards=1):
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    if shards == 1:
        save_file(given, target / "model.safetensors", metadata={"format": "pt"})
        return opened(target)
    weight_map = {name: f"part-{i % shards}.safetensors" for i, name in enumerate(given)}
    for file in set(weight_map.values()):
        part = {name: x for name, x in given.items() if weight_map[name] == file}
        save_file(part, target / file, metadata={"format": "pt"})
    index = json.dumps({"weight_map": weight_map})
    (target / "model.safetensors.index.json").write_text(index)
    return opened(target)


FORMS = DTYPES, (1, 3), (None, WTE, EMBED)


@for_each("dtype, shards, absent", itertools.product(*FORMS), quick=every_pair(*FORMS))
def test_there_and_back_changes_no_bit(phi3_v_folder, tmp_path, dtype, shards, absent):
    """Under the folder's own names: fused layers, and either name of the embeddings or both."""
    given = {n: x.astype(DTYPES[dtype]) for n, x in tensors(phi3_v_folder).items() if n != absent}
    backbone = with_tensors(phi3_v_folder, tmp_path / "given", given, shards)
    mesh = sharding.make_mesh(2, 2, 2) if shards == 3 else None
    parameters = backbone.load(targets(backbone, mesh, DTYPES[dtype]))
    (tmp_path / "saved").mkdir()
    backbone.save_weights(tmp_path / "saved", parameters, DTYPES[dtype])
    assert_same(tensors(tmp_path / "saved"), given)


def test_what_is_saved_has_the_published_names(phi3_v_golden, tmp_path, phi3_v_folder):
    # The recorded checkpoint comes back.
    backbone = opened(phi3_v_golden)
    backbone.save_weights(tmp_path, load(backbone), FLOAT32)
    assert_same(tensors(tmp_path), tensors(phi3_v_golden))

    # Trained embeddings are written under both names.
    (tmp_path := tmp_path / "next").mkdir()
    backbone = opened(phi3_v_folder)
    parameters = {path: 2 * x for path, x in load(backbone).items()}
    backbone.save_weights(tmp_path, parameters, FLOAT32)
    saved, given = tensors(tmp_path), tensors(phi3_v_folder)
    for name in (WTE, EMBED):
        np.testing.assert_array_equal(saved[name], 2 * given[name])
    np.testing.assert_array_equal(saved["lm_head.weight"], given["lm_head.weight"])

    # Shards of fused layers.
    (tmp_path := tmp_path / "next").mkdir()
    backbone = opened(phi3_v_folder)
    weights.save(tmp_path, load(backbone), backbone.names, FLOAT32, shard_bytes=5_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 5
    given = tensors(phi3_v_folder)
    saved = tensors(tmp_path)
    unused = {n for n in given if backbone.names.is_unused(n)}
    assert_same(saved, {n: x for n, x in given.items() if n not in unused | {WTE}})

    # Fused layers are read as their parts
    found, given = load(opened(phi3_v_folder)), tensors(phi3_v_folder)
    layer = "language_model.layers"
    for i in range(2):
        fused = [found[f"{layer}.self_attn.{x}_proj.kernel"][i].T for x in "qkv"]
        assert [len(x) for x in fused] == [16, 8, 8]
        expected = given[f"model.layers.{i}.self_attn.qkv_proj.weight"]
        np.testing.assert_array_equal(np.concatenate(fused), expected)
        fused = [found[f"{layer}.mlp.{x}_proj.kernel"][i].T for x in ("gate", "up")]
        expected = given[f"model.layers.{i}.mlp.gate_up_proj.weight"]
        np.testing.assert_array_equal(np.concatenate(fused), expected)


def test_misfits_are_listed(phi3_v_folder, tmp_path):
    given = tensors(phi3_v_folder)
    given[WTE] = given[WTE] + 1
    given["model.layers.0.self_attn.qkv_proj.weight"] = np.ones((31, 16), np.float32)
    del given["model.layers.1.mlp.gate_up_proj.weight"]
    backbone = with_tensors(phi3_v_folder, tmp_path / "given", given)
    with pytest.raises(ValueError) as error:
        load(backbone)
    text = str(error.value)
    assert "(3 problem(s))" in text
    assert re.search(r"differ +model.embed_tokens.weight and model.*, which are the same", text)
    assert "qkv_proj.weight: (31, 16) in the file, (32, 16) in the model" in text
    assert "missing     model.layers.1.mlp.gate_up_proj.weight (48, 16)" in text


# Adapters


class Tree(torch.nn.Module):
    """Linear layers by the names of a checkpoint's modules, without what is between them."""

    def __init__(self, given):
        super().__init__()
        for name, weight in given.items():
            module, (*path, leaf, _) = self, name.split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            linear = torch.nn.Linear(*weight.shape[::-1], bias=False)
            linear.weight.data = torch.tensor(weight)
            module.add_module(leaf, linear)


def linears(folder):
    return {n: x for n, x in tensors(folder).items() if re.search(r"_proj\.weight$", n)}


VLM2VEC = [
    "qkv_proj",
    "o_proj",
    "gate_up_proj",
    "down_proj",
    "k_proj",
    "q_proj",
    "out_proj",
    "v_proj",
]


KINDS = (False, True), (None, (2, 2, 2))


@for_each("dora, mesh", itertools.product(*KINDS), quick=every_value(*KINDS))
def test_published_adapters_are_merged_as_peft_does(phi3_v_folder, tmp_path, dora, mesh):
    """VLM2Vec's targets; adapters of the layer of the tower that is not read are ignored."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=VLM2VEC, use_dora=dora)
    model = peft.get_peft_model(Tree(linears(phi3_v_folder)), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
            elif "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter" / merging.CONFIG).read_text())
    record["base_model_name_or_path"] = str(phi3_v_folder)
    (tmp_path / "adapter" / merging.CONFIG).write_text(json.dumps(record))
    merged = {n: np.array(x) for n, x in model.merge_and_unload().state_dict().items()}
    assert merged.keys() == linears(phi3_v_folder).keys() and len(merged) == 4 * 2 + 4 * 3

    given = tensors(phi3_v_folder)
    expected = load(with_tensors(phi3_v_folder, tmp_path / "merged", given | merged))
    backbone = opened(tmp_path / "adapter")
    found = backbone.load(targets(backbone, sharding.make_mesh(*mesh) if mesh else None))
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
    (tmp_path / "saved").mkdir()
    backbone.save_weights(tmp_path / "saved", load(backbone), FLOAT32)
    saved = tensors(tmp_path / "saved")
    assert saved.keys() == given.keys()
    for name, x in (given | merged).items():
        np.testing.assert_allclose(saved[name], x, rtol=1e-5, atol=1e-6, err_msg=name)


ALL = r"(language_model|vision_tower)\..*\.(q|k|v|o|down|out|gate|up)_proj"
SOME = r"language_model\..*\.(q|v|up|o)_proj"


@for_each(
    "targets_, dora",
    itertools.product((ALL, SOME), (False, True)),
    quick=[(ALL, False), (SOME, True)],  # a magnitude of parts of which one has no adapter
)
def test_trained_adapters_are_one_per_fused_layer(phi3_v_folder, tmp_path, dora, targets_):
    """Read again by ours and by PEFT, they give the model that was trained."""
    backbone = opened(phi3_v_folder)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    untrained = load(backbone)
    config = lora.LoraConfig(3, 5.0, dora, ((targets_, True), (".*", False)))

    @jax.jit  # one program in the place of one for each operation
    def merged(model):
        lora.merge(model, jnp.float32)
        return model

    graph, parameters = with_adapters(paths.merge(graph, untrained), untrained, config)
    adapters.save(tmp_path / "adapter", backbone, parameters, config, dtype=FLOAT32)
    _, expected = paths.split(merged(paths.merge(graph, parameters)))
    found = load(opened(tmp_path / "adapter"))
    changed = 0
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
        changed += np.abs(np.asarray(found[path]) - np.asarray(untrained[path])).max() > 0.01
    assert changed == (7 + 4 if targets_ == ALL else 4)

    written = load_file(tmp_path / "adapter" / merging.WEIGHTS)
    stem = "base_model.model.model.layers.1."
    ranks = {"self_attn.qkv_proj": 9 if targets_ == ALL else 6, "self_attn.o_proj": 3}
    ranks["mlp.gate_up_proj"] = 6 if targets_ == ALL else 3
    for layer, rank in ranks.items():
        assert len(written[f"{stem}{layer}.lora_A.weight"]) == rank, layer
        assert (f"{stem}{layer}.lora_magnitude_vector" in written) == dora
    expected_file = with_saved(backbone, tmp_path / "whole", expected)
    theirs = peft.PeftModel.from_pretrained(Tree(linears(phi3_v_folder)), tmp_path / "adapter")
    for name, x in theirs.merge_and_unload().state_dict().items():
        np.testing.assert_allclose(x, expected_file[name], rtol=1e-5, atol=1e-6, err_msg=name)


def with_saved(backbone, folder, parameters):
    folder.mkdir()
    backbone.save_weights(folder, parameters, FLOAT32)
    return tensors(folder)
