"""Models without their heads, and all other spellings of the same tensors, in every family."""

import json
import re
import shutil

import jax
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, BertForSequenceClassification

from tests.backbones.checkpoints import DTYPES, WRITE, assert_same, tensors
from tests.models.oracle import load
from tests.tables import for_each
from unime_jax import backbones, paths
from unime_jax.backbones.io import merging, names
from unime_jax.backbones.io.names import table

FLOAT32 = DTYPES["float32"]


IN_TRANSFORMERS = ("llava_onevision", "llava_next", "qwen2_vl", "qwen3_vl", "bert")


def opened(folder):
    return backbones.open_backbone(str(folder), max_length=64)


def entries(backbone):
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    return table({path: x.shape for path, x in shapes.items()}, backbone.names)


def with_tensors(folder, target, given):
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(given, target / "model.safetensors", metadata={"format": "pt"})
    return opened(target)


def saved_again(backbone, parameters, folder):
    folder.mkdir()
    backbone.save_weights(folder, parameters, FLOAT32)
    return tensors(folder)


@for_each("family", WRITE)
def test_every_models_modules_lead_back_to_the_published_names(folders, family):
    """So that no spelling of one tensor is another's."""
    known = opened(folders(family)).names
    for name in tensors(folders(family)):
        published = known.published(name)
        assert known.published(published) == published
        for model in known.modules:
            module = names.module_in(model, published)
            if module is not None and published.endswith(".weight"):
                assert known.published(f"{module}.weight") == published


@for_each("family", WRITE)
def test_every_spelling_is_read_and_kept(folders, tmp_path, family):
    """In the models that have all that the embedder uses."""
    whole = opened(folders(family))
    expected, given = load(whole), tensors(folders(family))
    used = {name for entry in entries(whole) for name in entry.names}
    for number, model in enumerate(whole.names.modules):
        spelled = {}
        for name, tensor in given.items():
            published = whole.names.published(name)
            module = names.module_in(model, published)
            if module is not None and name not in whole.names.shared:
                leaf = published.rpartition(".")[2]
                spelled[f"{module}.{leaf}" if module else leaf] = tensor
            elif published in used and name not in whole.names.shared:
                break  # the language model alone
        else:
            backbone = with_tensors(folders(family), tmp_path / str(number), spelled)
            found = load(backbone)
            assert_same(found, expected)
            if not backbone.convert:
                assert_same(saved_again(backbone, found, tmp_path / f"saved-{number}"), spelled)


@for_each("family", IN_TRANSFORMERS)
def test_what_automodel_saves(folders, tmp_path, family):
    """It is read, and what is written then, transformers reads."""
    expected = load(opened(folders(family)))
    shutil.copytree(folders(family), tmp_path / "given")
    (tmp_path / "given" / "model.safetensors").unlink()
    AutoModel.from_pretrained(folders(family)).save_pretrained(tmp_path / "given")
    given = tensors(tmp_path / "given")
    assert not any("head" in name or "cls" in name for name in given)
    backbone = opened(tmp_path / "given")
    assert_same(load(backbone), expected)
    doubled = jax.jit(lambda xs: jax.tree.map(lambda x: 2 * x, xs))(expected)
    saved = saved_again(backbone, doubled, tmp_path / "saved")
    assert saved.keys() == given.keys()
    for file in ("config.json", "modules.json"):
        if (tmp_path / "given" / file).exists():
            shutil.copyfile(tmp_path / "given" / file, tmp_path / "saved" / file)
    model, info = AutoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values()), info
    before = AutoModel.from_pretrained(tmp_path / "given").state_dict()
    for name, x in model.state_dict().items():
        unused = name.startswith("pooler") or backbone.names.is_unused(
            backbone.names.published(name)
        )
        torch.testing.assert_close(x, before[name] * (1 if unused else 2), rtol=0, atol=0)


def test_a_classifiers_head_is_carried(folders, tmp_path):
    expected = load(opened(folders("bert")))
    shutil.copytree(folders("bert"), tmp_path / "given")
    model = BertForSequenceClassification.from_pretrained(folders("bert"))
    model.save_pretrained(tmp_path / "given")
    backbone = opened(tmp_path / "given")
    assert_same(load(backbone), expected)
    saved = saved_again(backbone, load(backbone), tmp_path / "saved")
    assert_same(saved, tensors(tmp_path / "given"))
    assert "classifier.weight" in saved and "bert.pooler.dense.weight" in saved


@for_each("family", IN_TRANSFORMERS)
def test_an_adapter_trained_on_automodel(folders, tmp_path, family):
    """Merged as PEFT does; of the decoder and of the tower."""
    model = AutoModel.from_pretrained(folders(family))
    model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules="all-linear"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    written = load_file(tmp_path / "adapter" / merging.WEIGHTS)
    stem = "encoder.layer" if family == "bert" else "language_model.layers"
    assert any(name.startswith(f"{merging.PREFIX}{stem}.") for name in written)
    shutil.copytree(folders(family), tmp_path / "merged")
    (tmp_path / "merged" / "model.safetensors").unlink()
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    found, expected = load(opened(tmp_path / "adapter")), load(opened(tmp_path / "merged"))
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


@for_each("family", ["llava_qwen", "nvembed", "phi3_v"])
def test_an_adapter_with_and_without_a_head(folders, tmp_path, family):
    """Of models whose code is not run, the names follow from its attributes."""
    backbone = opened(folders(family))
    random = np.random.default_rng(0)
    layers = [entry for entry in entries(backbone) if entry.transposed and entry.stacked]
    results = []
    for number, model in enumerate(backbone.names.modules):
        written = {}
        for name in sorted({name for entry in layers for name in entry.names}):
            if (module := names.module_in(model, name)) is None:
                continue
            out, *fan_in = next(e.shape for e in layers if name in e.names)
            a, b = random.normal(size=(8, *fan_in)), random.normal(size=(out, 8))
            for part, x in (("lora_A", a), ("lora_B", b)):
                written[f"{merging.PREFIX}{module}.{part}.weight"] = x.astype(np.float32)
        random = np.random.default_rng(0)
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(written, folder / merging.WEIGHTS)
        targets = sorted({re.split(r"\.\d+\.", module)[-1] for module in modules_of(written)})
        write_config(folder, folders(family), targets)
        if len(written) == 2 * len({name for entry in layers for name in entry.names}):
            results.append(load(opened(folder)))
        else:
            load(opened(folder))  # the language model alone
    assert len(results) > 1
    for found in results[1:]:
        assert_same(found, results[0])


def modules_of(written):
    return {name.removeprefix(merging.PREFIX).rpartition(".lora_")[0] for name in written}


def write_config(folder, base, targets):
    content = {
        "base_model_name_or_path": str(base),
        "peft_type": "LORA",
        "target_modules": targets,
    }
    (folder / merging.CONFIG).write_text(json.dumps(content))


@for_each("family", WRITE)
def test_two_spellings_of_one_tensor_are_an_error(folders, tmp_path, family):
    backbone, given = opened(folders(family)), tensors(folders(family))
    name = next(name for name in given if re.search(r"layers?\.0\..*weight", name))
    published = backbone.names.published(name)
    spellings = {names.module_in(model, published) for model in backbone.names.modules}
    other = next(f"{x}.weight" for x in sorted(filter(None, spellings)) if f"{x}.weight" != name)
    doubled = with_tensors(folders(family), tmp_path / "x", given | {other: given[name] + 1})
    with pytest.raises(ValueError, match=rf"twice +{re.escape(published)}: also as "):
        load(doubled)
