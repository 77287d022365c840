"""CLIP and SigLIP folders, opened: towers, image processor, names of tensors."""

import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from unime_jax.backbones.backbone import Backbone, MakeModel
from unime_jax.backbones.dual_encoder.pair_prompt import PairPrompt
from unime_jax.backbones.dual_encoder.rows import PairPreprocessor
from unime_jax.backbones.dual_encoder.tiles import Flexible, Square
from unime_jax.backbones.io import hf_config
from unime_jax.backbones.io.names import AS_PUBLISHED, Names
from unime_jax.backbones.preprocessing import image_processor_config
from unime_jax.backbones.preprocessing.processing import Processing, caveats
from unime_jax.data.shapes import Layout
from unime_jax.models.dual_encoder import DualEncoder, DualEncoderConfig, TextConfig, TextPooling
from unime_jax.models.layers import ACTIVATIONS
from unime_jax.models.vit import VisionConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = Processing(prompt="raw")
POOLINGS = ()  # the model pools itself


def names(patch: int, *, flexible: bool) -> Names:
    """Names of the tensors, which are those of the parameters."""
    return Names(
        prefixes=(("", ""),),
        # transformers' class of one tower with its projection has the same modules.
        aliases=((r"^(?:clip|siglip)\.", ""),),
        modules=(AS_PUBLISHED,),
        unused=("logit_scale", "logit_bias", r".*\.position_ids"),
        # Of images of any aspect it is a linear layer.
        convolution=("", ())
        if flexible
        else ("vision_model.embeddings.patch_embedding.kernel", (3, patch, patch)),
    )


def assemble(
    folder: pathlib.Path,
    processing: Processing,
    *,
    text: TextConfig,
    vision: VisionConfig,
    dimension: int,
    siglip: bool,
    prompt: PairPrompt,
    tile: Square | Flexible,
    image_processor: dict[str, Any],
    convert: Callable[[pathlib.Path], None] | None = None,
) -> Backbone:
    """Backbone made of parts that have been read.

    Args:
      tile: how an image becomes one.
      image_processor: settings of the folder's; those of the pixels are used.
      convert: see `Backbone`.
    """
    prompt.check_tokenizer(folder)
    model = DualEncoderConfig(
        text,
        vision,
        dimension,
        siglip,
        hf_config.pixels(image_processor),
        flexible=isinstance(tile, Flexible),
    )
    return Backbone(
        folder=folder,
        dimension=dimension,
        make_model=MakeModel(DualEncoder, model),
        names=names(vision.patch_size, flexible=model.flexible),
        preprocess=PairPreprocessor(prompt, tile, processing.image_size),
        layout=Layout(
            patches=tile.patches,
            patch_bytes=3 * vision.patch_size**2,
            positioned=True,
            vocabulary=text.vocab_size,
            learned_positions=text.max_positions,
            separate=True,
        ),
        processing=processing,
        loads_in_transformers=not caveats(processing),
        caveats=caveats(processing),
        convert=convert,
    )


def check_processing(folder: pathlib.Path, processing: Processing) -> None:
    """Raises ValueError for a choice that a dual encoder does not have."""
    own = Processing(prompt="raw", image_size=processing.image_size)
    if processing != own:
        raise ValueError(
            f"{folder} embeds texts and images apart, so of processing only image_size can be"
            f" chosen: give {own}, not {processing}"
        )


def text_config(text: "PretrainedConfig", *, causal: bool, pooling: TextPooling) -> TextConfig:
    """Text tower of a text_config.

    Raises:
      ValueError: it asks for something unsupported.
    """
    hf_config.require("text_config.hidden_act", text.hidden_act, tuple(ACTIVATIONS))
    return TextConfig(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        layer_norm_eps=text.layer_norm_eps,
        hidden_act=text.hidden_act,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
        causal=causal,
        pooling=pooling,
    )


def vision_config(vision: "PretrainedConfig", *, clip: bool) -> VisionConfig:
    """Image tower of a vision_config.

    Raises:
      ValueError: it asks for something unsupported.
    """
    hf_config.require("vision_config.hidden_act", vision.hidden_act, tuple(ACTIVATIONS))
    hf_config.require("vision_config.num_channels", vision.num_channels, (3,))
    hf_config.require_bidirectional_tower(vision)
    patch = _number(vision, "patch_size")
    # Of images of any aspect: a grid of positions, to be resized.
    flexible = vision.model_type == "siglip2_vision_model"
    side = math.isqrt(_number(vision, "num_patches")) * patch if flexible else None
    return VisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_layers=vision.num_hidden_layers,
        num_heads=vision.num_attention_heads,
        layer_norm_eps=vision.layer_norm_eps,
        hidden_act=vision.hidden_act,
        image_size=_number(vision, "image_size") if side is None else side,
        patch_size=patch,
        class_token=clip,
        pre_norm=clip,
        patch_bias=not clip,
    )


def _number(vision: "PretrainedConfig", key: str) -> int:
    value = getattr(vision, key)
    if not isinstance(value, int):
        raise ValueError(f"config.json: vision_config.{key} is {value!r}; it must be a number")
    return value


def open_square(
    folder: pathlib.Path, vision: VisionConfig, *, types: tuple[str, ...], defaults: dict[str, Any]
) -> tuple[Square, dict[str, Any]]:
    """The square tile that the folder's image processor makes of an image, and its settings.

    Arguments and exceptions are those of `open_image_processor`.
    """
    settings = open_image_processor(folder, vision.image_size, types=types, defaults=defaults)
    edge, resample = settings["size"].get("shortest_edge"), int(settings["resample"])
    return Square(vision.image_size, vision.patch_size, edge, resample), settings


def open_image_processor(
    folder: pathlib.Path, tile: int, *, types: tuple[str, ...], defaults: dict[str, Any]
) -> dict[str, Any]:
    """Settings of the image processor, checked to make one tile of an image.

    Args:
      tile: pixels along its side.
      types: transformers' classes of it.
      defaults: values of a silent file.

    Raises:
      ValueError: they are missing, or ask for something else.
    """
    file, settings = image_processor_config.read(folder, defaults, types=types)

    def expect(key: str, value: object, expected: object) -> None:
        if value != expected:
            raise ValueError(f"{file}: {key} is {value!r}, but it must be {expected!r}")

    for key in ("do_resize", "do_rescale", "do_normalize"):  # images are RGB whatever it says
        expect(key, settings[key], True)
    size, square = dict(settings["size"]), {"height": tile, "width": tile}
    cropped = set(size) == {"shortest_edge"}
    if cropped:
        expect("do_center_crop", settings["do_center_crop"], True)
        if size["shortest_edge"] < tile:
            raise ValueError(f"{file}: size is {size}, less than vision_config.image_size, {tile}")
    else:
        expect("size", size, square)
    if cropped or settings["do_center_crop"]:  # harmless where it cuts nothing off
        expect("crop_size", settings.get("crop_size"), square)
    return settings
