"""Qwen3-VL's checkpoints: config.json, image processor and the names of their tensors.

Rows are Qwen2-VL's, with other sizes.
"""

import math
import pathlib
from typing import TYPE_CHECKING

from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.io import hf_config, weights
from unime_jax.backbones.preprocessing.open_prompts import open_tokenizer
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.backbones.preprocessing.system_prompt import added_ending, open_any_prompt
from unime_jax.backbones.qwen2_vl import folder as files
from unime_jax.backbones.qwen2_vl.processors import Clips
from unime_jax.backbones.qwen2_vl.rows import TILE
from unime_jax.models.decoder import DecoderConfig
from unime_jax.models.qwen3_vit import Qwen3VisionConfig
from unime_jax.models.qwen3_vl import Qwen3Vl

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = Processing(prompt="chat", grid_positions=True)
POOLINGS = ("lasttoken",)
EMBEDDER_TOKENS = 4, 1800  # least and most of an image, of Qwen3-VL-Embedding's code
# Likewise, least and most of a frame, and of all frames of a clip together, of which two have the
# tokens of one: its total of 10 times the most.
EMBEDDER_CLIP_TOKENS = 128, 768, 2 * 7680
CLIPS = Clips("Qwen3VLVideoProcessor", True, (4, 768), 24576)  # as its published file has it


def published(folder: pathlib.Path, config: "PretrainedConfig") -> Processing:
    """The processing of a published folder, which Qwen3-VL-Embedding is if it ends sequences.

    Its tokenizer adds the token that is pooled, which no other Qwen3-VL's does; its code, and no
    file, has the limits of an image and of clips.
    """
    if not added_ending(open_tokenizer(folder).backend_tokenizer):
        return PROCESSING
    vision = config.vision_config
    area = (vision.patch_size * vision.spatial_merge_size) ** 2
    least, most = (tokens * area for tokens in EMBEDDER_TOKENS)
    fewest, largest, together = (tokens * area for tokens in EMBEDDER_CLIP_TOKENS)
    return Processing(
        prompt="system",
        grid_positions=True,
        pixels=(least, most),
        fps=1.0,
        frames=(4, 64),
        frame_pixels=(fewest, largest),
        clip_pixels=together,
    )


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a checkpoint in Hugging Face form.

    Raises:
      ValueError: the files contradict each other, or ask for what this family does not do.
    """
    text = files.decoder_config(config, "qwen3_vl_text", processing, max_length=max_length)
    vision = tower_config(config, text)
    return files.open_family(
        folder,
        config,
        processing,
        max_length=max_length,
        text=text,
        vision=vision,
        tile=TILE,
        form=files.Form(
            Qwen3Vl,
            names(vision),
            unread=(r"model\.visual\..*",),
            open_prompt=open_any_prompt,
            gridded=True,  # no published model was trained otherwise
            clips=CLIPS,
        ),
    )


def names(vision: Qwen3VisionConfig) -> weights.Names:
    """The spelling of published checkpoints.

    A model without head leaves "model." out, and the language model alone all of the prefix.
    """
    patch = vision.patch_size
    return weights.Names(
        prefixes=(("visual.", "model.visual."), ("language_model.", "model.language_model.")),
        aliases=(
            (r"^(visual|language_model)\.", r"model.\1."),
            (r"^(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
        ),
        modules=(
            weights.AS_PUBLISHED,
            (("model.visual.", "visual."), ("model.language_model.", "language_model.")),
            (("model.language_model.", ""),),
        ),
        unused=(r"lm_head\.weight",),
        convolution=("visual.patch_embed.proj.kernel", (3, vision.frames, patch, patch)),
    )


def tower_config(config: "PretrainedConfig", text: DecoderConfig) -> Qwen3VisionConfig:
    """The vision tower, checked to fit its decoder.

    Raises:
      ValueError: it does not, or asks for what this family does not do.
    """
    vision = config.vision_config
    files.require_tower(vision, "qwen3_vl_vision")
    hf_config.require("vision_config.out_hidden_size", vision.out_hidden_size, (text.hidden_size,))
    interleaved = config.text_config.rope_parameters.get("mrope_interleaved", True)
    hf_config.require("text_config.rope_parameters.mrope_interleaved", interleaved, (True,))
    files.require_sections(config, text)
    side, levels = math.isqrt(vision.num_position_embeddings), vision.deepstack_visual_indexes
    if side**2 != vision.num_position_embeddings:
        raise ValueError(
            "config.json: vision_config.num_position_embeddings is"
            f" {vision.num_position_embeddings}, which are no square grid"
        )
    within = all(0 <= level < vision.depth for level in levels)
    if not 0 < len(levels) <= text.num_layers or not within or sorted(set(levels)) != list(levels):
        raise ValueError(
            f"config.json: vision_config.deepstack_visual_indexes is {list(levels)}; they must be"
            f" layers of the tower, 0 to {vision.depth - 1}, ascending, and at least one and at"
            f" most the decoder's {text.num_layers}"
        )
    return Qwen3VisionConfig(
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
        side=side,
        levels=tuple(levels),
    )
