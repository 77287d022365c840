"""LLaVE's checkpoints as published: LLaVA-OneVision's model in the files of its original code base.

The folder is read as the LLaVA-OneVision in Hugging Face form that it is equal to, and exports are
written in that form. What the code base has in code lies here, the prompt and the normalisation of
pixels, and in `llava_qwen_config`, the vision tower and the frames of clips. There the image token
stands for a clip, too; here a clip has its own, as in exports, and either marks it in a text.

Maps are unpadded as in transformers, whose rounding drops one more row or column of patches for
two sizes in 300 000 (792 x 748 pixels, for example).
"""

import dataclasses
import functools
import json
import pathlib
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.io import json_files
from unime_jax.backbones.io.hf_config import require
from unime_jax.backbones.llava import llava, llava_config, llava_names
from unime_jax.backbones.llava.llava_qwen_config import (
    TOWER_FILE,
    clips,
    convert_config,
    read_config,
)
from unime_jax.backbones.preprocessing.image_processor_config import PROCESSOR_FILE
from unime_jax.backbones.preprocessing.open_prompts import open_prompt, open_tokenizer
from unime_jax.backbones.preprocessing.processing import Processing, require_missing_images

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

PROCESSING = Processing(prompt="verbatim")
POOLINGS = ("lasttoken",)

