"""Qwen2-VL's checkpoints: config.json, image processor and the names of their tensors."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unime_jax.backbones.backbone import Backbone, LmHead, MakeLanguageModel, MakeModel, TextOnly
from unime_jax.backbones.io import hf_config, weights
from unime_jax.backbones.preprocessing import image_processor_config
from unime_jax.backbones.preprocessing.image_processor_config import LEAST, MOST
from unime_jax.backbones.preprocessing.processing import (
    Processing,
    caveats,
    fixed_size,
    require_missing_images,
)
from unime_jax.backbones.preprocessing.prompts import open_prompt, open_tokenizer
from unime_jax.backbones.qwen2_vl.rows import TILE, Qwen2VlPreprocessor
from unime_jax.data.shapes import Layout
from unime_jax.models.decoder import DecoderConfig
from unime_jax.models.layers import ACTIVATIONS
from unime_jax.models.qwen2_vl import Qwen2Vl, Qwen2VlConfig
from unime_jax.models.qwen_vit import QwenVisionConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = Processing(prompt="raw")  # VLM2Vec's and UniME-V2's
POOLINGS = ("lasttoken",)

DEFAULTS = {  # of transformers' Qwen2VLImageProcessor
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
TYPES = ("Qwen2VLImageProcessor",)


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
        model_types=("qwen2_vl_text",),
        max_length=max_length,
        final_norm=processing.final_norm,
        causal=hf_config.is_causal(config, outer=False),
    )
    vision = tower_config(config, text)
    file, processor = open_image_processor(folder, vision)
    own = own_pixels(file, processor)
    least, most = processing.pixels or own
    require_range(least, most, "processing.pixels" if processing.pixels else f"{file}: its pixels")
    preprocess = Qwen2VlPreprocessor(
        prompt=open_prompt(
            folder,
            open_tokenizer(folder),
            image_token_id=config.image_token_id,
            vocab_size=text.vocab_size,
            style=processing.prompt,
            max_length=max_length,
            missing_images=processing.missing_images,
        ),
        patch=vision.patch_size,
        merge=vision.merge,
        tile=TILE,
        pixels=(least, most),
        resample=int(processor["resample"]),
        image_size=fixed_size(processing),
        vision_start_id=config.vision_start_token_id,
        grid_positions=processing.grid_positions,
    )
    model = Qwen2VlConfig(text=text, vision=vision, pixels=hf_config.pixels(processor))
    differences = caveats(processing) + _position_caveats(processing)
    return Backbone(
        folder=folder,
        dimension=text.hidden_size,
        make_model=MakeModel(Qwen2Vl, model),
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
        config_changes={},
        image_processor_changes=spelled(processor, processing.pixels) if processing.pixels else {},
        loads_in_transformers=not differences,
        caveats=differences,
        text_only=TextOnly(
            make_model=MakeLanguageModel(MakeModel(Qwen2Vl, model)),
            unread=(r"visual\..*",),
        ),
        lm_head=LmHead(
            make_model=lambda head: MakeModel(
                Qwen2Vl, dataclasses.replace(model, text=dataclasses.replace(text, lm_head=head))
            ),
            name="lm_head.weight",
            path="language_model.lm_head",
            tied=hf_config.ties_head(config),
            preprocess=lambda prompt: dataclasses.replace(preprocess, prompt=prompt),
            unshared=text.unshared,
        ),
        instruction="{instruction}\n",
    )


def _position_caveats(processing: Processing) -> tuple[str, ...]:
    if processing.prompt == "chat" or processing.grid_positions:
        return ()
    return (
        "Image tokens have plain positions on all three axes, as all tokens; transformers gives"
        " them rows and columns, unless it is handed `position_ids`.",
    )


def names(vision: QwenVisionConfig) -> weights.Names:
    """The spelling of published checkpoints.

    Since transformers 4.52 both halves lie in `model`, which is left out if there is no head.
    Before, a model without head was the language model alone.
    """
    patch = vision.patch_size
    return weights.Names(
        prefixes=(
            ("visual.merger.linear_1.", "visual.merger.mlp.0."),
            ("visual.merger.linear_2.", "visual.merger.mlp.2."),
            ("visual.", "visual."),
            ("language_model.", "model."),
        ),
        aliases=(
            (r"^model\.visual\.", "visual."),
            (r"^(?:model\.)?language_model\.", "model."),
            (r"^(embed_tokens|layers|norm)\.", r"model.\1."),
        ),
        modules=(
            (("visual.", "model.visual."), ("model.", "model.language_model."), ("", "")),
            (("visual.", "visual."), ("model.", "language_model.")),
            weights.AS_PUBLISHED,
            (("model.", ""),),
        ),
        unused=(r"lm_head\.weight",),
        convolution=("visual.patch_embed.proj.kernel", (3, vision.frames, patch, patch)),
    )


def tower_config(config: "PretrainedConfig", text: DecoderConfig) -> QwenVisionConfig:
    """The vision tower, checked to fit its decoder.

    Raises:
      ValueError: it does not, or asks for what this family does not do.
    """
    vision = config.vision_config
    hf_config.require("vision_config.model_type", vision.model_type, ("qwen2_vl_vision",))
    hf_config.require("vision_config.hidden_act", vision.hidden_act, tuple(ACTIVATIONS))
    hf_config.require("vision_config.in_channels", vision.in_channels, (3,))
    hf_config.require("vision_config.hidden_size", vision.hidden_size, (text.hidden_size,))
    hf_config.require_bidirectional_tower(vision)
    rope_type = vision.rope_parameters["rope_type"]
    hf_config.require("vision_config.rope_parameters.rope_type", rope_type, ("axial",))
    hf_config.require_mrope(config.text_config, text.head_dim)
    require_whole_tokens(vision.spatial_merge_size, TILE)
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


def require_whole_tokens(merge: int, tile: int) -> None:
    """Raises ValueError unless tokens of merge x merge patches fill a tile."""
    if tile % merge**2:
        raise ValueError(
            f"config.json: vision_config.spatial_merge_size is {merge}; tokens of its square of"
            f" patches do not fill a tile of {tile}"
        )


def open_image_processor(
    folder: pathlib.Path, vision: QwenVisionConfig
) -> tuple[pathlib.Path, dict[str, Any]]:
    """The settings of the folder's image processor, checked to ask for what is done here.

    Raises:
      ValueError: they are missing, or ask for something else.
    """
    file, settings = image_processor_config.read(folder, DEFAULTS, types=TYPES)
    expected = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.frames,
        "merge_size": vision.merge,
    }
    for key, value in expected.items():
        if settings[key] != value:
            raise ValueError(f"{file}: {key} is {settings[key]!r}, but it must be {value!r}")
    return file, settings


def own_pixels(file: pathlib.Path, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Least and most pixels that a checkpoint's image processor asks for."""
    area = image_processor_config.area(settings)
    if area is None:
        raise ValueError(f"{file}: size is {settings['size']}; it must have {LEAST!r} and {MOST!r}")
    return area[LEAST], area[MOST]


def require_range(least: int, most: int, where: str) -> None:
    """Raises ValueError, of pixels that `where` gives, unless they are a range."""
    if not 0 < least <= most:
        raise ValueError(
            f"{where} are {least} to {most}; they must be positive, and the least first"
        )


def spelled(settings: Mapping[str, Any], pixels: tuple[int, int]) -> dict[str, Any]:
    """The settings that make transformers take these pixels, in each spelling of the folder."""
    least, most = pixels
    changes: dict[str, Any] = {}
    if settings.get("size"):
        changes["size"] = {LEAST: least, MOST: most}
    if not changes or settings.get("min_pixels") or settings.get("max_pixels"):
        changes |= {"min_pixels": least, "max_pixels": most}
    return changes
