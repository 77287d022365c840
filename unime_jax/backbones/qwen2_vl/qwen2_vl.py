"""Qwen2-VL's checkpoints: what their config.json says."""

import pathlib
from typing import TYPE_CHECKING

from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.io import hf_config
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.backbones.qwen2_vl import folder as files
from unime_jax.backbones.qwen2_vl.rows import TILE
from unime_jax.models.decoder import DecoderConfig
from unime_jax.models.qwen_vit import QwenVisionConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = Processing(prompt="raw")  # VLM2Vec's and UniME-V2's
POOLINGS = ("lasttoken",)


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a checkpoint in Hugging Face form.

    Raises:
      ValueError: the files contradict each other, or ask for what this family does not do.
    """
    text = files.decoder_config(config, "qwen2_vl_text", processing, max_length=max_length)
    vision = tower_config(config, text)
    return files.open_family(
        folder, config, processing, max_length=max_length, text=text, vision=vision, tile=TILE
    )


def tower_config(config: "PretrainedConfig", text: DecoderConfig) -> QwenVisionConfig:
    """The vision tower, checked to fit its decoder.

    Raises:
      ValueError: it does not, or asks for what this family does not do.
    """
    vision = config.vision_config
    files.require_tower(vision, "qwen2_vl_vision")
    hf_config.require("vision_config.hidden_size", vision.hidden_size, (text.hidden_size,))
    files.require_sections(config, text)
    return QwenVisionConfig(
        hidden_size=vision.embed_dim,
        intermediate_size=int(vision.embed_dim * vision.mlp_ratio),
        num_layers=vision.depth,
        num_heads=vision.num_heads,
        output_size=vision.hidden_size,
        patch_size=vision.patch_size,
        frames=vision.temporal_patch_size,
        merge=vision.spatial_merge_size,
        hidden_act=vision.hidden_act,
        rope_theta=vision.rope_parameters["rope_theta"],
    )