IMAGE_TOKEN = "<image>"
VIDEO_TOKEN = "<video>"
# The turn of the assistant is a line end; the line end after it is the token that is pooled.
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n\\n<|im_end|>\\n' }}"
)
ALIASES = (  # to LLaVA-OneVision's names; a model without head has no `model.` in front
    (r"^(?:model\.)?vision_tower\.vision_tower\.", "vision_tower."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    (r"^(?:model\.)?mm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"^(?:model\.)?mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"^model\.image_newline$", "image_newline"),
    (r"^(?:model\.)?(embed_tokens|layers|norm)\.", r"language_model.model.\1."),
    (r"^lm_head\.", "language_model.lm_head."),
)
# The original code's modules, with and without head, in older and newer versions of transformers.
MODULES = tuple(
    (
        ("language_model.model.", model),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.vision_model.", f"{model}vision_tower.vision_tower.{tower}"),
        ("multi_modal_projector.linear_1.", f"{model}mm_projector.0."),
        ("multi_modal_projector.linear_2.", f"{model}mm_projector.2."),
        ("image_newline", f"{model}image_newline"),
    )
    for model in ("model.", "")
    for tower in ("vision_model.", "")
)


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a checkpoint in the original form.

    Raises:
      ValueError: the files contradict each other, or ask for what this family does not do.
    """
    # The image token has no embedding of its own.
    require_missing_images(processing, "strip", "image")
    own = read_config(folder)
    tokenizer = open_tokenizer(folder, "PreTrainedTokenizerFast")
    image, video = add_tokens(folder, tokenizer, own["vocab_size"])
    converted = convert_config(folder, own, image, video)
    processing, seen_clips = clips(own, processing)
    tower = llava_config.tower_config(converted)
    require("mm_hidden_size", own["mm_hidden_size"], (tower.hidden_size,))
    names = dataclasses.replace(
        llava_names.names(converted, tower), aliases=ALIASES, modules=MODULES
    )
    backbone = llava.assemble(
        folder,
        converted,
        processing,
        tower=tower,
        prompt=open_prompt(
            folder,
            tokenizer,
            image_token_id=image,
            vocab_size=own["vocab_size"],
            style=processing.prompt,
            max_length=max_length,
            missing_images=processing.missing_images,
            clip_token_id=image if video is None else video,
            template=TEMPLATE,
        ),
        processor=image_processor(converted),
        clips=seen_clips,
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
    return dataclasses.replace(
        backbone,
        convert=functools.partial(convert_files, converted),
        video_processor=video_processor(converted),
    )


def add_tokens(
    folder: pathlib.Path, tokenizer: "PreTrainedTokenizerBase", vocab_size: int
) -> tuple[int, int | None]:
    """Ids of the tokens of images and clips, which the tokenizer gets if it has none.

    That of clips is None where the model has no row of embeddings for it.

    Raises:
      ValueError: it has none for that of images.
    """
    tokenizer.add_tokens([_special(IMAGE_TOKEN)], special_tokens=True)
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert isinstance(image_token_id, int)
    if image_token_id >= vocab_size:
        raise ValueError(
            f"{folder}: {IMAGE_TOKEN} is token {image_token_id} and vocab_size is {vocab_size};"
            " resize the embeddings of the checkpoint to more tokens"
        )
    added = tokenizer.get_added_vocab()
    if VIDEO_TOKEN not in added and len(tokenizer) < vocab_size:
        tokenizer.add_tokens([_special(VIDEO_TOKEN)], special_tokens=True)
        added = tokenizer.get_added_vocab()
    return image_token_id, added.get(VIDEO_TOKEN)


def image_processor(config: "PretrainedConfig") -> dict[str, Any]:
    """What the code base does to pixels, as settings of transformers' image processor."""
    return _pixels(config) | {
        "do_pad": True,
        "image_grid_pinpoints": config.image_grid_pinpoints,
        "image_processor_type": "LlavaOnevisionImageProcessor",
    }


def video_processor(config: "PretrainedConfig") -> dict[str, Any]:
    """The same of frames, as settings of its video processor, which is handed those it takes."""
    return _pixels(config) | {
        "do_sample_frames": False,
        "video_processor_type": "LlavaOnevisionVideoProcessor",
    }


def _pixels(config: "PretrainedConfig") -> dict[str, Any]:
    tile = config.vision_config.image_size
    return llava_config.DEFAULTS | {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "LlavaOnevisionProcessor",
        "size": {"height": tile, "width": tile},
    }


def convert_files(config: "PretrainedConfig", folder: pathlib.Path) -> None:
    """Makes copies of a checkpoint's files those of a LLaVA-OneVision that transformers loads."""
    (folder / TOWER_FILE).unlink(missing_ok=True)
    for name in (PROCESSOR_FILE, "chat_template.json"):  # not read, and for another processor
        (folder / name).unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    content = json.loads(config.to_json_string(use_diff=False))
    rope = config.text_config.rope_parameters
    content["text_config"]["rope_theta"] = rope["rope_theta"]  # transformers 4 looks here
    json_files.write(folder / "config.json", content)
    json_files.write(folder / "preprocessor_config.json", image_processor(config))
    _convert_tokenizer(folder, config.text_config)


def _convert_tokenizer(folder: pathlib.Path, text: "PretrainedConfig") -> None:
    """Adds the tokens of images and clips to each file that lists tokens; the rest stays."""
    tokenizer = open_tokenizer(folder, "PreTrainedTokenizerFast")
    before = len(tokenizer)
    image, video = add_tokens(folder, tokenizer, text.vocab_size)
    ids = {IMAGE_TOKEN: image} | ({} if video is None else {VIDEO_TOKEN: video})
    if len(tokenizer) > before:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.save(str(folder / "tokenizer.json"))
    file = folder / "tokenizer_config.json"
    if file.exists():
        settings = json.loads(file.read_text())
    else:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        for key, token_id in (("eos_token", text.eos_token_id), ("pad_token", text.pad_token_id)):
            token_id = text.bos_token_id if token_id is None else token_id
            settings[key] = tokenizer.convert_ids_to_tokens(token_id)
    settings.pop("chat_template", None)  # the language model's
    settings["processor_class"] = "LlavaOnevisionProcessor"
    if "added_tokens_decoder" in settings:
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        for token, token_id in ids.items():
            entry = {"content": token, "special": True} | flags
            settings["added_tokens_decoder"].setdefault(str(token_id), entry)
    json_files.write(file, settings)
    others = folder / "added_tokens.json"
    if others.exists():
        json_files.write(others, ids | json.loads(others.read_text()))


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)
