"""LLaVA folders in Hugging Face form: what LLaVA-NeXT and LLaVA-OneVision have in common."""

import pathlib
from typing import Any

from transformers import PretrainedConfig

from unime_jax.backbones.backbone import Backbone, TextOnly
from unime_jax.backbones.io import hf_config, weights
from unime_jax.backbones.llava import anyres
from unime_jax.backbones.llava.rows import LlavaPreprocessor
from unime_jax.backbones.preprocessing import image_processor_config
from unime_jax.backbones.preprocessing.processing import Processing, caveats, require_missing_images
from unime_jax.backbones.preprocessing.prompts import (
    MissingImages,
    Prompt,
    open_prompt,
    open_tokenizer,
)
from unime_jax.data.shapes import Layout
from unime_jax.models.layers import ACTIVATIONS
from unime_jax.models.llava import Llava, LlavaConfig
from unime_jax.models.vit import VisionConfig
from unime_jax.models.vlm import LanguageModel

DEFAULTS: dict[str, Any] = {  # of transformers' LlavaOnevisionImageProcessor
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "do_center_crop": False,
    "resample": 3,
    "rescale_factor": 1 / 255,
}


def open_folder(
    folder: pathlib.Path,
    config: PretrainedConfig,
    processing: Processing,
    *,
    text_types: tuple[str, ...],
    max_tiles: int | None,
    tiles_of_many: bool,
    missing_images: tuple[MissingImages, ...],
    image_processor: str,
    image_defaults: dict[str, Any],
    processor_config: dict[str, Any],
    max_length: int,
) -> Backbone:
    """What the LLaVA families have in common; the arguments are what they differ in.

    Raises:
      ValueError: the files contradict each other, or ask for what this code does not do.
    """
    require_missing_images(processing, *missing_images)
    tower = tower_config(config)
    backbone = assemble(
        folder,
        config,
        processing,
        tower=tower,
        prompt=open_prompt(
            folder,
            open_tokenizer(folder),
            image_token_id=config.image_token_index,
            vocab_size=config.text_config.vocab_size,
            style=processing.prompt,
            max_length=max_length,
            missing_images=processing.missing_images,
        ),
        processor=open_image_processor(
            folder, config, tower.image_size, types=(image_processor,), defaults=image_defaults
        ),
        tensor_names=names(config, tower),
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
    config: PretrainedConfig,
    processing: Processing,
    *,
    tower: VisionConfig,
    prompt: Prompt,
    processor: dict[str, Any],
    tensor_names: weights.Names,
    text_types: tuple[str, ...],
    max_tiles: int | None,
    tiles_of_many: bool,
    processor_config: dict[str, Any],
    max_length: int,
) -> Backbone:
    """A LLaVA of parts that have been read, `config` in Hugging Face form.

    Raises:
      ValueError: they contradict each other, or ask for what this code does not do.
    """
    hf_config.require("projector_hidden_act", config.projector_hidden_act, tuple(ACTIVATIONS))
    pinpoints = _pinpoints(folder, config, processing, tower.image_size)
    text = hf_config.decoder_config(
        config.text_config,
        model_types=text_types,
        max_length=max_length,
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
        image_size=processing.image_size,
        legacy=short_tiles if processing.legacy_padding else None,
    )
    changes = {"image_grid_pinpoints": pinpoints} if processing.pinpoints else {}
    processor_config = processor_config | {
        "image_token": prompt.image_token,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    return Backbone(
        folder=folder,
        dimension=text.hidden_size,
        make_model=lambda key: Llava(model, key=key),
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
        ),
        processing=processing,
        config_changes=changes,
        image_processor_changes=changes,
        processor_config=processor_config,
        loads_in_transformers=not caveats(processing),
        caveats=caveats(processing),
        text_only=TextOnly(
            make_model=lambda key: LanguageModel(Llava(model, key=key).language_model),
            unread=(r"(vision_tower|multi_modal_projector)\..*", "image_newline"),
        ),
    )


def names(config: PretrainedConfig, tower: VisionConfig) -> weights.Names:
    """The spelling of checkpoints in Hugging Face form.

    Published are the names of before transformers 4.52. Since then both halves lie in `model`,
    which is left out if there is no head; since 5, the tower has no `vision_model` in it. Adapters
    may have been trained on the language model alone.
    """
    patch = tower.patch_size
    unread = range(tower.num_layers, config.vision_config.num_hidden_layers)
    return weights.Names(
        prefixes=(
            ("language_model.", "language_model.model."),
            ("vision_tower.", "vision_tower.vision_model."),
            ("multi_modal_projector.", "multi_modal_projector."),
            ("image_newline", "image_newline"),
        ),
        aliases=(
            (r"^model\.(vision_tower|multi_modal_projector|image_newline|language_model)", r"\1"),
            (
                r"^(?:model\.|language_model\.)?(embed_tokens|layers|norm)\.",
                r"language_model.model.\1.",
            ),
            (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
            (r"^lm_head\.", "language_model.lm_head."),
        ),
        modules=(
            _modules("model.", "vision_tower."),
            _modules("", "vision_tower."),
            _modules("model.", "vision_tower.vision_model."),
            _modules("", "vision_tower.vision_model."),
            weights.AS_PUBLISHED,
            (("language_model.model.", ""),),
            (("language_model.", ""),),
        ),
        unused=(
            r"language_model\.lm_head\.weight",
            r"vision_tower\.vision_model\.head\..*",
            r".*\.(position_ids|inv_freq)",  # buffers that older versions saved
            *(rf"vision_tower\.vision_model\.encoder\.layers\.{layer}\..*" for layer in unread),
        ),
        convolution=("vision_tower.embeddings.patch_embedding.kernel", (3, patch, patch)),
    )


def _modules(model: str, tower: str) -> weights.Modules:
    """Modules since transformers 4.52, in `model` or without a head."""
    return (
        ("language_model.model.", f"{model}language_model."),
        *((("language_model.lm_head.", "lm_head."),) if model else ()),
        ("vision_tower.vision_model.", f"{model}{tower}"),
        ("multi_modal_projector.", f"{model}multi_modal_projector."),
        ("image_newline", f"{model}image_newline"),
    )


def tower_config(config: PretrainedConfig) -> VisionConfig:
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
    config: PretrainedConfig,
    tile: int,
    *,
    types: tuple[str, ...],
    defaults: dict[str, Any],
) -> dict[str, Any]:
    """The settings of the folder's image processor, checked to ask for what `anyres` does.

    `types` are transformers' classes for it, and `defaults` theirs.

    Raises:
      ValueError: they are missing, or ask for something else.
    """
    file, settings = image_processor_config.read(folder, defaults, types=types)

    def expect(key: str, found: object, expected: object) -> None:
        if found != expected:
            raise ValueError(f"{file}: {key} is {found!r}, but it must be {expected!r}")

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


def _pinpoints(
    folder: pathlib.Path, config: PretrainedConfig, processing: Processing, tile: int
) -> tuple[anyres.Size, ...]:
    own = tuple((int(h), int(w)) for h, w in config.image_grid_pinpoints)
    pinpoints = tuple((int(h), int(w)) for h, w in processing.pinpoints) or own
    if not pinpoints or any(h < 1 or w < 1 or h % tile or w % tile for h, w in pinpoints):
        where = f"{folder}/config.json: image_grid_pinpoints" if pinpoints == own else "pinpoints"
        raise ValueError(
            f"{where} are {pinpoints}; they must be multiples of vision_config.image_size, {tile}"
        )
    return pinpoints
