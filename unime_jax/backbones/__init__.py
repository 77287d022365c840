"""Model families: what a Hugging Face folder means, in one module a family.

A family module gives `PROCESSING` and `open_folder`. Nothing outside this package asks which family
a model is of.
"""

import functools
import json
import pathlib

from huggingface_hub import snapshot_download
from transformers import AutoConfig

from unime_jax.backbones import llava_next, llava_onevision
from unime_jax.backbones.backbone import Backbone, Preprocessor
from unime_jax.backbones.processing import Processing, read

__all__ = ["FAMILIES", "Backbone", "Preprocessor", "Processing", "open_backbone"]

FAMILIES = {"llava_next": llava_next, "llava_onevision": llava_onevision}

HUB_FILES = ("*.json", "*.jinja", "*.txt", "*.safetensors", "tokenizer.model")


def open_backbone(
    folder_or_hub_id: str, *, max_length: int, processing: Processing | None = None
) -> Backbone:
    """Opens a local folder, or downloads a hub repository first.

    Args:
      max_length: the most tokens of a row.
      processing: how items become rows; None: as recorded when the folder was exported from
        here, else as the family's published embedders do it.

    Raises:
      ValueError: config.json is missing, or names a family that is not supported.
    """
    folder = pathlib.Path(folder_or_hub_id).expanduser()
    if not folder.is_dir():
        folder = _download(folder_or_hub_id)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json, so it is not a Hugging Face model folder.")
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    family = FAMILIES.get(model_type)
    if family is None:
        raise ValueError(
            f'{folder}/config.json: model_type "{model_type}" is not supported; '
            f"supported: {', '.join(FAMILIES)}."
        )
    return family.open_folder(
        folder,
        AutoConfig.from_pretrained(folder),
        processing or read(folder) or family.PROCESSING,
        max_length=max_length,
    )


@functools.cache
def _download(hub_id: str) -> pathlib.Path:
    try:
        return pathlib.Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES)))
    except Exception as error:
        raise ValueError(
            f'config.backbone "{hub_id}" is not a local folder, and it cannot be downloaded from '
            f"the Hugging Face hub: {error}"
        ) from error
