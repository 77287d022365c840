"""An adapter's targets against its file, with PEFT's own choice of modules as the oracle."""

import json
import re
import shutil

import numpy as np
import peft
import pytest
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText

from tests.backbones.checkpoints import assert_same, family, tensors
from tests.backbones.tiny_texts import write_bert
from tests.models.oracle import load
from tests.tables import for_each
from unime_jax import backbones
from unime_jax.backbones.io import merging
from unime_jax.backbones.io.peft_targets import is_target

MODULES = (
    "model.language_model.layers.0.self_attn.q_proj",
    "model.language_model.layers.1.self_attn.q_proj",
    "model.language_model.layers.11.mlp.down_proj",
    "model.vision_tower.encoder.layers.1.self_attn.q_proj",
    "model.vision_tower.embeddings.patch_embedding",
    "model.visual.blocks.1.attn.qkv",
    "model.layers.1.experts.0.up_proj",
    "language_model.layers.1.self_attn.xq_proj",
    "layers.1.self_attn.q_proj",
    "lm_head",
    "q_proj",
)
CONFIGS = (
    dict(target_modules=["q_proj"]),
    dict(target_modules=["self_attn.q_proj", "lm_head", "up_proj"]),
    dict(target_modules=["model.language_model.layers.1.self_attn.q_proj"]),
    dict(target_modules=r".*language_model.*\.(q|down)_proj"),
    dict(target_modules=r"model\.language_model\.layers\.(0|1)\..*"),
    dict(target_modules=["q_proj", "qkv"], layers_to_transform=1),
    dict(target_modules=["q_proj", "qkv", "down_proj"], layers_to_transform=[0, 11]),
    dict(target_modules=["q_proj"], layers_to_transform=[]),
    dict(target_modules=["q_proj", "qkv"], layers_to_transform=[1], layers_pattern="blocks"),
    dict(
        target_modules=["q_proj", "qkv"],
        layers_to_transform=[1],
        layers_pattern=["blocks", "layers"],
    ),
    dict(
        target_modules=["model.language_model.layers.1.self_attn.q_proj", "down_proj"],
        layers_to_transform=[0],
    ),
    dict(target_modules=["q_proj"], exclude_modules=["model.vision_tower.encoder"]),
    dict(target_modules=["q_proj"], exclude_modules=r".*vision_tower.*"),
    dict(target_modules=["q_proj", "lm_head"], exclude_modules=["lm_head", "layers.1.q_proj"]),
)


@for_each("settings", CONFIGS)
def test_modules_are_chosen_as_peft_does(settings):
    config = peft.LoraConfig(**settings)
    for module in MODULES:
        expected = bool(check_target_module_exists(config, module))
        assert is_target(settings, module, linear=True) == expected, module


FAMILIES = ("llava_next", "qwen2_vl")


def write_adapter(base, folder, kind=AutoModelForImageTextToText, **settings):
    """An adapter as PEFT initialises it, but with a B that changes something."""
    model = kind.from_pretrained(base)
    peft.get_peft_model(model, peft.LoraConfig(**settings)).save_pretrained(folder)
    rewrite(folder, lambda x: {n: x[n] + 0.01 if "lora_B" in n else x[n] for n in x})
    return folder


def rewrite(folder, change):
    given = load_file(folder / merging.WEIGHTS)
    save_file(change(given), folder / merging.WEIGHTS)


def configure(folder, **changes):
    """Changes to adapter_config.json; ... leaves a key out."""
    config = json.loads((folder / merging.CONFIG).read_text()) | changes
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / merging.CONFIG).write_text(json.dumps(config))


def opened(folder):
    return backbones.open_backbone(str(folder), max_length=64)


def misfits(folder):
    with pytest.raises(ValueError, match="do not fit config.json") as error:
        load(opened(folder))
    return [line.strip() for line in str(error.value).splitlines()[1:]]


@for_each("model_type", FAMILIES)
def test_all_linear_is_what_peft_takes_it_for(pairs, model_type):
    """Of a model with a head: all but that, and no convolution or embedding."""
    pair = pairs(model_type)
    model = AutoModelForImageTextToText.from_pretrained(pair.backbone.folder)
    config = peft.LoraConfig(target_modules="all-linear")
    taken = _maybe_include_all_linear_layers(config, model).target_modules
    assert "lm_head" not in taken and not any("patch_embed" in name for name in taken)
    linears = {n for n, x in model.named_modules() if type(x).__name__ == "Linear"} - {"lm_head"}
    assert taken == linears


