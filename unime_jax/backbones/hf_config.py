"""What Hugging Face configurations say, as the configurations of our models."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from unime_jax.models.decoder import DecoderConfig
from unime_jax.models.layers import ACTIVATIONS
from unime_jax.models.rope import LongRope
from unime_jax.models.vlm import Pixels

IMAGES = "image_processor"  # its key in newer folders' processor_config.json


def require(key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ValueError that names a key of config.json whose value this code does not do."""
    if value not in allowed:
        listing = ", ".join(map(repr, allowed))
        raise ValueError(f"config.json: {key} is {value!r}; this family supports {listing}.")


def image_processor(
    folder: pathlib.Path, defaults: Mapping[str, Any]
) -> tuple[pathlib.Path, dict[str, Any]]:
    """The file that configures a checkpoint's image processor, and its settings.

    They are read as they are: transformers' own classes want torch or torchvision for some
    families. `defaults` are what those classes take where a file is silent.

    Raises:
      ValueError: there is no such file.
    """
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", IMAGES)):
        file = folder / name
        if file.exists():
            settings = json.loads(file.read_text())
            if key is None or key in settings:
                return file, dict(defaults) | (settings[key] if key else settings)
    raise ValueError(
        f"{folder} has no preprocessor_config.json, and no processor_config.json with"
        f" {IMAGES!r}: copy those of the checkpoint it was made from."
    )


def pixels(settings: Mapping[str, Any]) -> Pixels:
    """The normalisation that an image processor's settings ask for."""
    red, green, blue = map(float, settings["image_mean"])
    red_std, green_std, blue_std = map(float, settings["image_std"])
    scale = float(settings["rescale_factor"])
    return Pixels((red, green, blue), (red_std, green_std, blue_std), scale)


def decoder_config(
    text: PretrainedConfig,
    *,
    model_types: tuple[str, ...],
    max_length: int,
    causal: bool = True,
) -> DecoderConfig:
    """The decoder behind a text_config of Qwen2's, Llama's, Mistral's or Phi-3's form.

    Args:
      text: the configuration.
      model_types: those that the family comes with.
      max_length: the most tokens of a row; a sliding window must be at least as long.
      causal: whether a token sees only those before it; the configuration does not say.

    Raises:
      ValueError: it asks for something that the decoder does not do.
    """
    require("text_config.model_type", text.model_type, model_types)
    require("text_config.hidden_act", text.hidden_act, tuple(ACTIVATIONS))
    require("text_config.mlp_bias", getattr(text, "mlp_bias", False), (False,))
    qkv_bias = text.model_type.startswith("qwen2")
    if not qkv_bias:
        require("text_config.attention_bias", getattr(text, "attention_bias", False), (False,))
    window = getattr(text, "sliding_window", None)
    if getattr(text, "use_sliding_window", True) and window is not None and window < max_length:
        raise ValueError(
            f"config.json: text_config.sliding_window is {window} tokens, and rows may have"
            f" {max_length}; lower the longest bucket or max_length: longer rows would need"
            " sliding-window attention, which is not here."
        )
    rope = text.rope_parameters
    rope_type = rope["rope_type"]
    require("text_config.rope_parameters.rope_type", rope_type, ("default", "longrope"))
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return DecoderConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        head_dim=head_dim,
        rms_norm_eps=text.rms_norm_eps,
        rope_theta=rope["rope_theta"],
        rope_sections=tuple(rope.get("mrope_section", (head_dim // 2,))),
        qkv_bias=qkv_bias,
        hidden_act=text.hidden_act,
        causal=causal,
        long_rope=long_rope(text) if rope_type == "longrope" else None,
    )


def long_rope(text: PretrainedConfig) -> LongRope:
    """The two sets of rotary factors of a text_config, and the scale that its lengths give."""
    rope = text.rope_parameters
    short, long = (tuple(map(float, rope[key])) for key in ("short_factor", "long_factor"))
    original = rope["original_max_position_embeddings"]
    growth = text.max_position_embeddings / original
    scale = math.sqrt(1 + math.log(growth) / math.log(original)) if growth > 1 else 1.0
    return LongRope(short, long, original, scale)
