"""Conversion of Hugging Face configurations to those of our models."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import logging

from unime_jax.models.decoder import DecoderConfig
from unime_jax.models.layers import ACTIVATIONS
from unime_jax.models.rope import LongRope, contiguous_axes, interleaved_axes
from unime_jax.models.vlm import Pixels

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# How decoders divide rotary frequencies among time, row and column. Of others, such as a plain
# Qwen2, sections are not read.
MROPE: Mapping[str, Callable[[Sequence[int]], tuple[int, ...]]] = {
    "qwen2_vl_text": contiguous_axes,
    "qwen2_5_vl_text": contiguous_axes,
    "qwen3_vl_text": interleaved_axes,
}


def require(key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuses a value of config.json that is not supported; the ValueError names its key."""
    if value not in allowed:
        listing = ", ".join(map(repr, allowed))
        raise ValueError(f"config.json: {key} is {value!r}; this family supports {listing}.")


def pixels(settings: Mapping[str, Any]) -> Pixels:
    """Pixel normalisation of an image processor's settings."""
    red, green, blue = map(float, settings["image_mean"])
    red_std, green_std, blue_std = map(float, settings["image_std"])
    scale = float(settings["rescale_factor"])
    return Pixels((red, green, blue), (red_std, green_std, blue_std), scale)


def is_causal(config: "PretrainedConfig", *, outer: bool) -> bool:
    """Whether a token of the decoder sees only those before it, as transformers 5 has it.

    Args:
      config: the whole, with a text_config.
      outer: whether transformers reads the key beside text_config, too. It then comes first.

    Raises:
      ValueError: the value is no boolean: transformers' implementations of attention differ on it.
    """
    found = {}
    for where, part in (("", config), ("text_config.", config.text_config)):
        if hasattr(part, "is_causal") and (part.is_causal is not None or where):
            require(f"{where}is_causal", part.is_causal, (True, False))
            found[where] = bool(part.is_causal)
    inner = found.get("text_config.", True)
    if not outer and found.get("", inner) != inner:
        logging.warning(
            "config.json: is_causal is %s, but transformers does not read it there: attention is %s"
            " as text_config says. Put it into text_config, or leave it out.",
            found[""],
            "causal" if inner else "bidirectional",
        )
    return found.get("", inner) if outer else inner


def ties_head(config: "PretrainedConfig") -> bool:
    """Whether the language-model head is the table of token embeddings."""
    parts = config, config.text_config
    return any(getattr(part, "tie_word_embeddings", None) or False for part in parts)


def require_bidirectional_tower(vision: "PretrainedConfig") -> None:
    """Refuses a causal vision_config with a ValueError."""
    require("vision_config.is_causal", bool(getattr(vision, "is_causal", False)), (False,))


def decoder_config(
    text: "PretrainedConfig",
    *,
    model_types: tuple[str, ...],
    max_length: int,
    final_norm: bool,
    causal: bool = True,
) -> DecoderConfig:
    """Decoder configuration of a text_config of Qwen2, Qwen3, Llama, Mistral or Phi-3.

    Args:
      text: the configuration.
      model_types: those that the family comes with.
      max_length: the most tokens of a row; a sliding window must be at least as long.
      final_norm: whether states are read after the final norm.
      causal: whether a token sees only those before it.

    Raises:
      ValueError: it asks for something that the decoder does not do.
    """
    require("text_config.model_type", text.model_type, model_types)
    require("text_config.hidden_act", text.hidden_act, tuple(ACTIVATIONS))
    require("text_config.mlp_bias", getattr(text, "mlp_bias", False), (False,))
    qwen2 = text.model_type.startswith("qwen2")
    if not qwen2:
        require("text_config.attention_bias", getattr(text, "attention_bias", False), (False,))
    for kind in getattr(text, "layer_types", None) or ():
        require("text_config.layer_types", kind, ("full_attention", "sliding_attention"))
    window = getattr(text, "sliding_window", None)
    # Only Qwen2 has a switch for it; in a configuration of another it is not read.
    used = getattr(text, "use_sliding_window", True) if qwen2 else True
    if used and window is not None and window < max_length:
        raise ValueError(
            f"config.json: text_config.sliding_window is {window} tokens, and rows may have"
            f" {max_length}; lower the longest bucket or max_length: longer rows would need"
            " sliding-window attention, which is not here."
        )
    rope = text.rope_parameters
    rope_type = rope["rope_type"]
    require("text_config.rope_parameters.rope_type", rope_type, ("default", "longrope"))
    if rope_type == "longrope" or text.model_type == "phi3":  # the others do not read it
        partial = rope.get("partial_rotary_factor", 1.0)
        require("text_config.rope_parameters.partial_rotary_factor", partial, (1.0,))
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
        rope_axes=_rope_axes(text, head_dim),
        qkv_bias=qwen2,
        qk_norm=text.model_type.startswith("qwen3"),
        hidden_act=text.hidden_act,
        causal=causal,
        final_norm=final_norm,
        long_rope=long_rope(text) if rope_type == "longrope" else None,
    )


def _rope_axes(text: "PretrainedConfig", head_dim: int) -> tuple[int, ...]:
    """Position axis of each rotary frequency; of models of texts there is one."""
    sections = text.rope_parameters.get("mrope_section")
    if sections is None or text.model_type not in MROPE:
        return contiguous_axes((head_dim // 2,))
    return MROPE[text.model_type](sections)


def long_rope(text: "PretrainedConfig") -> LongRope:
    """LongRoPE factors, short and long, of a text_config, and the scale of its lengths."""
    rope = text.rope_parameters
    short, long = (tuple(map(float, rope[key])) for key in ("short_factor", "long_factor"))
    original = rope["original_max_position_embeddings"]
    growth = rope.get("factor") or text.max_position_embeddings / original
    scale = rope.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(growth) / math.log(original)) if growth > 1 else 1.0
    return LongRope(short, long, original, float(scale))
