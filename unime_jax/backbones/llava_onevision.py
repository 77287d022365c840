"""LLaVA-OneVision (Qwen2 decoder, SigLIP tower): what its configuration and names mean here."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from unime_jax.backbones.anyres import Size
from unime_jax.backbones.preprocess import LlavaOnevisionPreprocessor
from unime_jax.backbones.weights import Names
from unime_jax.models.decoder import DecoderConfig
from unime_jax.models.layers import ACTIVATIONS
from unime_jax.models.vit import VisionConfig
from unime_jax.models.vlm import VlmConfig

NAMES = Names(
    prefixes=(
        ("language_model.", "language_model.model."),
        ("vision_tower.", "vision_tower.vision_model."),
        ("multi_modal_projector.", "multi_modal_projector."),
        ("image_newline", "image_newline"),
    ),
    aliases=(
        (r"^model\.(vision_tower|multi_modal_projector|image_newline)", r"\1"),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
        (r"^lm_head\.", "language_model.lm_head."),
    ),
    unused=(r"language_model\.lm_head\.weight", r"vision_tower\.vision_model\.head\..*"),
)


def make_preprocessor(
    folder: str, *, max_length: int, pinpoints: Sequence[Size]
) -> LlavaOnevisionPreprocessor:
    """The host side of the family, see `preprocess`."""
    return LlavaOnevisionPreprocessor.from_folder(
        folder, max_length=max_length, pinpoints=pinpoints
    )


def model_config(config: PretrainedConfig, preprocessor: LlavaOnevisionPreprocessor) -> VlmConfig:
    """The model behind a config.json.

    Raises:
      ValueError: the configuration asks for something that this family's code does not do.
    """
    text, vision = config.text_config, config.vision_config
    _require("text_config.model_type", text.model_type, ("qwen2",))
    _require("text_config.use_sliding_window", text.use_sliding_window, (False,))
    _require("text_config.hidden_act", text.hidden_act, tuple(ACTIVATIONS))
    rope = text.rope_parameters
    _require("text_config.rope_parameters.rope_type", rope["rope_type"], ("default",))
    _require("vision_config.model_type", vision.model_type, ("siglip_vision_model",))
    _require("vision_config.hidden_act", vision.hidden_act, tuple(ACTIVATIONS))
    _require("vision_feature_layer", config.vision_feature_layer, (-1,))
    _require("projector_hidden_act", config.projector_hidden_act, tuple(ACTIVATIONS))
    return VlmConfig(
        text=DecoderConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            rms_norm_eps=text.rms_norm_eps,
            rope_theta=rope["rope_theta"],
            qkv_bias=True,
            hidden_act=text.hidden_act,
        ),
        vision=VisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_layers=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            layer_norm_eps=vision.layer_norm_eps,
            hidden_act=vision.hidden_act,
        ),
        projector_act=config.projector_hidden_act,
        projector_bias=config.multimodal_projector_bias,
        pixel_mean=preprocessor.image_mean,
        pixel_std=preprocessor.image_std,
        pixel_scale=preprocessor.rescale_factor,
    )


def _require(key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        listing = ", ".join(map(repr, allowed))
        raise ValueError(f"config.json: {key} is {value!r}; this family supports {listing}.")
