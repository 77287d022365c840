"""Adapters written in PEFT's format, with PEFT's forward pass as the oracle."""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText

from tests.backbones.checkpoints import PAIRS, with_adapters
from tests.float32 import assert_same_rows
from tests.models.oracle import EXACT, load, packed, picture, torch_hidden
from tests.tables import for_each
from unime_jax import backbones, paths
from unime_jax.backbones.io import adapters, merging
from unime_jax.batch import Item, Media
from unime_jax.models import lora

FLOAT32 = np.dtype(np.float32)


RULES = (  # k_proj of the decoder and the tower, q_proj of the decoder alone
    (r".*\.(up_proj|k_proj|fc1|qkv|linear_2|patch_embedding|patch_embed\.proj)", True),
    (r"language_model\..*\.q_proj", True),
    (".*", False),
)


def trained(pair, *, dora):
    """Our model with adapters as after some training, and its configuration."""
    config = lora.LoraConfig(3, 5.0, dora, RULES)
    return *with_adapters(pair.model, pair.parameters, config), config


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A model with adapters, as ours, as a folder, and as PEFT reads that folder."""

    graph: Any
    parameters: paths.Parameters
    folder: pathlib.Path
    peft_model: peft.PeftModel


# Names are a family's own, and DoRA has all that LoRA has: one family shows what is left out.
each_kind = for_each(
    "model_type, dora",
    itertools.product(PAIRS, (False, True)),
    quick=[("qwen2_vl", False), *((name, True) for name in PAIRS)],
)


@pytest.fixture(scope="module")
def adapted(pairs, tmp_path_factory):
    def make(model_type, dora):
        pair, folder = pairs(model_type), tmp_path_factory.mktemp(model_type) / "adapter"
        graph, parameters, config = trained(pair, dora=dora)
        adapters.save(folder, pair.backbone, parameters, config, dtype=FLOAT32)
        base = AutoModelForImageTextToText.from_pretrained(pair.backbone.folder)
        model = peft.PeftModel.from_pretrained(base, folder).eval()
        return Adapted(graph, parameters, folder, model)

    return functools.cache(make)


@each_kind
def test_peft_loads_what_is_written(adapted, model_type, dora):
    """Nothing missing, nothing unexpected, nothing else adapted."""
    case = adapted(model_type, dora)
    parameters = case.parameters
    assert not list(case.folder.parent.glob("*.partial"))
    own = peft.get_peft_model_state_dict(case.peft_model)
    written = load_file(case.folder / merging.WEIGHTS)
    assert own.keys() == written.keys()
    for name, x in written.items():
        np.testing.assert_array_equal(own[name].numpy(), x)
    count = sum(
        parameters[path].shape[0] if "layers" in path or "blocks" in path else 1
        for path in parameters
        if path.endswith(".lora_a")
    )
    assert len(written) == count * (3 if dora else 2)


# One tower of layers and one of blocks: the adapted layer is the same one in all families, and
# which layers have adapters the test above compares for each.
@for_each("model_type", PAIRS, quick=("llava_onevision", "qwen3_vl"))
def test_hidden_states_are_pefts(pairs, adapted, model_type):
    pair, case = pairs(model_type), adapted(model_type, True)
    items = [
        Item("A plain text."),
        Item("<|image_1|>\nWhat is it?", (Media("a.png", picture(40, 30, seed=3)),)),
    ]
    inputs, rows = packed(pair, items, 128, 16)
    ours = paths.merge(case.graph, case.parameters)
    hidden = np.asarray(jax.jit(lambda model, x: model.hidden_states(x, EXACT))(ours, inputs))
    in_torch = dataclasses.replace(pair, torch_model=case.peft_model.base_model.model)
    for item, row in zip(items, rows, strict=True):
        theirs = torch_hidden(in_torch, item)
        assert np.abs(theirs - torch_hidden(pair, item)).max() > 0.05
        assert_same_rows(hidden[row, : len(theirs)], theirs)
        a, b = hidden[row, len(theirs) - 1], theirs[-1]
        np.testing.assert_allclose(a / np.linalg.norm(a), b / np.linalg.norm(b), atol=1e-5)


@each_kind
def test_written_and_read_again_is_the_merged_model(adapted, model_type, dora):
    case = adapted(model_type, dora)

    @jax.jit
    def merged(model):
        lora.merge(model, jnp.float32)
        return model

    backbone = backbones.open_backbone(str(case.folder), max_length=4096)
    model = merged(paths.merge(case.graph, case.parameters))
    found, (_, expected) = load(backbone), paths.split(model)
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_inputs_are_made_as_in_training(pairs, tmp_path):
    """Not as the base's would be."""
    pair = pairs("qwen2_vl")
    processing = dataclasses.replace(
        pair.backbone.processing,
        resolution="low",
        grid_positions=not pair.backbone.processing.grid_positions,
    )
    trained_on = backbones.open_backbone(
        str(pair.backbone.folder), max_length=4096, processing=processing
    )
    _, parameters, config = trained(pair, dora=False)
    adapters.save(tmp_path / "adapter", trained_on, parameters, config, dtype=FLOAT32)
    opened = backbones.open_backbone(str(tmp_path / "adapter"), max_length=4096)
    assert opened.processing == processing != pair.backbone.processing
    assert opened.base == str(pair.backbone.folder.resolve()) == trained_on.base


def test_adapters_in_half_precision_replace_a_folder_and_what_cannot_be_one(pairs, tmp_path):
    pair = pairs("qwen2_vl")
    _, parameters, config = trained(pair, dora=True)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "stale.txt").write_text("from before")
    adapters.save(
        tmp_path / "adapter", pair.backbone, parameters, config, dtype=np.dtype(jnp.bfloat16)
    )
    written = load_file(tmp_path / "adapter" / merging.WEIGHTS)
    assert {x.dtype for x in written.values()} == {np.dtype(jnp.bfloat16)}
    assert not (tmp_path / "adapter" / "stale.txt").exists()
    record = json.loads((tmp_path / "adapter" / merging.CONFIG).read_text())
    assert record["use_dora"] and record["r"] == 3 and record["lora_alpha"] == 5.0

    # What cannot be an adapter.
    with pytest.raises(ValueError, match="has no adapters to write"):
        adapters.save(tmp_path / "a", pair.backbone, pair.parameters, config, dtype=FLOAT32)
    on_another = dataclasses.replace(pair.backbone, adapter=tmp_path / "first")
    with pytest.raises(ValueError, match=r"adapter .*first merged, which PEFT cannot load"):
        adapters.save(tmp_path / "a", on_another, parameters, config, dtype=FLOAT32)
    assert not (tmp_path / "a").exists()


def test_selections_match_their_modules_only():
    modules = ["m.layers.0.q", "m.layers.1.q", "m.layers.10.q", "m.layers.0.k", "proj", "v.2.x"]
    pattern = re.compile(adapters.selection(modules))
    others = ["m.layers.2.q", "m.layers.1.k", "m.layers.100.q", "xproj", "m_layers.0.q", "v.2.xx"]
    assert all(pattern.fullmatch(name) for name in modules)
    assert not any(pattern.fullmatch(name) for name in others)
    stack = [f"model.layers.{i}.{x}_proj" for i in range(3) for x in "qkv"]
    assert adapters.selection(stack) == r"model\.layers\.(0|1|2)(\.q_proj|\.k_proj|\.v_proj)"