@for_each("model_type", FAMILIES)
@for_each("targets", ["all-linear", ["q_proj", "qkv", "fc1"]])
def test_a_whole_adapter_loads_and_half_of_it_does_not(pairs, model_type, tmp_path, targets):
    pair = pairs(model_type)
    folder = write_adapter(pair.backbone.folder, tmp_path / "adapter", target_modules=targets)
    configure(folder, target_modules=targets)
    load(opened(folder))
    kept = [n for n in load_file(folder / merging.WEIGHTS) if ".layers.1." not in n]
    gone = {
        name.removeprefix(merging.PREFIX).rpartition(".lora_")[0]
        for name in load_file(folder / merging.WEIGHTS)
        if name not in kept
    }
    rewrite(folder, lambda x: {name: x[name] for name in kept})
    assert misfits(folder) == unordered(
        f"adapter     {module}: target_modules names it, but adapter_model.safetensors has no"
        " tensors of it"
        for module in gone
    )


class unordered(list):  # noqa: N801
    """Equal to a list of the same lines in another order."""

    def __eq__(self, other):
        return sorted(self) == sorted(other)


@for_each("model_type", FAMILIES)
def test_what_an_adapter_of_one_part_must_have(pairs, model_type, tmp_path):
    """Its tensors alone were left out of the file; in the names of a headless model, too."""
    pair = pairs(model_type)
    targets = ["q_proj", "qkv", "fc1"]
    for kind in (AutoModelForImageTextToText, AutoModel):
        folder = tmp_path / kind.__name__
        write_adapter(pair.backbone.folder, folder, kind, target_modules=targets)
        rewrite(folder, lambda x: {n: x[n] for n in x if "language_model" in n})
        lines = misfits(folder)
        assert lines and all("vis" in line and "names it, but" in line for line in lines)

    # An adapter of the language model alone. Its targets are called as some in the tower,
    # which it has never seen.
    pair = pairs(model_type)
    folder = write_adapter(
        pair.backbone.folder, tmp_path / "adapter", target_modules=["q_proj", "fc1"]
    )
    stem = "model.language_model."
    rewrite(folder, lambda x: {n.replace(stem, ""): x[n] for n in x if stem in n})
    found = load(opened(folder))
    changed = {path for path in found if not np.array_equal(found[path], pair.parameters[path])}
    assert changed == {"language_model.layers.self_attn.q_proj.kernel"}
    rewrite(folder, lambda x: {n: x[n] for n in x if ".layers.1." not in n})
    assert [line.split()[1] for line in misfits(folder)] == ["layers.1.self_attn.q_proj:"]


@for_each("model_type", FAMILIES)
def test_targets_by_the_names_of_older_versions(pairs, model_type, tmp_path):
    """A pattern is of whole names, which were others where the adapter was trained."""
    pair = pairs(model_type)
    folder = write_adapter(
        pair.backbone.folder, tmp_path / "adapter", target_modules=r".*language_model.*\.q_proj"
    )
    expected = load(opened(folder))
    old = "language_model.model." if family(pair) == "llava_next" else "model."
    rewrite(folder, lambda x: {n.replace("model.language_model.", old): x[n] for n in x})
    pattern = rf"{old.replace('.', chr(92) + '.')}layers\.\d+\.self_attn\.q_proj"
    configure(folder, target_modules=pattern)
    assert_same(load(opened(folder)), expected)


@for_each("model_type", FAMILIES)
def test_layers_that_the_embedder_does_not_use_may_be_missing(pairs, model_type, tmp_path):
    """They change no embedding; PEFT leaves them as they are, too."""
    pair = pairs(model_type)
    folder = write_adapter(
        pair.backbone.folder, tmp_path / "adapter", target_modules=["o_proj", "fc1", "lm_head"]
    )
    expected = load(opened(folder))
    whole = load_file(folder / merging.WEIGHTS)
    cut = re.compile(r"lm_head\.lora_B|tower.*\.layers\.2\..*fc1\.lora_B")
    rewrite(folder, lambda x: {n: x[n][1:] if cut.search(n) else x[n] for n in x})
    if "lm_head.weight" in tensors(pair.backbone.folder):  # what is not tied must fit
        assert any(line.startswith("adapter     lm_head.lora_B: (") for line in misfits(folder))
    if any(".layers.2." in name and cut.search(name) for name in whole):
        assert any(".layers.2.mlp.fc1.lora_B: (" in line for line in misfits(folder))
    rewrite(folder, lambda x: whole)
    rewrite(folder, lambda x: {n: x[n] for n in x if "lm_head" not in n and ".layers.2." not in n})
    assert_same(load(opened(folder)), expected)


