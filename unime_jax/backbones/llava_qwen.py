"""LLaVE's checkpoints as published: LLaVA-OneVision's model in the files of its original code base.

The folder is read as the LLaVA-OneVision in Hugging Face form that it is equal to, and exports are
written in that form. What the code base has in code lies here: the vision tower, the prompt and
the normalisation of pixels. Its video inputs are not supported.

Maps are unpadded as in transformers, whose rounding drops one more row or column of patches for
two sizes in 300 000 (792 x 748 pixels, for example).
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken
from transformers import (
    LlavaOnevisionConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from unime_jax.backbones import llava
from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.hf_config import require
from unime_jax.backbones.processing import Processing, require_orphans
from unime_jax.backbones.prompts import open_prompt, open_tokenizer

PROCESSING = Processing(prompt="verbatim")

IMAGE_TOKEN = "<image>"
TOWER_FILE = "siglip_vision_config.json"  # of a folder whose tower is not a published one
TOWERS = {  # as published; the code base deletes the last layer and reads the one before it
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
}
TEXT_KEYS = (  # of config.json that are the decoder's
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
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
OTHER_KEYS = (
    "image_aspect_ratio",
    "image_grid_pinpoints",
    "mm_hidden_size",
    "mm_patch_merge_type",
    "mm_projector_type",
    "mm_vision_tower",
    "vocab_size",
)
# The turn of the assistant is a line end; the line end after it is the token that is pooled.
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n\\n<|im_end|>\\n' }}"
)
ALIASES = (  # to LLaVA-OneVision's names
    (r"^model\.vision_tower\.vision_tower\.", "vision_tower."),
    (r"^model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"^model\.image_newline$", "image_newline"),
    (r"^model\.(embed_tokens|layers|norm)\.", r"language_model.model.\1."),
    (r"^lm_head\.", "language_model.lm_head."),
)


def open_folder(
    folder: pathlib.Path, config: PretrainedConfig, processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a checkpoint in the original form.

    Raises:
      ValueError: the files contradict each other, or ask for what this family does not do.
    """
    require_orphans(processing, "strip", "image")  # the image token has no embedding of its own
    # As it is in the file: transformers may have moved what it knows.
    own = json.loads((folder / "config.json").read_text())
    missing = [key for key in OTHER_KEYS if key not in own]
    if missing:
        raise ValueError(f"{folder}/config.json lacks {', '.join(missing)}")
    tokenizer = open_tokenizer(folder, PreTrainedTokenizerFast)
    converted = convert_config(folder, own, add_image_token(folder, tokenizer, own["vocab_size"]))
    tower = llava.tower_config(converted)
    require("mm_hidden_size", own["mm_hidden_size"], (tower.hidden_size,))
    names = dataclasses.replace(llava.names(converted, tower), aliases=ALIASES)
    backbone = llava.assemble(
        folder,
        converted,
        processing,
        tower=tower,
        prompt=open_prompt(
            folder,
            tokenizer,
            image_token_id=converted.image_token_index,
            style=processing.prompt,
            max_length=max_length,
            orphans=processing.orphans,
            template=TEMPLATE,
        ),
        processor=image_processor(converted),
        tensor_names=names,
        text_types=("qwen2",),
        max_tiles=int(converted.vision_aspect_ratio.removeprefix("anyres_max_")),
        tiles_of_many=False,
        processor_config={
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": tower.side**2,
            "vision_aspect_ratio": converted.vision_aspect_ratio,
        },
        max_length=max_length,
    )
    return dataclasses.replace(backbone, convert=functools.partial(convert_files, converted))


