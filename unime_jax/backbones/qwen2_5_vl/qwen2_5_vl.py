"""Qwen2.5-VL's checkpoints: what their config.json says."""

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

PROCESSING = Processing(prompt="chat")
POOLINGS = ("lasttoken",)


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a checkpoint in Hugging Face form.

    Raises:
      ValueError: the files contradict each other, or ask for what this family does not do.
    """
    text = files.decoder_config(config, "qwen2_5_vl_text", processing, max_length=max_length)
    vision = tower_config(config, text)
    return files.open_family(
        folder,
        config,
        processing,
        max_length=max_length,
        text=text,
        vision=vision,
        tile=TILE,
        window=vision.window // vision.merge,
        tokens_per_second=float(config.vision_config.tokens_per_second),
    )


def tower_config(config: "PretrainedConfig", text: DecoderConfig) -> QwenVisionConfig:
    """The vision tower, checked to fit its decoder.

    Raises:
      ValueError: it does not, or asks for what this family does not do.
    """
    vision = config.vision_config
    files.require_tower(vision, "qwen2_5_vl_vision")
    hf_config.require("vision_config.out_hidden_size", vision.out_hidden_size, (text.hidden_size,))
    files.require_sections(config, text)
    # As many whole tokens along a side as fit.
    window = vision.window_size // vision.spatial_merge_size // vision.patch_size
    if window < 1:
        raise ValueError(
            f"config.json: vision_config.window_size is {vision.window_size} pixels, less than the"
            f" {vision.spatial_merge_size * vision.patch_size} of a token"
        )
    full = tuple(vision.fullatt_block_indexes)
    if not set(full) <= set(range(vision.depth)):
        raise ValueError(
            f"config.json: vision_config.fullatt_block_indexes is {list(full)}, and the tower has"
            f" {vision.depth} layers, numbered from 0"
        )
    return QwenVisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_layers=vision.depth,
        num_heads=vision.num_heads,
        output_size=vision.out_hidden_size,
        patch_size=vision.patch_size,
        frames=vision.temporal_patch_size,
        merge=vision.spatial_merge_size,
        hidden_act=vision.hidden_act,
        rope_theta=vision.rope_parameters["rope_theta"],
        norm="rms",
        gated=True,
        window=window * vision.spatial_merge_size,
        full_layers=full,
    )
