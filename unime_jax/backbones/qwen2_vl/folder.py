"""A folder of Qwen2-VL's form: image processor, prompt, and names of tensors, for its families.

What their towers are, and what config.json says of them, is in `qwen2_vl`, `qwen2_5_vl` and
`qwen3_vl`.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from unime_jax.backbones.backbone import Backbone, LmHead, MakeLanguageModel, MakeModel, TextOnly
from unime_jax.backbones.io import hf_config, weights
from unime_jax.backbones.preprocessing.open_prompts import open_prompt, open_tokenizer
from unime_jax.backbones.preprocessing.processing import (
    Processing,
    caveats,
    fixed_size,
    require_missing_images,
)
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.backbones.qwen2_vl import processors
from unime_jax.backbones.qwen2_vl.dynamic_resolution import largest_area
from unime_jax.backbones.qwen2_vl.processors import QWEN2_VL, Clips
from unime_jax.backbones.qwen2_vl.rows import Qwen2VlPreprocessor
from unime_jax.data.shapes import Layout
from unime_jax.models.decoder import DecoderConfig
from unime_jax.models.layers import ACTIVATIONS
from unime_jax.models.qwen2_vl import Qwen2Vl, Qwen2VlConfig
from unime_jax.models.qwen_vit import QwenVisionConfig
from unime_jax.models.vlm import Vlm

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclasses.dataclass(frozen=True)
class Form:
    """What differs between families whose folders are of this form.

    Attributes:
      model: class of the model, of a `Qwen2VlConfig`.
      names: of tensors.
      unread: regexes of the published names of the tower's tensors.
      open_prompt: `open_prompts.open_prompt`, or one that knows more styles.
      gridded: whether images have rows and columns as positions whatever `processing` says.
      clips: how they are seen.
    """

    model: Callable[..., Vlm]
    names: weights.Names
    unread: tuple[str, ...]
    open_prompt: Callable[..., Prompt] = open_prompt
    gridded: bool = False
    clips: Clips = QWEN2_VL


def decoder_config(
    config: "PretrainedConfig", model_type: str, processing: Processing, *, max_length: int
) -> DecoderConfig:
    """The decoder, whose section of config.json is of `model_type`.

    Raises:
      ValueError: it is of another type, or asks for what is not done here.
    """
    return hf_config.decoder_config(
        config.text_config,
        model_types=(model_type,),
        max_length=max_length,
        final_norm=processing.final_norm,
        causal=hf_config.is_causal(config, outer=False),
    )


def open_family(
    folder: pathlib.Path,
    config: "PretrainedConfig",
    processing: Processing,
    *,
    max_length: int,
    text: DecoderConfig,
    vision: QwenVisionConfig,
    tile: int,
    form: Form | None = None,
    window: int = 0,
    tokens_per_second: float = 0.0,
) -> Backbone:
    """Opens a checkpoint in Hugging Face form.

    Args:
      folder: of the checkpoint.
      config: its config.json.
      processing: how items become rows.
      max_length: the most tokens of a row.
      text: the decoder.
      vision: the tower, which fits it.
      tile: patches of a tile.
      form: what differs where it is not Qwen2-VL's; None: nothing.
      window: tokens along a side of the tower's windows; 0: it has none.
      tokens_per_second: steps of a clip's time axis; 0: its frames are numbered.

    Raises:
      ValueError: the files contradict each other, or ask for what is not done here.
    """
    require_missing_images(processing, "strip", "token")
    if tile % vision.merge**2:
        raise ValueError(
            f"config.json: vision_config.spatial_merge_size is {vision.merge}; tokens of its square"
            f" of patches do not fill a tile of {tile}"
        )
    form = form or Form(Qwen2Vl, names(vision), unread=(r"visual\..*",))
    file, processor = processors.open_image_processor(folder, vision)
    own = processors.own_pixels(file, processor)
    clips, video_processor = processors.open_clips(
        folder, vision, processor, form.clips, processing
    )
    least, most = processing.pixels or own
    if not 0 < least <= most:
        where = "processing.pixels" if processing.pixels else f"{file}: its pixels"
        raise ValueError(
            f"{where} are {least} to {most}; they must be positive, and the least first"
        )
    tokenizer, joint = open_tokenizer(folder), clips.joint
    # The time steps of a clip that are images of their own in the prompt take the place of all
    # three tokens, as in the models' training; transformers 5.24 leaves the outer ones around them.
    place = [config.vision_start_token_id, config.video_token_id, config.vision_end_token_id]
    preprocess = Qwen2VlPreprocessor(
        prompt=form.open_prompt(
            folder,
            tokenizer,
            image_token_id=config.image_token_id,
            vocab_size=text.vocab_size,
            style=processing.prompt,
            max_length=max_length,
            missing_images=processing.missing_images,
            clip_token_id=config.video_token_id,
            clip_place="".join(tokenizer.convert_ids_to_tokens(place)) if joint else "",
        ),
        patch=vision.patch_size,
        merge=vision.merge,
        tile=tile,
        pixels=(least, most),
        resample=int(processor["resample"]),
        image_size=fixed_size(processing),
        clips=clips,
        vision_start_id=config.vision_start_token_id,
        grid_positions=processing.grid_positions or form.gridded,
        window=window,
        tokens_per_second=tokens_per_second,
    )
    side = vision.patch_size * vision.merge
    longest = max(largest_area(side, least, most), clips.largest_area(side))
    vision = dataclasses.replace(vision, longest=longest // vision.patch_size**2)
    model = Qwen2VlConfig(text=text, vision=vision, pixels=hf_config.pixels(processor))
    differences = caveats(processing) + (() if form.gridded else _position_caveats(processing))
    return Backbone(
        folder=folder,
        dimension=text.hidden_size,
        make_model=MakeModel(form.model, model),
        names=form.names,
        preprocess=preprocess,
        layout=Layout(
            axes=3,
            slots=1,
            patches=tile,
            patch_bytes=3 * vision.patch_size**2,
            frames=vision.frames,
            positioned=True,
            vocabulary=text.vocab_size,
            table=(0, tile // vision.merge**2),
        ),
        processing=processing,
        config_changes={},
        image_processor_changes=processors.spelled(processor, processing.pixels)
        if processing.pixels
        else {},
        video_processor=video_processor,
        loads_in_transformers=not differences,
        caveats=differences,
        text_only=TextOnly(
            make_model=MakeLanguageModel(MakeModel(form.model, model)),
            unread=form.unread,
        ),
        lm_head=LmHead(
            make_model=lambda head: MakeModel(
                form.model, dataclasses.replace(model, text=dataclasses.replace(text, lm_head=head))
            ),
            name="lm_head.weight",
            path="language_model.lm_head",
            tied=hf_config.ties_head(config),
            preprocess=lambda prompt: dataclasses.replace(preprocess, prompt=prompt),
            unshared=text.unshared,
        ),
        # A system turn ends itself.
        instruction="{instruction}" if processing.prompt == "system" else "{instruction}\n",
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


def require_sections(config: "PretrainedConfig", text: DecoderConfig) -> None:
    """Refuses sections of M-RoPE that are not half a head with a ValueError."""
    sections = config.text_config.rope_parameters.get("mrope_section", ())
    if len(sections) != 3 or 2 * sum(sections) != text.head_dim:
        raise ValueError(
            "config.json: mrope_section must be three numbers that add up to half a head,"
            f" {text.head_dim // 2}, and is {list(sections)}"
        )


def require_tower(vision: "PretrainedConfig", model_type: str) -> None:
    """Refuses a vision_config that asks for what neither family does with a ValueError."""
    hf_config.require("vision_config.model_type", vision.model_type, (model_type,))
    hf_config.require("vision_config.hidden_act", vision.hidden_act, tuple(ACTIVATIONS))
    hf_config.require("vision_config.in_channels", vision.in_channels, (3,))
    hf_config.require_bidirectional_tower(vision)
    rope_type = vision.rope_parameters["rope_type"]
    hf_config.require("vision_config.rope_parameters.rope_type", rope_type, ("axial",))
