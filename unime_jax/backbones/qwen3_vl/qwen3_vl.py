"""Qwen3-VL's checkpoints: config.json, image processor and the names of their tensors.

Rows are Qwen2-VL's, with other sizes.
"""

import dataclasses
import math
import pathlib
from typing import TYPE_CHECKING, TypedDict

from unime_jax.backbones.backbone import Backbone, LmHead, MakeLanguageModel, MakeModel, TextOnly
from unime_jax.backbones.io import hf_config, weights
from unime_jax.backbones.preprocessing.processing import (
    Processing,
    caveats,
    fixed_size,
    require_missing_images,
)
from unime_jax.backbones.preprocessing.prompts import open_prompt, open_tokenizer
from unime_jax.backbones.preprocessing.system_prompt import added_ending, open_system_prompt
from unime_jax.backbones.qwen2_vl import qwen2_vl
from unime_jax.backbones.qwen2_vl.rows import TILE, Qwen2VlPreprocessor
from unime_jax.data.settings import MissingImages
from unime_jax.data.shapes import Layout
from unime_jax.models.decoder import DecoderConfig
from unime_jax.models.layers import ACTIVATIONS
from unime_jax.models.qwen3_vit import Qwen3VisionConfig
from unime_jax.models.qwen3_vl import Qwen3Vl, Qwen3VlConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = Processing(prompt="chat", grid_positions=True)
POOLINGS = ("lasttoken",)
EMBEDDER_TOKENS = 4, 1800  # least and most of an image, of Qwen3-VL-Embedding's code


class PromptArguments(TypedDict):
    """Arguments of both ways to open a prompt."""

    image_token_id: int
    vocab_size: int
    max_length: int
    missing_images: MissingImages


def published(folder: pathlib.Path, config: "PretrainedConfig") -> Processing:
    """The processing of a published folder, which Qwen3-VL-Embedding is if it ends sequences.

    Its tokenizer adds the token that is pooled, which no other Qwen3-VL's does; its code, and no
    file, has the limits of an image.
    """
    if not added_ending(open_tokenizer(folder).backend_tokenizer):
        return PROCESSING
    vision = config.vision_config
    area = (vision.patch_size * vision.spatial_merge_size) ** 2
    least, most = (tokens * area for tokens in EMBEDDER_TOKENS)
    return Processing(prompt="system", grid_positions=True, pixels=(least, most))


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a checkpoint in Hugging Face form.

    Raises:
      ValueError: the files contradict each other, or ask for what this family does not do.
    """
    require_missing_images(processing, "strip", "token")
    text = hf_config.decoder_config(
        config.text_config,
        model_types=("qwen3_vl_text",),
        max_length=max_length,
        final_norm=processing.final_norm,
        causal=hf_config.is_causal(config, outer=False),
    )
    vision = tower_config(config, text)
    file, processor = qwen2_vl.open_image_processor(folder, vision)
    own = qwen2_vl.own_pixels(file, processor)
    least, most = processing.pixels or own
    where = "processing.pixels" if processing.pixels else f"{file}: its pixels"
    qwen2_vl.require_range(least, most, where)
    opened: PromptArguments = {
        "image_token_id": config.image_token_id,
        "vocab_size": text.vocab_size,
        "max_length": max_length,
        "missing_images": processing.missing_images,
    }
    tokenizer = open_tokenizer(folder)
    prompt = (
        open_system_prompt(folder, tokenizer, **opened)
        if processing.prompt == "system"
        else open_prompt(folder, tokenizer, style=processing.prompt, **opened)
    )
    preprocess = Qwen2VlPreprocessor(
        prompt=prompt,
        patch=vision.patch_size,
        merge=vision.merge,
        tile=TILE,
        pixels=(least, most),
        resample=int(processor["resample"]),
        image_size=fixed_size(processing),
        vision_start_id=config.vision_start_token_id,
        grid_positions=True,  # no published model was trained otherwise
    )
    model = Qwen3VlConfig(text=text, vision=vision, pixels=hf_config.pixels(processor))
    differences = caveats(processing)
    changes = qwen2_vl.spelled(processor, processing.pixels) if processing.pixels else {}
    return Backbone(
        folder=folder,
        dimension=text.hidden_size,
        make_model=MakeModel(Qwen3Vl, model),
        names=names(vision),
        preprocess=preprocess,
        layout=Layout(
            axes=3,
            slots=1,
            patches=TILE,
            patch_bytes=3 * vision.patch_size**2,
            positioned=True,
            vocabulary=text.vocab_size,
            table=(0, TILE // vision.merge**2),
        ),
        processing=processing,
        image_processor_changes=changes,
        loads_in_transformers=not differences,
        caveats=differences,
        text_only=TextOnly(
            make_model=MakeLanguageModel(MakeModel(Qwen3Vl, model)),
            unread=(r"model\.visual\..*",),
        ),
        lm_head=LmHead(
            make_model=lambda head: MakeModel(
                Qwen3Vl, dataclasses.replace(model, text=dataclasses.replace(text, lm_head=head))
            ),
            name="lm_head.weight",
            path="language_model.lm_head",
            tied=hf_config.ties_head(config),
            preprocess=lambda prompt: dataclasses.replace(preprocess, prompt=prompt),
            unshared=text.unshared,
        ),
        instruction="{instruction}" if processing.prompt == "system" else "{instruction}\n",
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
    hf_config.require("vision_config.model_type", vision.model_type, ("qwen3_vl_vision",))
    hf_config.require("vision_config.hidden_act", vision.hidden_act, tuple(ACTIVATIONS))
    hf_config.require("vision_config.in_channels", vision.in_channels, (3,))
    hf_config.require("vision_config.out_hidden_size", vision.out_hidden_size, (text.hidden_size,))
    hf_config.require_bidirectional_tower(vision)
    rope_type = vision.rope_parameters["rope_type"]
    hf_config.require("vision_config.rope_parameters.rope_type", rope_type, ("axial",))
    interleaved = config.text_config.rope_parameters.get("mrope_interleaved", True)
    hf_config.require("text_config.rope_parameters.mrope_interleaved", interleaved, (True,))
    hf_config.require_mrope(config.text_config, text.head_dim)
    qwen2_vl.require_whole_tokens(vision.spatial_merge_size, TILE)
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
