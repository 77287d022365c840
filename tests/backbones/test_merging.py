"""PEFT adapters merged while the base is read, with PEFT's own merge as the oracle."""

import itertools
import json
import re
import shutil

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.backbones.checkpoints import (
    PAIRS,
    family,
    on_the_hub,
    spellings,
    targets,
    tensors,
    write,
)
from tests.models.oracle import load
from tests.tables import every_value, for_each
from unime_jax import backbones, sharding
from unime_jax.backbones.io import merging, model_folders

FLOAT32 = np.dtype(np.float32)
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
TOWER_LAYERS = {
    "llava_onevision": ("fc1", "out_proj", "linear_1", "patch_embedding"),
    "llava_next": ("fc1", "out_proj", "linear_2"),  # of the layer that is not read, too
    "qwen2_vl": ("qkv", "fc2", "proj"),  # and that of the patches, a convolution
    "qwen3_vl": ("qkv", "linear_fc1", "proj"),  # of blocks and of all mergers
    "qwen2_5_vl": ("qkv", "up_proj", "proj"),
}
KINDS = {
    "lora": dict(),
    "dora": dict(use_dora=True),
    "rslora": dict(use_rslora=True),
    "patterns": dict(
        rank_pattern={"q_proj": 5, r"layers\.1\.self_attn\.o_proj": 2},
        alpha_pattern={"k_proj": 1, "fc1": 11},
    ),
}


