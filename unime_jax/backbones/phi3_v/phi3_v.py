"""Phi-3.5-Vision: a checkpoint in the form of its original code.

Nothing of that code is run: what it fixes beyond config.json is said here.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unime_jax.backbones.backbone import Backbone, MakeLanguageModel, MakeModel, TextOnly
from unime_jax.backbones.io import hf_config, weights
from unime_jax.backbones.phi3_v.numbered_prompt import open_numbered_prompt
from unime_jax.backbones.phi3_v.rows import Phi3VPreprocessor
from unime_jax.backbones.preprocessing import image_processor_config
from unime_jax.backbones.preprocessing.processing import Processing, caveats, require_missing_images
from unime_jax.data.shapes import Layout
from unime_jax.models.layers import ACTIVATIONS
from unime_jax.models.phi3_v import MERGE, Phi3V, Phi3VConfig
from unime_jax.models.vit import VisionConfig

if TYPE_CHECKING:
    from transformers import Phi3Config, PretrainedConfig

PROCESSING = Processing(prompt="raw", crops=4)  # VLM2Vec's and UniME's
POOLINGS = ("lasttoken",)

TOWER_FILE = "clip_vision_config.json"
TOWER: dict[str, Any] = {  # openai/clip-vit-large-patch14-336, which the original's code names
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "num_channels": 3,
}
TOWER_NAME = "openai/clip-vit-large-patch14-336"
EMBEDDING = {  # what `embd_layer` must say
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}
DEFAULTS = {  # of the original's Phi3VImageProcessor
    "num_crops": 1,
    "do_convert_rgb": True,
    "rescale_factor": 1 / 255,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
CAVEATS = (
    "transformers has no class for this model: it runs the code of the checkpoint that it was made"
    " from (`trust_remote_code=True`), whose *.py files must be copied beside config.json.",
    "That code chooses short or long rotary factors by the padded length of a whole batch, here it"
    " is by each row's own length; and it takes images in their order, whatever the numbers of"
    " their places in the text.",
)


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a checkpoint in the form of the original code.

    Raises:
      ValueError: the files contradict each other, or ask for what this family does not do.
    """
    require_missing_images(processing, "strip")
    if processing.resolution:
        raise ValueError(
            f"processing.resolution is {processing.resolution!r}, which VLM2Vec has for other "
            "families; Phi-3.5-Vision never resizes images first: processing.crops says how many "
            "crops they are cut into"
        )
    content = json.loads((folder / "config.json").read_text())  # as it is; `config` is reworded
    # The original's attention is causal whatever this says.
    hf_config.require("is_causal", content.get("is_causal", True), (True,))
    text = hf_config.decoder_config(
        text_config(content),
        model_types=("phi3",),
        max_length=max_length,
        final_norm=processing.final_norm,
    )
    vision, layers = tower_config(folder, content)
    processor = open_image_processor(folder)
    crops = int(processing.crops or processor["num_crops"])
    if crops < 1:
        raise ValueError(f"crops are {crops}; an image has at least one")
    model = Phi3VConfig(text=text, vision=vision, pixels=hf_config.pixels(processor))
    preprocess = Phi3VPreprocessor(
        prompt=open_numbered_prompt(
            folder,
            vocab_size=text.vocab_size,
            style=processing.prompt,
            max_length=max_length,
        ),
        tile=vision.image_size,
        patch=vision.patch_size,
        crops=crops,
        image_size=processing.image_size,
    )
    return Backbone(
        folder=folder,
        dimension=text.hidden_size,
        make_model=MakeModel(Phi3V, model),
        names=names(vision, layers),
        preprocess=preprocess,
        layout=Layout(
            axes=1,
            slots=1,
            patches=vision.side**2,
            patch_bytes=3 * vision.patch_size**2,
            positioned=True,
            vocabulary=text.vocab_size,
            table=(2, vision.side**2 // MERGE**2),
        ),
        processing=processing,
        image_processor_changes={"num_crops": crops},
        loads_in_transformers=False,
        caveats=caveats(processing) + CAVEATS,
        text_only=TextOnly(
            make_model=MakeLanguageModel(MakeModel(Phi3V, model)),
            unread=(r"model\.vision_embed_tokens\..*",),
        ),
        instruction="{instruction}\n",
    )


def text_config(content: Mapping[str, Any]) -> "Phi3Config":
    """The decoder's part of config.json, as transformers would have it of a Phi-3.

    Raises:
      ValueError: it asks for other rotary positions than Phi-3.5-Vision's, or has not one factor
        for every frequency.
    """
    from transformers import Phi3Config

    scaling = content.get("rope_scaling")
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling:
        kind = scaling.get("rope_type") or scaling.get("type")
        hf_config.require("rope_scaling.type", kind, ("su", "longrope"))
        head = content["hidden_size"] // content["num_attention_heads"]
        counts = [len(scaling[key]) for key in ("short_factor", "long_factor")]
        if counts != [head // 2] * 2:
            raise ValueError(
                f"config.json: rope_scaling has {counts[0]} short and {counts[1]} long factors;"
                f" heads of {head} need {head // 2} of each"
            )
        original = content["original_max_position_embeddings"]
        rope = {
            "rope_type": "longrope",
            "short_factor": scaling["short_factor"],
            "long_factor": scaling["long_factor"],
            "original_max_position_embeddings": original,
            "factor": content["max_position_embeddings"] / original,
        }
    keys = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "rms_norm_eps",
        "max_position_embeddings",
        "sliding_window",
    )
    return Phi3Config(
        **{key: content[key] for key in keys if key in content},
        original_max_position_embeddings=content.get("original_max_position_embeddings", 4096),
        rope_parameters=rope | {"rope_theta": content.get("rope_theta", 10000.0)},
    )


def tower_config(folder: pathlib.Path, content: Mapping[str, Any]) -> tuple[VisionConfig, int]:
    """The CLIP tower up to its last but one layer, whose patches are read, and all its layers.

    config.json names a published tower, whose sizes are `TOWER`; a folder may have another tower,
    described by a file `TOWER_FILE` in the form of CLIPVisionConfig.

    Raises:
      ValueError: another kind of tower, or features that are not made of it as here.
    """
    for key, value in EMBEDDING.items():
        hf_config.require(f"embd_layer.{key}", content["embd_layer"].get(key), (value,))
    processor = content["img_processor"]
    hf_config.require("img_processor.name", processor.get("name"), ("clip_vision_model",))
    hf_config.require("img_processor.layer_idx", processor.get("layer_idx", -2), (-2,))
    hf_config.require(
        "img_processor.type_feature", processor.get("type_feature", "patch"), ("patch",)
    )
    tower = dict(TOWER)
    if (folder / TOWER_FILE).exists():
        tower |= json.loads((folder / TOWER_FILE).read_text())
    else:
        name = processor.get("model_name", TOWER_NAME)
        hf_config.require("img_processor.model_name", name, (TOWER_NAME,))
    hf_config.require(
        "img_processor.image_dim_out", processor["image_dim_out"], (tower["hidden_size"],)
    )
    side = tower["image_size"] // tower["patch_size"]
    if tower["image_size"] % tower["patch_size"] or side % MERGE:
        raise ValueError(
            f"{TOWER_FILE}: patches of {tower['patch_size']} pixels, {MERGE} x {MERGE} a token, do"
            f" not fill a tile of {tower['image_size']}"
        )
    if tower["hidden_act"] not in ACTIVATIONS or tower["num_hidden_layers"] < 2:
        raise ValueError(
            f"{TOWER_FILE}: hidden_act is {tower['hidden_act']!r}, num_hidden_layers is"
            f" {tower['num_hidden_layers']}; supported: {', '.join(ACTIVATIONS)}, and from 2 on"
        )
    vision = VisionConfig(
        hidden_size=tower["hidden_size"],
        intermediate_size=tower["intermediate_size"],
        num_layers=tower["num_hidden_layers"] - 1,
        num_heads=tower["num_attention_heads"],
        image_size=tower["image_size"],
        patch_size=tower["patch_size"],
        layer_norm_eps=tower["layer_norm_eps"],
        hidden_act=tower["hidden_act"],
        class_token=True,
        pre_norm=True,
        patch_bias=False,
    )
    return vision, tower["num_hidden_layers"]


def names(vision: VisionConfig, layers: int) -> weights.Names:
    """The spelling of published checkpoints, whose decoder has fused layers.

    Args:
      vision: the tower as far as it is read.
      layers: all of the checkpoint's tower.
    """
    embedding, tower = "model.vision_embed_tokens", "model.vision_embed_tokens.img_processor"
    unread = range(vision.num_layers, layers)
    patch = vision.patch_size
    return weights.Names(
        prefixes=(
            ("vision_tower.", f"{tower}.vision_model."),
            ("multi_modal_projector.linear_1.", f"{embedding}.img_projection.0."),
            ("multi_modal_projector.linear_2.", f"{embedding}.img_projection.2."),
            ("sub_GN", f"{embedding}.sub_GN"),
            ("glb_GN", f"{embedding}.glb_GN"),
            ("language_model.", "model."),
        ),
        aliases=(
            (r"^(embed_tokens|layers|norm|vision_embed_tokens)\.", r"model.\1."),  # without head
            (r"^model\.vision_embed_tokens\.wte\.", "model.embed_tokens."),
        ),
        modules=(weights.AS_PUBLISHED, (("model.", ""),)),
        unused=(
            r"lm_head\.weight",
            r".*\.(position_ids|inv_freq)",  # buffers that older versions saved
            *(
                rf"{re.escape(tower)}\.vision_model\.encoder\.layers\.{layer}\..*"
                for layer in unread
            ),
        ),
        convolution=("vision_tower.embeddings.patch_embedding.kernel", (3, patch, patch)),
        fused=(
            weights.Fused(
                "language_model.layers.self_attn.", "qkv_proj", ("q_proj", "k_proj", "v_proj")
            ),
            weights.Fused("language_model.layers.mlp.", "gate_up_proj", ("gate_proj", "up_proj")),
        ),
        shared=("model.embed_tokens.weight",),
    )


def open_image_processor(folder: pathlib.Path) -> dict[str, Any]:
    """The settings of the folder's image processor, checked to ask for what is done here.

    Raises:
      ValueError: they are missing, or ask for something else.
    """
    file, settings = image_processor_config.read(folder, DEFAULTS, types=None)
    scale = settings["rescale_factor"]
    if scale != DEFAULTS["rescale_factor"]:
        raise ValueError(
            f"{file}: rescale_factor is {scale}; the original's code does not read it and takes"
            " 1/255, so delete it"
        )
    if not settings["do_convert_rgb"]:
        raise ValueError(f"{file}: do_convert_rgb is False, but it must be True")
    return settings