@for_each("model_type", FAMILIES)
def test_tensors_of_no_target_and_targets_that_nobody_knows(pairs, model_type, tmp_path):
    # PEFT would leave tensors of no target out; the model would be another one there.
    pair = pairs(model_type)
    folder = write_adapter(
        pair.backbone.folder, tmp_path / "adapter", target_modules=["o_proj", "up_proj"]
    )
    configure(folder, exclude_modules=["up_proj"])
    lines = misfits(folder)
    assert len(lines) == 2 and all(
        line.endswith("up_proj: in adapter_model.safetensors, but target_modules does not name it")
        for line in lines
    )
    configure(folder, exclude_modules=None, layers_to_transform=[0])
    assert {line.split()[1] for line in misfits(folder)} == {
        f"model.language_model.layers.1.{name}:" for name in ("self_attn.o_proj", "mlp.up_proj")
    }

    # Without target_modules nobody knows the targets.
    (tmp_path := tmp_path / "unknown").mkdir()
    folder = write_adapter(pair.backbone.folder, tmp_path / "adapter", target_modules=["o_proj"])
    configure(folder, target_modules=None)
    with pytest.raises(ValueError, match="target_modules is missing, so that it is not known"):
        opened(folder)


@pytest.fixture
def bert_adapter(tmp_path):
    base = write_bert(tmp_path / "base")
    settings = dict(target_modules=["query", "value"])
    return write_adapter(base, tmp_path / "adapter", AutoModel, **settings)


def test_what_the_configuration_leaves_out_is_as_in_peft(bert_adapter):
    """Rank, alpha, and the layers of BERT."""
    expected = load(opened(bert_adapter))
    defaults = peft.LoraConfig()
    assert (defaults.r, defaults.lora_alpha) == (8, 8)
    configure(bert_adapter, r=..., lora_alpha=..., target_modules=...)
    assert_same(load(opened(bert_adapter)), expected)
    base = AutoModel.from_pretrained(bert_adapter.parent / "base")
    model = peft.PeftModel.from_pretrained(base, bert_adapter).merge_and_unload()
    query = model.encoder.layer[0].attention.self.query.weight.detach().numpy()
    found = load(opened(bert_adapter))["encoder.layer.attention.self.query.kernel"][0].T
    np.testing.assert_allclose(found, query, rtol=1e-5, atol=1e-6)


def test_adapters_around_a_sentence_transformer_and_ranks_that_are_none(bert_adapter):
    # Names may have a sentence-transformer around them.
    expected = load(opened(bert_adapter))
    stem = before = merging.PREFIX
    for outer in ("0.model.", "0.auto_model."):
        after = stem + outer
        rewrite(bert_adapter, lambda x: {n.replace(before, after): x[n] for n in x})  # noqa: B023
        assert_same(load(opened(bert_adapter)), expected)
        before = after

    # Ranks that are none are refused.
    for changes in ({"r": 0}, {"r": None}, {"r": 8, "lora_alpha": "8"}):
        configure(bert_adapter, **changes)
        with pytest.raises(ValueError, match=r"adapter_config.json: .* has rank .* and lora_alpha"):
            opened(bert_adapter)


def test_a_part_under_two_names_and_an_adapter_without_any_tensor(bert_adapter):
    name = f"{merging.PREFIX}encoder.layer.0.attention.self.query.lora_B"
    other = f"{merging.PREFIX}bert.encoder.layer.0.attention.self.query.lora_B.weight"
    rewrite(bert_adapter, lambda x: x | {other: x[f"{name}.weight"] + 1})
    assert [line for line in misfits(bert_adapter) if "twice" in line]
    rewrite(
        bert_adapter,
        lambda x: (
            {n: x[n] for n in x if n != other} | {f"{name}.default.weight": x[f"{name}.weight"] + 1}
        ),
    )
    assert [line for line in misfits(bert_adapter) if "twice" in line]

    # Without any tensor.
    rewrite(bert_adapter, lambda x: {})
    with pytest.raises(ValueError, match=r"no tensors of a LoRA or DoRA \(it has 0 others\)"):
        opened(bert_adapter)


@for_each("part", ["lora_A", "lora_B", "lora_magnitude_vector"])
def test_parts_of_single_layers_that_are_missing(tmp_path, part):
    base = write_bert(tmp_path / "base")
    folder = write_adapter(
        base, tmp_path / "adapter", AutoModel, target_modules=["key"], use_dora=True
    )
    stem = "encoder.layer.1.attention.self.key"
    rewrite(folder, lambda x: {n: x[n] for n in x if f"{stem}.{part}" not in n})
    assert misfits(folder) == [f"adapter     {stem}.{part} is missing"]


def test_an_adapter_of_embeddings_is_refused_once(tmp_path):
    base = write_bert(tmp_path / "base")
    folder = write_adapter(
        base, tmp_path / "adapter", AutoModel, target_modules=["key", "word_embeddings"]
    )
    lines = misfits(folder)
    assert len(lines) == 2 and all("lora_embedding_" in line for line in lines)
    shutil.copytree(folder, tmp_path / "half")
    rewrite(tmp_path / "half", lambda x: {n: x[n] for n in x if "embedding" not in n})
    assert [line.split()[1] for line in misfits(tmp_path / "half")] == [
        "embeddings.word_embeddings:"
    ]
