"""LLaVA folders in Hugging Face form, opened for LLaVA-NeXT and LLaVA-OneVision alike."""

import dataclasses
import math
import pathlib
from typing import TYPE_CHECKING, Any

from unime_jax.backbones.backbone import Backbone, LmHead, MakeLanguageModel, MakeModel, TextOnly
from unime_jax.backbones.io import hf_config, weights
from unime_jax.backbones.llava import anyres, llava_config, llava_names
from unime_jax.backbones.llava.rows import Clips, LlavaPreprocessor
from unime_jax.backbones.preprocessing import image_processor_config
from unime_jax.backbones.preprocessing.images import NO_CLIPS
from unime_jax.backbones.preprocessing.open_prompts import open_prompt, open_tokenizer
from unime_jax.backbones.preprocessing.processing import (
    Processing,
    caveats,
    fixed_size,
    require_missing_images,
)
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.data.settings import MissingImages
from unime_jax.data.shapes import Layout
from unime_jax.models.layers import ACTIVATIONS
from unime_jax.models.llava import Llava, LlavaConfig
from unime_jax.models.vit import VisionConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

CAVEATS = (
    "Of a clip, transformers has one newline at its end; here there is one after every row of every"
    " frame.",
)


def open_folder(
    folder: pathlib.Path,
    config: "PretrainedConfig",
    processing: Processing,
    *,
    text_types: tuple[str, ...],
    max_tiles: int | None,
    tiles_of_many: bool,
    missing_images: tuple[MissingImages, ...],
    image_processor: str,
    image_defaults: dict[str, Any],
    takes_clips: bool,
    processor_config: dict[str, Any],
    max_length: int,
) -> Backbone:
    """Opens a checkpoint in Hugging Face form; the keyword arguments differ between the families.

    Raises:
      ValueError: the files contradict each other, or ask for what this code does not do.
    """
    require_missing_images(processing, *missing_images)
    tower = llava_config.tower_config(config)
    tokenizer = open_tokenizer(folder)
    vocab_size = config.text_config.vocab_size
    processor = llava_config.open_image_processor(
        folder, config, tower.image_size, types=(image_processor,), defaults=image_defaults
    )
    clips: Clips | str = NO_CLIPS
    if takes_clips:
        clips = llava_config.clips_of_folder(folder, processing, processor)
    backbone = assemble(
        folder,
        config,
        processing,
        tower=tower,
        prompt=open_prompt(
            folder,
            tokenizer,
            image_token_id=config.image_token_index,
            vocab_size=vocab_size,
            style=processing.prompt,
            max_length=max_length,
            missing_images=processing.missing_images,
            clip_token_id=_clip_token(config, tokenizer, vocab_size) if takes_clips else None,
        ),
        processor=processor,
        clips=clips,
        tensor_names=llava_names.names(config, tower),
        text_types=text_types,
        max_tiles=max_tiles,
        tiles_of_many=tiles_of_many,
        processor_config=processor_config,
        max_length=max_length,
    )
    image_processor_config.check_processor(folder, backbone.processor_config)
    return backbone


def assemble(
    folder: pathlib.Path,
    config: "PretrainedConfig",
    processing: Processing,
    *,
    tower: VisionConfig,
    prompt: Prompt,
    processor: dict[str, Any],
    clips: Clips | str,
    tensor_names: weights.Names,
    text_types: tuple[str, ...],
    max_tiles: int | None,
    tiles_of_many: bool,
    processor_config: dict[str, Any],
    max_length: int,
) -> Backbone:
    """Backbone made of parts that have been read, `config` in Hugging Face form.

    Raises:
      ValueError: they contradict each other, or ask for what this code does not do.
    """
    hf_config.require("projector_hidden_act", config.projector_hidden_act, tuple(ACTIVATIONS))
    pinpoints = llava_config.pinpoints(folder, config, processing, tower.image_size)
    text = hf_config.decoder_config(
        config.text_config,
        model_types=text_types,
        max_length=max_length,
        final_norm=processing.final_norm,
        causal=hf_config.is_causal(config, outer=True),
    )
    model = LlavaConfig(
        text=text,
        vision=tower,
        projector_act=config.projector_hidden_act,
        projector_bias=config.multimodal_projector_bias,
        pixels=hf_config.pixels(processor),
    )
    red, green, blue = processor["image_mean"]
    short_tiles: anyres.Legacy = "crop" if processor["size"].get("shortest_edge") else "stretch"
    preprocess = LlavaPreprocessor(
        prompt=prompt,
        pinpoints=pinpoints,
        tile=tower.image_size,
        patch=tower.patch_size,
        max_tiles=max_tiles,
        tiles_of_many=tiles_of_many,
        background=(int(red * 255), int(green * 255), int(blue * 255)),
        resample=int(processor["resample"]),
        image_size=fixed_size(processing),
        legacy=short_tiles if processing.legacy_padding else None,
        clips=clips,
    )
    changes = {"image_grid_pinpoints": pinpoints} if processing.pinpoints else {}
    processor_config = processor_config | {
        "image_token": prompt.image_token,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    return Backbone(
        folder=folder,
        dimension=text.hidden_size,
        make_model=MakeModel(Llava, model),
        names=tensor_names,
        preprocess=preprocess,
        layout=Layout(
            axes=1,
            slots=preprocess.slots_per_token,
            blended=preprocess.slots_per_token > 1,
            patches=tower.side**2,
            patch_bytes=3 * tower.patch_size**2,
            positioned=processing.missing_images == "image",
            vocabulary=text.vocab_size,
            table=(1, tower.side**2),
            unpadded=True,
            clip_slots=0 if isinstance(clips, str) else anyres.BLEND,
            frame_tokens=0 if isinstance(clips, str) else math.ceil(tower.side / 2) ** 2,
        ),
        processing=processing,
        config_changes=changes,
        image_processor_changes=changes,
        processor_config=processor_config,
        loads_in_transformers=not caveats(processing),
        caveats=caveats(processing) + (CAVEATS if processing.clip_newlines == "grid" else ()),
        text_only=TextOnly(
            make_model=MakeLanguageModel(MakeModel(Llava, model)),
            unread=(r"(vision_tower|multi_modal_projector)\..*", "image_newline"),
        ),
        lm_head=LmHead(
            make_model=lambda head: MakeModel(
                Llava, dataclasses.replace(model, text=dataclasses.replace(text, lm_head=head))
            ),
            name="language_model.lm_head.weight",
            path="language_model.lm_head",
            tied=hf_config.ties_head(config),
            preprocess=lambda prompt: dataclasses.replace(preprocess, prompt=prompt),
            unshared=text.unshared,
        ),
        instruction="{instruction}\n",
    )


def _clip_token(
    config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase", vocab_size: int
) -> int:
    """The token of clips, or that of images where the folder has none."""
    own: int = config.video_token_index
    known = own in tokenizer.get_added_vocab().values() and own < vocab_size
    return own if known else config.image_token_index
