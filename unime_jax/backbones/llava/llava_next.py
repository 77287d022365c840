"""LLaVA-1.6, or LLaVA-NeXT: Mistral or Llama decoder, CLIP tower; maps are never shrunk."""

import pathlib
from typing import TYPE_CHECKING

from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.llava import llava, llava_config
from unime_jax.backbones.preprocessing.processing import Processing

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = Processing(prompt="raw")  # VLM2Vec's and UniME's, on MMEB
POOLINGS = ("lasttoken",)

DEFAULTS = llava_config.DEFAULTS | {  # of transformers' LlavaNextImageProcessor
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a checkpoint in Hugging Face form.

    Raises:
      ValueError: the files contradict each other, or ask for what this family does not do.
    """
    return llava.open_folder(
        folder,
        config,
        processing,
        text_types=("mistral", "llama"),
        max_tiles=None,
        tiles_of_many=True,
        missing_images=("strip", "token"),
        image_processor="LlavaNextImageProcessor",
        image_defaults=DEFAULTS,
        takes_clips=False,
        processor_config={
            "processor_class": "LlavaNextProcessor",
            "patch_size": config.vision_config.patch_size,
            "num_additional_image_tokens": 1,  # the class token, which is then dropped
        },
        max_length=max_length,
    )
