"""LLaVA-OneVision: Qwen2 decoder, SigLIP tower; maps of many tiles are shrunk.

Of a clip 32 frames are looked at, spread evenly, or all if there are fewer, as in the published
evaluations; transformers takes all that it is given.
"""

import pathlib
import re
from typing import TYPE_CHECKING

from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.llava import llava, llava_config
from unime_jax.backbones.preprocessing.processing import Processing

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = Processing(prompt="chat")
POOLINGS = ("lasttoken",)


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a checkpoint in Hugging Face form.

    Raises:
      ValueError: the files contradict each other, or ask for what this family does not do.
    """
    aspect = re.fullmatch(r"anyres_max_([1-9]\d*)", config.vision_aspect_ratio)
    if aspect is None:
        raise ValueError(
            f"{folder}/config.json: vision_aspect_ratio is {config.vision_aspect_ratio!r};"
            " only 'anyres_max_<number>' is supported"
        )
    vision = config.vision_config
    return llava.open_folder(
        folder,
        config,
        processing,
        text_types=("qwen2",),
        max_tiles=int(aspect.group(1)),
        tiles_of_many=False,
        missing_images=("strip", "token", "image"),
        image_processor="LlavaOnevisionImageProcessor",
        image_defaults=llava_config.DEFAULTS,
        takes_clips=True,
        processor_config={
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": (vision.image_size // vision.patch_size) ** 2,
            "vision_aspect_ratio": config.vision_aspect_ratio,
        },
        max_length=max_length,
    )
