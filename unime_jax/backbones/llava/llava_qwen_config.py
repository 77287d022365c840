"""config.json of LLaVE's original code base in Hugging Face form, that of LLaVA-OneVision.

It names the vision tower and has no sizes of it: the published ones lie here.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unime_jax.backbones.io.hf_config import require
from unime_jax.backbones.llava import llava_config
from unime_jax.backbones.llava.rows import Clips
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.data.settings import ClipNewlines

if TYPE_CHECKING:
    from transformers import PretrainedConfig, SiglipVisionConfig

TOWER_FILE = "siglip_vision_config.json"  # of a folder whose tower is not a published one
# As published; the code base deletes the last layer and reads what the one before it gives.
TOWERS: dict[str, dict[str, Any]] = {
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
}
FPS = 3.0  # frames of a clip that are looked at in a second, before there are too many
NEWLINES: dict[str, ClipNewlines] = {"grid": "grid", "one_token": "one"}
TEXT_KEYS = (  # of config.json that are the decoder's
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "is_causal",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
)
REQUIRED = (
    "image_aspect_ratio",
    "image_grid_pinpoints",
    "mm_hidden_size",
    "mm_patch_merge_type",
    "mm_projector_type",
    "mm_vision_tower",
    "vocab_size",
)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """config.json as it is, without what transformers may make of it.

    Raises:
      ValueError: a key is missing that all of these checkpoints have.
    """
    own: dict[str, Any] = json.loads((folder / "config.json").read_text())
    missing = [key for key in REQUIRED if key not in own]
    if missing:
        raise ValueError(f"{folder}/config.json lacks {', '.join(missing)}")
    return own


def convert_config(
    folder: pathlib.Path,
    own: Mapping[str, Any],
    image_token_id: int,
    video_token_id: int | None,
) -> "PretrainedConfig":
    """The configuration of the original code base in Hugging Face form.

    Raises:
      ValueError: it asks for what is not done here.
    """
    from transformers import LlavaOnevisionConfig, Qwen2Config

    require("mm_projector_type", own["mm_projector_type"], ("mlp2x_gelu",))
    require("mm_patch_merge_type", own["mm_patch_merge_type"], ("spatial_unpad",))
    require("mm_use_im_start_end", own.get("mm_use_im_start_end", False), (False,))
    aspect = own["image_aspect_ratio"]
    if not re.fullmatch(r"anyres_max_[1-9]\d*", aspect):
        raise ValueError(
            f"{folder}/config.json: image_aspect_ratio is {aspect!r};"
            " only 'anyres_max_<number>' is supported"
        )
    vision = _tower(folder, own["mm_vision_tower"])
    tile: Any = vision.image_size
    tied = own.get("tie_word_embeddings", False)
    return LlavaOnevisionConfig(
        architectures=["LlavaOnevisionForConditionalGeneration"],
        text_config=Qwen2Config(**{key: own[key] for key in TEXT_KEYS if key in own}),
        vision_config=vision,
        image_token_index=image_token_id,
        video_token_index=-1 if video_token_id is None else video_token_id,
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        vision_aspect_ratio=aspect,
        image_grid_pinpoints=_pinpoints(folder, own["image_grid_pinpoints"], tile),
        tie_word_embeddings=tied,
    )


def clips(own: Mapping[str, Any], processing: Processing) -> tuple[Processing, Clips | str]:
    """The processing with what config.json says of clips, and how they are seen, or why not.

    Keys that are of clips alone do not keep a checkpoint from being opened.
    """
    position = own.get("mm_newline_position", "one_token")  # as of code that does not save it
    processing = dataclasses.replace(
        processing,
        fps=processing.fps or FPS,
        clip_newlines=processing.clip_newlines or NEWLINES.get(position),
    )
    if processing.clip_newlines is None:
        return processing, (
            f"this model takes none: mm_newline_position is {position!r} in its config.json, and"
            " 'grid' and 'one_token' are supported; processing.clip_newlines overrules it"
        )
    for key, supported in (("mm_spatial_pool_mode", "bilinear"), ("add_faster_video", False)):
        if own.get(key, supported) != supported:
            return processing, (
                f"this model takes none: {key} is {own[key]!r} in its config.json, and only"
                f" {supported!r} is supported"
            )
    return processing, llava_config.clips(processing)


def _tower(folder: pathlib.Path, name: str) -> "SiglipVisionConfig":
    """The tower without the layer that is deleted."""
    from transformers import SiglipVisionConfig

    file = folder / TOWER_FILE
    published = TOWERS.get(pathlib.PurePath(name).name)
    sizes = json.loads(file.read_text()) if file.exists() else published
    if sizes is None:
        raise ValueError(
            f"{folder}/config.json: mm_vision_tower is {name!r}, whose sizes are not known here;"
            f" supported: {', '.join(TOWERS)}. For another SigLIP, put its vision_config into"
            f" {TOWER_FILE}."
        )
    return SiglipVisionConfig(
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_hidden_layers=sizes["num_hidden_layers"] - 1,
        num_attention_heads=sizes["num_attention_heads"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        hidden_act=sizes.get("hidden_act", "gelu_pytorch_tanh"),
        layer_norm_eps=sizes.get("layer_norm_eps", 1e-6),
        vision_use_head=False,
    )


def _pinpoints(folder: pathlib.Path, given: Any, tile: int) -> list[list[int]]:
    """Canvases (height, width) of a list of (width, height), or of "(1x1),...,(2x2)" in tiles."""
    if not isinstance(given, str):
        return [[int(height), int(width)] for width, height in given]
    corners = [(int(w), int(h)) for w, h in re.findall(r"\((\d+)x(\d+)\)", given)]
    if not corners:
        raise ValueError(f"{folder}/config.json: image_grid_pinpoints {given!r} names no grids")
    (first_width, first_height), (last_width, last_height) = corners[0], corners[-1]
    return [
        [height * tile, width * tile]
        for width in range(first_width, last_width + 1)
        for height in range(first_height, last_height + 1)
    ]