def add_image_token(
    folder: pathlib.Path, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> int:
    """The id of the image token, which the tokenizer gets if it has none, as in the original.

    Raises:
      ValueError: the model has no row of embeddings that it could have.
    """
    tokenizer.add_tokens([_image_token()], special_tokens=True)
    image_token_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    if image_token_id >= vocab_size:
        raise ValueError(
            f"{folder}: {IMAGE_TOKEN} is token {image_token_id} and vocab_size is {vocab_size};"
            " resize the embeddings of the checkpoint to more tokens"
        )
    return image_token_id


def convert_config(
    folder: pathlib.Path, own: Mapping[str, Any], image_token_id: int
) -> LlavaOnevisionConfig:
    """The configuration of the original code base in Hugging Face form.

    Raises:
      ValueError: it asks for what is not done here.
    """
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
    tied = own.get("tie_word_embeddings", False)
    return LlavaOnevisionConfig(
        architectures=["LlavaOnevisionForConditionalGeneration"],
        text_config=Qwen2Config(**{key: own[key] for key in TEXT_KEYS if key in own}),
        vision_config=vision,
        image_token_index=image_token_id,
        video_token_index=-1,  # there is none
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        vision_aspect_ratio=aspect,
        image_grid_pinpoints=_pinpoints(folder, own["image_grid_pinpoints"], vision.image_size),
        tie_word_embeddings=tied,
    )


def image_processor(config: LlavaOnevisionConfig) -> dict[str, Any]:
    """What the code base does to pixels, as settings of transformers' image processor."""
    tile = config.vision_config.image_size
    return llava.DEFAULTS | {
        "do_pad": True,
        "image_grid_pinpoints": config.image_grid_pinpoints,
        "image_mean": [0.5] * 3,
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_std": [0.5] * 3,
        "processor_class": "LlavaOnevisionProcessor",
        "size": {"height": tile, "width": tile},
    }


def convert_files(config: LlavaOnevisionConfig, folder: pathlib.Path) -> None:
    """Makes copies of a checkpoint's files those of a LLaVA-OneVision that transformers loads."""
    (folder / TOWER_FILE).unlink(missing_ok=True)
    (folder / "chat_template.json").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    content = json.loads(config.to_json_string(use_diff=False))
    rope = config.text_config.rope_parameters
    content["text_config"]["rope_theta"] = rope["rope_theta"]  # transformers 4 looks here
    _write_json(folder / "config.json", content)
    _write_json(folder / "preprocessor_config.json", image_processor(config))
    _convert_tokenizer(folder, config.text_config)


def _convert_tokenizer(folder: pathlib.Path, text: PretrainedConfig) -> None:
    """Adds the image token to each file that lists tokens; the rest stays as it is."""
    tokenizer = open_tokenizer(folder, PreTrainedTokenizerFast)
    if IMAGE_TOKEN not in tokenizer.get_added_vocab():
        tokenizer.add_tokens([_image_token()], special_tokens=True)
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.save(str(folder / "tokenizer.json"))
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    file = folder / "tokenizer_config.json"
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.convert_ids_to_tokens(text.eos_token_id),
        "pad_token": tokenizer.convert_ids_to_tokens(text.pad_token_id or text.bos_token_id),
    }
    if file.exists():
        settings = json.loads(file.read_text())
    settings.pop("chat_template", None)  # the language model's
    settings["processor_class"] = "LlavaOnevisionProcessor"
    if "added_tokens_decoder" in settings:
        token = {"content": IMAGE_TOKEN, "special": True}
        token |= dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        settings["added_tokens_decoder"].setdefault(str(image_token_id), token)
    _write_json(file, settings)
    others = folder / "added_tokens.json"
    if others.exists():
        _write_json(others, {IMAGE_TOKEN: image_token_id} | json.loads(others.read_text()))


def _image_token() -> AddedToken:
    return AddedToken(IMAGE_TOKEN, special=True, normalized=False)


def _tower(folder: pathlib.Path, name: str) -> SiglipVisionConfig:
    """The tower without the layer that is deleted."""
    file = folder / TOWER_FILE
    sizes: Mapping[str, Any] | None
    if file.exists():
        sizes = json.loads(file.read_text())
    else:
        sizes = TOWERS.get(pathlib.PurePath(name).name)
    if sizes is None:
        raise ValueError(
            f"{folder}/config.json: mm_vision_tower is {name!r}, whose sizes are not known here;"
            f" supported: {', '.join(TOWERS)}. For another SigLIP, put its vision_config into"
            f" {TOWER_FILE}."
        )
    keys = (*next(iter(TOWERS.values())), "hidden_act", "layer_norm_eps")
    given = {key: sizes[key] for key in keys if key in sizes}
    given["num_hidden_layers"] -= 1
    return SiglipVisionConfig(**given, vision_use_head=False)


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


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
