"""SigLIP 2 for images of any aspect (NaFlex); that of one resolution is a SigLIP."""

import pathlib
from typing import TYPE_CHECKING

from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.dual_encoder import dual_encoder, siglip
from unime_jax.backbones.dual_encoder.tiles import Flexible
from unime_jax.backbones.io import st_folder
from unime_jax.backbones.preprocessing import image_processor_config
from unime_jax.backbones.preprocessing.processing import Processing

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSING = dual_encoder.PROCESSING
POOLINGS = dual_encoder.POOLINGS

DEFAULTS = {  # of transformers' Siglip2ImageProcessor
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "resample": 2,
    "rescale_factor": 1 / 255,
    "patch_size": 16,
    "max_num_patches": 256,
}


def open_folder(
    folder: pathlib.Path, config: "PretrainedConfig", processing: Processing, *, max_length: int
) -> Backbone:
    """Opens a folder of transformers' Siglip2Model.

    Raises:
      ValueError: the files contradict each other, or ask for something unsupported.
    """
    vision = dual_encoder.vision_config(config.vision_config, clip=False)
    file, settings = image_processor_config.read(folder, DEFAULTS, types=("Siglip2ImageProcessor",))
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if settings[key] is not True:
            raise ValueError(f"{file}: {key} is {settings[key]!r}, but it must be True")
    if settings["patch_size"] != vision.patch_size:
        raise ValueError(
            f"{file}: patch_size is {settings['patch_size']}, and vision_config.patch_size of"
            f" config.json {vision.patch_size}"
        )
    asked = (st_folder.setting(folder, "processing_kwargs") or {}).get("image", {})
    for key, value in asked.items():
        if value != settings[key]:
            raise ValueError(
                f"{folder}: sentence-transformers gives its processor the {key} {value}, and"
                f" {file.name} has {settings[key]}; make them equal"
            )
    tile = Flexible(vision.patch_size, settings["max_num_patches"], int(settings["resample"]))
    return siglip.assemble(folder, config, processing, vision, tile, settings, max_length)
