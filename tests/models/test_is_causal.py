"""`is_causal` in config.json: attention in both directions where transformers has it."""

import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_llava_qwen import write_llava_qwen
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.backbones.tiny_texts import write_bert
from tests.models.oracle import EXACT, TEXT, VISION, Pair, packed, pair_of, picture, torch_hidden
from tests.tables import for_each
from unime_jax.backbones import open_backbone
from unime_jax.backbones.io import hf_config
from unime_jax.batch import Item, Media

ITEMS = [
    Item("a red circle"),
    Item("<|image_1|>\nRepresent the given image", (Media("a.png", picture(40, 31, 1)),)),
    Item("a red circle left of a blue square"),
]
WRITE: dict[str, Callable[[pathlib.Path], Any]] = {
    "llava_onevision": lambda folder: write_folder(folder, vision=VISION, text=TEXT),
    "mistral": lambda folder: write_llava_next(folder, decoder="mistral"),
    "llama": write_llava_next,
    "qwen2_vl": write_qwen2_vl,
}


def written(folder: pathlib.Path, family: str, outer: Any = ..., inner: Any = ...) -> pathlib.Path:
    """A folder whose config.json says so beside and in text_config, which is nested in all."""
    folder.mkdir()
    WRITE[family](folder)
    config = json.loads((folder / "config.json").read_text())
    if "text_config" not in config:
        config = json.loads(AutoConfig.from_pretrained(folder).to_json_string())
    for part, value in ((config, outer), (config["text_config"], inner)):
        if value is not ...:
            part["is_causal"] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def last_states(pair: Pair) -> np.ndarray:
    states = np.stack([torch_hidden(pair, item)[-1] for item in ITEMS])
    return states / np.linalg.norm(states, axis=1, keepdims=True)


CASES = (
    ("llava_onevision", "inner"), ("mistral", "outer"), ("llama", "inner"), ("qwen2_vl", "inner"),
)  # fmt: skip


# A Llama in LLaVA-NeXT is read as the Mistral there.
@for_each(("family", "where"), CASES, quick=[case for case in CASES if case[0] != "llama"])
def test_both_directions(tmp_path, family, where):
    """Rows of several lengths in one chunk, each as transformers gives it alone."""
    pair = pair_of(written(tmp_path / "folder", family, **{where: False}))
    chunk, numbers = packed(pair, ITEMS, tokens=192, tiles=5)
    found = np.asarray(jax.jit(lambda x: pair.model(x, EXACT))(chunk))[numbers]
    for implementation in ("sdpa", "eager"):
        pair.torch_model.set_attn_implementation(implementation)
        expected = last_states(pair)
        assert np.all(np.sum(found * expected, axis=1) >= 0.99999), implementation
    pair.torch_model.config.is_causal = pair.torch_model.config.text_config.is_causal = True
    causal = last_states(pair)
    assert np.all(np.sum(found * causal, axis=1) < 0.999), "otherwise the mask does not matter"


def looks_ahead(folder: pathlib.Path, implementation: str) -> bool:
    """Whether the first token's state depends on the last token, in transformers."""
    config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=implementation)
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    with torch.no_grad():
        first = model.eval().model(input_ids=ids).last_hidden_state[:, 0]
    return not torch.allclose(first[0], first[1], atol=1e-6)


@for_each("family", ["llava_onevision", "qwen2_vl"])
def test_where_both_parts_of_the_file_say_something(tmp_path, family, caplog):
    for number, (outer, inner) in enumerate(itertools.product((..., True, False), repeat=2)):
        caplog.clear()
        folder = written(tmp_path / str(number), family, outer, inner)
        config = AutoConfig.from_pretrained(folder)
        causal = hf_config.is_causal(config, outer=family != "qwen2_vl")
        ahead = {looks_ahead(folder, x) for x in ("sdpa", "eager")}
        assert ahead == {not causal}, (outer, inner)
        backbone = open_backbone(str(folder), max_length=99)
        model: Any = jax.eval_shape(backbone.make_model, jax.random.key(0))
        assert model.language_model.layers.self_attn.causal is causal
        unread = family == "qwen2_vl" and outer is not ... and outer != (inner is not False)
        assert ("transformers does not read it there" in caplog.text) is unread


def test_the_original_llave_hands_it_on_to_its_export(tmp_path):
    folder = write_llava_qwen(tmp_path / "folder", is_causal=False)
    backbone = open_backbone(str(folder), max_length=99)
    model: Any = jax.eval_shape(backbone.make_model, jax.random.key(0))
    assert model.language_model.layers.self_attn.causal is False
    assert backbone.convert is not None
    backbone.convert(folder)
    assert json.loads((folder / "config.json").read_text())["text_config"]["is_causal"] is False
    assert load_file(folder / "model.safetensors")  # and it still is what it was
    assert looks_ahead(folder, "sdpa")


def edit(folder: pathlib.Path, group: str | None, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config.setdefault(group, {}) if group else config).update(changes)
    (folder / "config.json").write_text(json.dumps(config))


@for_each(
    ("write", "group", "value", "message"),
    [
        (WRITE["mistral"], "text_config", None, "text_config.is_causal is None"),
        (WRITE["mistral"], None, "no", "is_causal is 'no'; this family supports True, False"),
        # Under sdpa, transformers' default, the CLIP tower gets it, too.
        (WRITE["mistral"], None, True, "is_causal is True beside text_config.*CLIP tower"),
        (WRITE["qwen2_vl"], "vision_config", True, "vision_config.is_causal is True"),
        (WRITE["llama"], "vision_config", True, "vision_config.is_causal is True"),
        (write_phi3_v, None, False, "is_causal is False; this family supports True"),
        (write_bert, None, True, "is_causal is True; this family supports False"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, write, group, value, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder)
    edit(folder, group, is_causal=value)
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        open_backbone(str(folder), max_length=99)


# Other keys that are read by some models, and not by others


def decoder(text: Any, max_length: int = 64) -> Any:
    types = (text.model_type,)
    return hf_config.decoder_config(text, model_types=types, max_length=max_length, final_norm=True)


SIZES = dict(hidden_size=32, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2)


def test_settings_of_attention_and_rotation_are_those_of_the_family():
    # Only Qwen2 has a switch for its window.
    text = MistralConfig(**SIZES, sliding_window=16, use_sliding_window=False)
    with pytest.raises(ValueError, match="text_config.sliding_window is 16 tokens"):
        decoder(text)
    decoder(Qwen2Config(**SIZES, sliding_window=16, use_sliding_window=False))

    # Rotary settings of other models are not read.
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1]}
    text = LlamaConfig(**SIZES, rope_parameters=rope | {"partial_rotary_factor": 0.5})
    assert decoder(text).rope_axes == (0,) * 8

    # Long rope has the scale that transformers gives it.
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for changes in ({}, {"factor": 4.0}, {"attention_factor": 1.3}):
        rope = {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
            "original_max_position_embeddings": 32,
        } | changes
        text = LlamaConfig(**SIZES, rope_parameters=rope, max_position_embeddings=256)
        _, scale = ROPE_INIT_FUNCTIONS["longrope"](text, torch.device("cpu"))
        assert decoder(text).long_rope.scale == pytest.approx(scale)
    text.rope_parameters["partial_rotary_factor"] = 0.5
    with pytest.raises(ValueError, match="partial_rotary_factor is 0.5"):
        decoder(text)

    # An unknown kind of layer is refused.
    text = Qwen2Config(**SIZES)
    text.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="text_config.layer_types is 'linear_attention'"):
        decoder(text)
