"""Qwen2.5-VL folders: every spelling of config.json, what it must not say, and full sizes."""

import json
import pathlib

import jax
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.backbones.tiny_qwen import write_qwen2_5_vl
from tests.jobs.tiny_run import ROOT
from tests.tables import for_each
from unime_jax import paths
from unime_jax.backbones import open_backbone
from unime_jax.backbones.io import weights

MODELS = ROOT / "experiments" / "plans" / "models"
# Of the published config.json: parameters without a head, width, whether the head is tied.
SIZES = {
    "qwen2_5_vl_3b": (3_754_622_976, 2048, True),
    "qwen2_5_vl_7b": (8_292_166_656 - 152064 * 3584, 3584, False),
}


def opened(folder: pathlib.Path):
    return open_backbone(str(folder), max_length=512)


def edit(folder: pathlib.Path, **changes):
    """config.json with other keys; None removes one."""
    content = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def test_spellings_of_the_configuration(tmp_path):
    """Flat as published, nested as transformers 4.53 saves it, and as transformers 5 does."""
    folder = write_qwen2_5_vl(tmp_path)
    flat = json.loads((folder / "config.json").read_text())
    expected = opened(folder).make_model

    sections = flat["rope_scaling"]["mrope_section"]
    text = {key: x for key, x in flat.items() if key not in ("vision_config", "architectures")}
    text |= {
        "model_type": "qwen2_5_vl_text",
        "rope_scaling": {"mrope_section": sections, "rope_type": "default", "type": "default"},
        "sliding_window": None,
    }
    vision = flat["vision_config"] | {"model_type": "qwen2_5_vl"}
    edit(folder, text_config=text, vision_config=vision, hidden_size=99)
    assert opened(folder).make_model == expected and opened(folder).lm_head.tied

    AutoConfig.from_pretrained(folder).save_pretrained(folder)
    newest = json.loads((folder / "config.json").read_text())
    assert newest["text_config"]["rope_parameters"]["mrope_section"] == sections
    assert opened(folder).make_model == expected and opened(folder).lm_head.tied

    for changes, message in (
        ({"window_size": 7}, "window_size is 7 pixels, less than the 8 of a token"),
        ({"out_hidden_size": 32}, "vision_config.out_hidden_size is 32"),
        ({"hidden_act": "relu"}, "vision_config.hidden_act is 'relu'"),
        ({"fullatt_block_indexes": [1, 2]}, r"fullatt_block_indexes is \[1, 2\].* 2 layers"),
    ):
        edit(folder, vision_config=newest["vision_config"] | changes)
        with pytest.raises(ValueError, match=message):
            opened(folder)


@for_each("size", SIZES)
def test_every_parameter_at_full_size(size):
    """Names and shapes of transformers' model, which only has its language-model head on top."""
    parameters, width, tied = SIZES[size]
    backbone = opened(MODELS / size)
    model = jax.eval_shape(backbone.make_model, jax.random.key(0))
    assert [i for i, full in enumerate(model.visual.full) if full] == [7, 15, 23, 31]
    assert model.visual.window == 8 and backbone.preprocess.window == 4
    assert backbone.preprocess.tokens_per_second == 2
    assert model.language_model.rope_axes == (0,) * 16 + (1,) * 24 + (2,) * 24
    assert backbone.dimension == width and backbone.lm_head.tied == tied
    _, shapes = paths.split(model)
    entries = weights.table({path: x.shape for path, x in shapes.items()}, backbone.names)
    ours = {
        f"model.{name}" if name.startswith("visual") else
        name.replace("model.", "model.language_model.", 1): entry.shape
        for entry in entries
        for name in entry.names
    }  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(MODELS / size))
    theirs = {name: tuple(x.shape) for name, x in model.named_parameters()}
    if not tied:
        assert theirs.pop("lm_head.weight") == (152064, width)
    assert ours == theirs
    assert sum(x.size for x in shapes.values()) == parameters
