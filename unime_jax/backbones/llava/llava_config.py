"""Settings of a LLaVA folder, checked: vision tower, image processor and canvases of tiles."""

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unime_jax.backbones.io import hf_config
from unime_jax.backbones.llava import anyres
from unime_jax.backbones.llava.rows import Clips
from unime_jax.backbones.preprocessing import image_processor_config, video_processor_config
from unime_jax.backbones.preprocessing.frame_sampling import Steps
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.models.layers import ACTIVATIONS
from unime_jax.models.vit import VisionConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DEFAULTS: dict[str, Any] = {  # of transformers' LlavaOnevisionImageProcessor
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "do_center_crop": False,
    "resample": 3,
    "rescale_factor": 1 / 255,
}

VIDEO_DEFAULTS: dict[str, Any] = DEFAULTS | {  # of its LlavaOnevisionVideoProcessor
    "do_center_crop": None,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"height": 384, "width": 384},
}
FRAMES = 1, 32  # of a clip, as the published models are evaluated


def tower_config(config: "PretrainedConfig") -> VisionConfig:
    """The CLIP or SigLIP tower of a LLaVA, up to the layer whose output is read.

    Raises:
      ValueError: another tower, or features that are not one layer's patches.
    """
    vision, layer = config.vision_config, config.vision_feature_layer
    types = ("clip_vision_model", "siglip_vision_model")
    hf_config.require("vision_config.model_type", vision.model_type, types)
    hf_config.require("vision_config.hidden_act", vision.hidden_act, tuple(ACTIVATIONS))
    clip = vision.model_type == "clip_vision_model"
    hf_config.require_bidirectional_tower(vision)
    if clip and getattr(config, "is_causal", None) is True:
        raise ValueError(
            "config.json: is_causal is True beside text_config, which transformers' default"
            " attention hands on to the CLIP tower, whose patches then see only those before them;"
            " delete it: the decoder is causal without it."
        )
    strategy = config.vision_feature_select_strategy
    expected = "default" if clip else "full"  # "default" drops the class token, SigLIP has none
    hf_config.require("vision_feature_select_strategy", strategy, (expected,))
    # Layer 0 is the embeddings' output, so -1 and num_hidden_layers are the last layer's.
    depth = vision.num_hidden_layers
    if not isinstance(layer, int) or not -depth <= layer <= depth or layer == 0:
        raise ValueError(
            f"config.json: vision_feature_layer is {layer!r}; it must be one layer of {depth}"
        )
    return VisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_layers=layer if layer > 0 else depth + 1 + layer,
        num_heads=vision.num_attention_heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        layer_norm_eps=vision.layer_norm_eps,
        hidden_act=vision.hidden_act,
        class_token=clip,
        pre_norm=clip,
        patch_bias=not clip,
    )


def open_image_processor(
    folder: pathlib.Path,
    config: "PretrainedConfig",
    tile: int,
    *,
    types: tuple[str, ...],
    defaults: dict[str, Any],
) -> dict[str, Any]:
    """Settings of the folder's image processor, checked to ask for what `anyres` does.

    `types` are transformers' classes of it, and `defaults` the values of a silent file.

    Raises:
      ValueError: they are missing, or ask for something else.
    """
    file, settings = image_processor_config.read(folder, defaults, types=types)

    def expect(key: str, value: object, expected: object) -> None:
        if value != expected:
            raise ValueError(f"{file}: {key} is {value!r}, but it must be {expected!r}")

    for key in ("image_grid_pinpoints", "size", "image_mean", "image_std"):
        if settings.get(key) is None:
            raise ValueError(f"{file}: {key} is missing; copy the file of the original checkpoint")
    expect(
        "image_grid_pinpoints",
        [list(pair) for pair in settings["image_grid_pinpoints"]],
        [list(pair) for pair in config.image_grid_pinpoints],
    )
    sides = [settings["size"].get(key) for key in ("height", "width", "shortest_edge")]
    expect("size", sorted({side for side in sides if side}), [tile])
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        expect(key, settings[key], True)
    if settings["do_center_crop"]:  # harmless where it cuts nothing off
        expect("crop_size", settings.get("crop_size"), {"height": tile, "width": tile})
    return settings


def pinpoints(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, tile: int
) -> tuple[anyres.Size, ...]:
    """Canvases of tiles, (height, width) in pixels: those of the run, else of the folder.

    Raises:
      ValueError: there are none, or they are no multiples of a tile.
    """
    own = tuple((int(h), int(w)) for h, w in config.image_grid_pinpoints)
    sizes = tuple((int(h), int(w)) for h, w in processing.pinpoints) or own
    if not sizes or any(h < 1 or w < 1 or h % tile or w % tile for h, w in sizes):
        where = f"{folder}/config.json: image_grid_pinpoints" if sizes == own else "pinpoints"
        raise ValueError(
            f"{where} are {sizes}; they must be multiples of vision_config.image_size, {tile}"
        )
    return sizes


def clips(processing: Processing) -> Clips:
    """How clips are seen where nothing forbids them.

    All frames are looked at, or so many a second as the run says, spread evenly if they are too
    many.
    """
    steps = Steps(processing.fps, *(processing.frames or FRAMES))
    return Clips(steps, processing.clip_newlines or "one")


def clips_of_folder(
    folder: pathlib.Path, processing: Processing, images: Mapping[str, Any]
) -> Clips | str:
    """As `clips`, or why the folder's frames cannot be had: their pixels are not those of images.

    `images` are the settings of its image processor.
    """
    file, own = video_processor_config.read(folder)
    video = VIDEO_DEFAULTS | own if own else images
    for key in ("image_mean", "image_std", "size", *DEFAULTS):
        if (video[key] or False) != (images[key] or False):
            return (
                f"this model takes none: {key} of frames is {video[key]!r} in {file.name}, and of"
                f" images {images[key]!r}, but all pixels are resized and normalised alike here"
            )
    return clips(processing)