def wrapped(pair, **settings):
    """A base with an adapter as after some training, through PEFT."""
    base = AutoModelForImageTextToText.from_pretrained(pair.backbone.folder)
    targets = settings.pop("target_modules", [*TEXT_LAYERS, *TOWER_LAYERS[family(pair)]])
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, **settings)
    model = peft.get_peft_model(base, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
            elif "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def write_adapter(pair, folder, **settings):
    model = wrapped(pair, **settings)
    model.save_pretrained(folder)
    return model


def open_adapter(folder):
    return backbones.open_backbone(str(folder), max_length=4096)


def merged_by_peft(pair, model):
    """PEFT's merged parameters, as ours."""
    state = model.merge_and_unload().state_dict()
    given = {on_the_hub(family(pair), name): x.numpy() for name, x in state.items()}
    return {name: np.array(x) for name, x in given.items()}


def assert_close(found, expected, **kwargs):
    assert found.keys() == expected.keys()
    for name in expected:
        a, b = np.asarray(found[name]), np.asarray(expected[name])
        np.testing.assert_allclose(a, b, err_msg=name, **(dict(rtol=1e-5, atol=1e-6) | kwargs))


@for_each(  # a family has its layers, and all of them have the formulas of all kinds
    "model_type, kind",
    itertools.product(PAIRS, KINDS),
    quick=[
        *((name, "dora") for name in PAIRS),
        *(("llava_onevision", kind) for kind in KINDS if kind != "dora"),
    ],
)
def test_loading_merges_as_peft_does(pairs, model_type, tmp_path, kind):
    """On one device and on a mesh."""
    pair = pairs(model_type)
    model = write_adapter(pair, tmp_path / "adapter", **KINDS[kind])
    backbone = open_adapter(tmp_path / "adapter")
    assert backbone.folder == pair.backbone.folder and backbone.adapter == tmp_path / "adapter"
    expected = load(write(pair, tmp_path / "merged", merged_by_peft(pair, model)))
    for mesh in (None, sharding.make_mesh(2, 2, 2)):
        found = backbone.load(targets(backbone, mesh))
        assert_close(found, expected)
    changed = [p for p in found if np.any(np.asarray(found[p]) != np.asarray(pair.parameters[p]))]
    layers = {path.rsplit(".", 2)[-2] for path in changed}
    chosen = {*TEXT_LAYERS, *TOWER_LAYERS[family(pair)]}
    assert layers == chosen and all(path.endswith(".kernel") for path in changed)


@for_each(
    "model_type, kind",
    itertools.product(PAIRS, ("lora", "dora")),
    quick=every_value(PAIRS, ("lora", "dora")),
)
def test_exporting_a_merged_adapter_is_merge_and_unload(pairs, model_type, tmp_path, kind):
    """Of every tensor in the base's file, those that only PEFT and generation see included."""
    pair = pairs(model_type)
    everything = [*TEXT_LAYERS, *TOWER_LAYERS[family(pair)]]
    if not family(pair).startswith("qwen"):  # whose head is tied to its embeddings
        everything.append("lm_head")
    model = write_adapter(pair, tmp_path / "adapter", target_modules=everything, **KINDS[kind])
    backbone = open_adapter(tmp_path / "adapter")
    (tmp_path / "saved").mkdir()
    backbone.save_weights(tmp_path / "saved", load(backbone), FLOAT32)
    found, base = tensors(tmp_path / "saved"), tensors(backbone.folder)
    assert found.keys() == base.keys()
    published = {backbone.names.published(name): x for name, x in found.items()}
    expected = merged_by_peft(pair, model)
    assert_close(published, {name: expected[name] for name in published})


def test_an_adapter_of_an_absent_tensor_cannot_be_exported(pairs, tmp_path):
    pair = pairs("qwen2_vl")
    write_adapter(pair, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    backbone = open_adapter(tmp_path / "adapter")
    parameters = load(backbone)
    (tmp_path / "saved").mkdir()
    with pytest.raises(ValueError, match="adapter changes lm_head.weight, which the embedder"):
        backbone.save_weights(tmp_path / "saved", parameters, FLOAT32)
    assert not list((tmp_path / "saved").iterdir())


def rewritten(folder, rename):
    """The adapter's file with other names."""
    given = load_file(folder / merging.WEIGHTS)
    save_file({rename(name): x for name, x in given.items()}, folder / merging.WEIGHTS)


@for_each(  # modules are spelled by family, PEFT's own tensors are not
    "model_type, spelling",
    itertools.product(PAIRS, ("hub", "default", "magnitude")),
    quick=[*((n, "hub") for n in PAIRS), ("qwen2_vl", "default"), ("llava_next", "magnitude")],
)
def test_other_spellings_of_an_adapter(pairs, model_type, tmp_path, spelling):
    """Modules before transformers 4.52, and tensors of other versions of PEFT."""
    pair = pairs(model_type)
    write_adapter(pair, tmp_path / "adapter", use_dora=True)
    expected = load(open_adapter(tmp_path / "adapter"))

    def rename(name):
        if spelling == "hub":
            module = name.removeprefix(merging.PREFIX)
            return merging.PREFIX + on_the_hub(family(pair), module)
        if spelling == "default":
            return re.sub(r"\.(lora_[AB])\.", r".\1.default.", name)
        return re.sub("magnitude_vector$", "magnitude_vector.weight", name)

    before = load_file(tmp_path / "adapter" / merging.WEIGHTS).keys()
    rewritten(tmp_path / "adapter", rename)
    renamed = before != load_file(tmp_path / "adapter" / merging.WEIGHTS).keys()
    assert renamed or (spelling == "hub" and family(pair) == "qwen3_vl")  # as new as its modules
    assert_close(load(open_adapter(tmp_path / "adapter")), expected, rtol=0, atol=0)


@for_each("how", ["absolute", "beside", "inside", "working directory", "hub"])
def test_where_the_base_is(pairs, tmp_path, monkeypatch, how):
    pair = pairs("qwen2_vl")
    shutil.copytree(pair.backbone.folder, tmp_path / "base")
    adapter = tmp_path / ("base/adapter" if how == "inside" else "adapter")
    write_adapter(pair, adapter)
    names = {
        "absolute": str(tmp_path / "base"),
        "beside": "../base",
        "inside": "..",
        "working directory": "base",
        "hub": "Qwen/Qwen2-VL-2B-Instruct",
    }
    change(adapter, base_model_name_or_path=names[how], revision="v1")
    if how == "working directory":
        monkeypatch.chdir(tmp_path)
    downloads = []
    monkeypatch.setattr(
        model_folders,
        "snapshot_download",
        lambda name, revision, token, allow_patterns: (
            downloads.append((name, revision)) or tmp_path / "base"
        ),
    )
    model_folders.download.cache_clear()
    backbone = open_adapter(adapter)
    model_folders.download.cache_clear()
    assert backbone.folder.resolve() == (tmp_path / "base").resolve()
    assert backbone.base == (names["hub"] if how == "hub" else str((tmp_path / "base").resolve()))
    assert downloads == ([(names["hub"], "v1")] if how == "hub" else [])


def change(folder, **settings):
    config = json.loads((folder / merging.CONFIG).read_text())
    (folder / merging.CONFIG).write_text(json.dumps(config | settings))


@pytest.fixture(scope="module")
def qwen(pairs, tmp_path_factory):
    pair, adapter = pairs("qwen2_vl"), tmp_path_factory.mktemp("errors") / "adapter"
    write_adapter(pair, adapter, use_dora=True)
    return pair, adapter


@pytest.fixture
def adapter(qwen, tmp_path):
    return shutil.copytree(qwen[1], tmp_path / "adapter")


@for_each(
    ("key", "value"),
    [
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["embed_tokens"]),
        ("fan_in_fan_out", True),
        ("peft_type", "LOHA"),
        ("init_lora_weights", "pissa_niter_4"),
        ("layer_replication", [[0, 1]]),
        ("target_parameters", ["weight"]),
        ("trainable_token_indices", [3]),
    ],
)
def test_what_is_not_done_is_an_error_when_the_folder_is_opened(qwen, tmp_path, key, value):
    adapter = shutil.copytree(qwen[1], tmp_path / "adapter")
    change(adapter, **{key: value})
    with pytest.raises(ValueError, match=rf"adapter_config.json: {key}=.* not supported; merge"):
        open_adapter(adapter)


def test_all_misfits_in_one_table(adapter, tmp_path, qwen):
    """With those of the base."""
    pair, _ = qwen
    given = dict(spellings(pair)["saved"]) | {"extra.weight": np.ones(3, np.float32)}
    write(pair, tmp_path / "base", given)
    change(adapter, base_model_name_or_path=str(tmp_path / "base"))
    found = load_file(adapter / merging.WEIGHTS)
    stem = "base_model.model.model.language_model.layers.0.self_attn."
    del found[f"{stem}q_proj.lora_A.weight"]
    del found[f"{stem}v_proj.lora_magnitude_vector"]
    found[f"{stem}k_proj.lora_B.weight"] = np.ones((5, 3), np.float32)
    found[f"{stem}o_proj.lora_A.weight"] = np.ones((3, 16), np.int32)
    found[f"{stem}rotary.lora_A.weight"] = found[f"{stem}rotary.lora_B.weight"] = np.ones((3, 3))
    found["base_model.model.embed.lora_embedding_A"] = np.ones((3, 3))
    found["base_model.model.lm_head.lora_A.weight"] = np.ones((3, 16), np.float32)
    found["base_model.model.lm_head.lora_B.weight"] = np.ones((448, 3), np.float32)
    save_file(found, adapter / merging.WEIGHTS)
    with pytest.raises(ValueError) as error:
        load(open_adapter(adapter))
    head, *lines = str(error.value).splitlines()
    assert f"{tmp_path / 'base'} and {adapter} do not fit config.json (7 problem(s))" in head
    stem = stem.removeprefix(merging.PREFIX)
    assert sorted(line.strip() for line in lines) == sorted(
        [
            "left over   extra.weight",
            f"adapter     {stem}q_proj.lora_A is missing",
            f"adapter     {stem}v_proj.lora_magnitude_vector is missing",
            f"adapter     {stem}k_proj.lora_B: (5, 3) in the file, (8, 3) expected",
            f"adapter     {stem}o_proj.lora_A: int32 is no float",
            f"adapter     {stem}rotary: the model has no such linear layer",
            "adapter     base_model.model.embed.lora_embedding_A: no part of a LoRA or DoRA",
        ]
    )


def test_adapters_of_no_use_are_named(adapter, tmp_path):
    # Magnitudes need use_dora.
    change(adapter, use_dora=False)
    with pytest.raises(ValueError, match="lora_magnitude_vector: unexpected, as use_dora is fal"):
        load(open_adapter(adapter))

    # Pickled adapters are not read.
    change(adapter, use_dora=True)
    (adapter / merging.WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"(?s)no adapter_model.safetensors; pickled.*save_pret"):
        open_adapter(adapter)

    # A base that is no base.
    (adapter / "adapter_model.bin").rename(adapter / merging.WEIGHTS)
    change(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="base_model_name_or_path is missing"):
        open_adapter(adapter)
    change(adapter, base_model_name_or_path="no/such-model")
    with pytest.raises(ValueError, match=r'adapter_config.json names its base.*"no/such-model"'):
        open_adapter(adapter)
    shutil.copytree(adapter, tmp_path / "second")
    change(adapter, base_model_name_or_path=str(tmp_path / "second"))
    with pytest.raises(ValueError, match="is itself an adapter"):
        open_adapter(adapter)
