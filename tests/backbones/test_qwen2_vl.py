"""Qwen2-VL folders: settings, names of tensors and full sizes."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    Qwen2VLForConditionalGeneration,
)

from tests.backbones.images import item, noise, picture
from tests.backbones.tiny_families import DECODER
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.models.oracle import load, pair_of
from tests.tables import for_each
from unime_jax import paths
from unime_jax.backbones import Processing, open_backbone
from unime_jax.backbones.io import weights
from unime_jax.backbones.qwen2_vl import qwen2_vl
from unime_jax.backbones.qwen2_vl.dynamic_resolution import smart_resize

RAW = Processing(prompt="raw")


def opened(folder, processing=None, max_length=512):
    return open_backbone(str(folder), max_length=max_length, processing=processing)


# Settings


def edit(folder, file, **changes):
    """Changes keys of a JSON file of the folder; None removes one."""
    content = json.loads((folder / file).read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / file).write_text(json.dumps(kept))


SPELLINGS = {
    "hub": dict(),
    "newer": dict(
        min_pixels=None, max_pixels=None, size={"shortest_edge": 256, "longest_edge": 1024}
    ),
    "both": dict(size={"shortest_edge": 256, "longest_edge": 1024}),
    "half": dict(min_pixels=None, size={"shortest_edge": 256, "longest_edge": 99999}),
    "silent": dict(min_pixels=None, max_pixels=None),
}


@for_each("spelling", SPELLINGS)
def test_pixels_in_every_spelling(tmp_path, spelling):
    """Read as transformers reads them; and overruled so that it does what we do."""
    folder = write_qwen2_vl(tmp_path, min_pixels=256, max_pixels=1024)
    edit(folder, "preprocessor_config.json", **SPELLINGS[spelling])

    def grids(processing):
        preprocess = opened(folder, processing).preprocess
        theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
        for size in ((8, 8), (40, 23), (100, 150)):
            image = noise(*size)
            grid = theirs([image], return_tensors="np")["image_grid_thw"][0]
            ours = smart_resize(image.height, image.width, 8, *preprocess.pixels)
            assert ours == tuple(4 * grid[1:])

    grids(RAW)
    assert opened(folder, RAW).image_processor_changes == {}
    overruled = dataclasses.replace(RAW, pixels=(512, 4096))
    changes = opened(folder, overruled).image_processor_changes
    before = json.loads((folder / "preprocessor_config.json").read_text())
    if spelling != "silent":
        assert set(changes) <= set(before) | {"min_pixels"}  # no third spelling
    edit(folder, "preprocessor_config.json", **changes)
    grids(overruled)
    grids(RAW)


@for_each(
    "file, changes, message",
    [
        ("preprocessor_config.json", {"patch_size": 14}, "patch_size is 14, but it must be 4"),
        ("preprocessor_config.json", {"merge_size": 3}, "merge_size is 3"),
        ("preprocessor_config.json", {"temporal_patch_size": 1}, "temporal_patch_size is 1"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize is False"),
        ("preprocessor_config.json", {"size": {"height": 3}}, "must have 'shortest_edge'"),
        ("preprocessor_config.json", {"min_pixels": 9999}, "pixels are 9999 to 6400"),
        ("config.json", {"rope_scaling": {"type": "default"}}, "mrope_section must be three"),
        (
            "config.json",
            {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}},
            "add up to half a head, 4, and is ",
        ),
        ("config.json", {"hidden_act": "relu"}, "text_config.hidden_act is 'relu'"),
        ("config.json", {"hidden_size": 32}, "vision_config.hidden_size is 16"),
    ],
)
def test_a_folder_that_asks_for_something_else(qwen2_vl_folder, tmp_path, file, changes, message):
    wrong = shutil.copytree(qwen2_vl_folder, tmp_path / "wrong")
    edit(wrong, file, **changes)
    with pytest.raises(ValueError, match=message):
        opened(wrong)


def test_processing_of_the_family_and_of_newer_folders(qwen2_vl_folder, tmp_path):
    # Pixels that are no range.
    with pytest.raises(ValueError, match="processing.pixels are 9 to 3"):
        opened(qwen2_vl_folder, dataclasses.replace(RAW, pixels=(9, 3)))

    # The family's own processing.
    assert opened(qwen2_vl_folder).processing == RAW

    # A newer folder has its image processor in processor_config.json.
    newer = shutil.copytree(qwen2_vl_folder, tmp_path / "newer")
    settings = json.loads((newer / "preprocessor_config.json").read_text())
    (newer / "preprocessor_config.json").unlink()
    (newer / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    one = item("<|image_1|>", picture(60, 41))
    found, expected = (opened(f).preprocess(one).patches for f in (newer, qwen2_vl_folder))
    np.testing.assert_array_equal(found, expected)


# Weights

NAMES = {
    "hub": lambda name: name,
    "nested": lambda name: (
        name
        if name.startswith("lm_head")
        else "model." + name
        if name.startswith("visual")
        else name.replace("model.", "model.language_model.", 1)
    ),
}


@for_each("tied", [True, False])
@for_each("spelling", NAMES)
def test_there_and_back_changes_no_bit(tmp_path, spelling, tied):
    folder = write_qwen2_vl(tmp_path / "given", text=DECODER | {"tie_word_embeddings": tied})
    pair = pair_of(folder)
    given = {NAMES[spelling](n): x for n, x in load_file(folder / weights.SINGLE).items()}
    assert ("lm_head.weight" in given) != tied
    assert ("model.language_model.norm.weight" in given) == (spelling == "nested")
    save_file(given, folder / weights.SINGLE, metadata={"format": "pt"})
    backbone = opened(folder)
    parameters = load(backbone)
    for path, value in parameters.items():
        np.testing.assert_array_equal(value, pair.parameters[path])
    saved = shutil.copytree(
        folder, tmp_path / "saved", ignore=shutil.ignore_patterns("*.safetensors")
    )
    backbone.save_weights(saved, parameters, np.dtype(np.float32))
    found = load_file(saved / weights.SINGLE)
    assert found.keys() == given.keys()
    for name in given:
        assert found[name].shape == given[name].shape, name
        assert found[name].tobytes() == given[name].tobytes(), name
    model, info = Qwen2VLForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values()), info
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, pair.torch_model.state_dict()[name], rtol=0, atol=0)


SIZES = {  # of the published config.json files
    "2b": (dict(hidden_size=1536, intermediate_size=8960, num_attention_heads=12), 2, 151936),
    "7b": (dict(hidden_size=3584, intermediate_size=18944, num_attention_heads=28), 4, 152064),
}
PARAMETERS = {"2b": 2_208_985_600, "7b": 8_291_375_616 - 152064 * 3584}  # without a head


@for_each("size", SIZES)
def test_every_parameter_at_full_size(tmp_path, size):
    """Names and shapes of transformers' model, which only has its language-model head on top."""
    widths, kv_heads, vocabulary = SIZES[size]
    folder = write_qwen2_vl(
        tmp_path,
        patch=14,
        mrope_section=(16, 24, 24),
        vision=dict(embed_dim=1280, depth=32, num_heads=16, mlp_ratio=4),
        text=widths
        | dict(
            num_hidden_layers=28,
            num_key_value_heads=kv_heads,
            vocab_size=vocabulary,
            tie_word_embeddings=size == "2b",
        ),
    )
    backbone = opened(folder)
    model = jax.eval_shape(backbone.make_model, jax.random.key(0))
    attention = model.language_model.layers.self_attn
    assert backbone.dimension == widths["hidden_size"] and attention.head_dim == 128
    assert attention.q_proj.bias is not None and model.language_model.rope_theta == 1e6
    _, shapes = paths.split(model)
    entries = weights.table({path: x.shape for path, x in shapes.items()}, backbone.names)
    ours = {NAMES["nested"](name): entry.shape for entry in entries for name in entry.names}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    theirs = {name: tuple(x.shape) for name, x in model.named_parameters()}
    head = {} if size == "2b" else {"lm_head.weight": (vocabulary, widths["hidden_size"])}
    assert ours | head == theirs
    assert sum(x.size for x in shapes.values()) == PARAMETERS[size]


def test_the_tile_is_what_the_layout_says(qwen2_vl_folder, monkeypatch):
    assert opened(qwen2_vl_folder).layout.patches == qwen2_vl.TILE == 256
    monkeypatch.setattr(qwen2_vl, "TILE", 32)
    backbone = opened(qwen2_vl_folder)
    row = backbone.preprocess(item("x", picture(40, 40)))
    assert backbone.layout.patches == 32 and row.patches.shape == (4, 32, 48)
    monkeypatch.setattr(qwen2_vl, "TILE", 30)
    with pytest.raises(ValueError, match="do not fill a tile of 30"):
        opened(qwen2_vl_folder)
