"""Model families: what a Hugging Face folder means, in one module a family.

A family module gives `PROCESSING` and `open_folder`. Nothing outside this package asks which family
a model is of.
"""

import dataclasses
import functools
import json
import pathlib
import re

from huggingface_hub import snapshot_download
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from unime_jax.backbones import (
    bert,
    llava_next,
    llava_onevision,
    llava_qwen,
    merging,
    nv_embed,
    phi3_v,
    qwen2_vl,
)
from unime_jax.backbones.backbone import Backbone, Preprocessor, language_only
from unime_jax.backbones.processing import Processing, read

__all__ = [
    "FAMILIES",
    "Backbone",
    "Preprocessor",
    "Processing",
    "language_only",
    "open_backbone",
]

FAMILIES = {
    "bert": bert,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "llava_qwen": llava_qwen,
    "nvembed": nv_embed,
    "phi3_v": phi3_v,
    "qwen2_vl": qwen2_vl,
}

HUB_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
WEIGHTS = ("*.safetensors",)


def open_backbone(
    folder_or_hub_id: str,
    *,
    max_length: int,
    processing: Processing | None = None,
    weights: bool = True,
) -> Backbone:
    """Opens a local folder, or downloads a hub repository first.

    A folder with an adapter_config.json is a PEFT adapter: it is merged into the weights of the
    base that it names, and everything else, tokenizer and image processor too, is the base's.

    Args:
      max_length: the most tokens of a row.
      processing: how items become rows; None: as recorded when the folder was exported from
        here, else as the family's published embedders do it.
      weights: whether to download them, too; without them there is nothing to load.

    Raises:
      ValueError: config.json is missing, or names a family that is not supported; or an adapter
        asks for what is not done here.
    """
    folder, base = _find(folder_or_hub_id, weights=weights)
    adapter = None
    if (folder / merging.CONFIG).exists():
        adapter = folder
        folder, base = _base_of(adapter, weights=weights)
        processing = processing or read(adapter)
    _check_folder(folder)
    settings = json.loads((folder / "config.json").read_text())
    model_type = settings.get("model_type")
    family = FAMILIES.get(model_type)
    if family is None:
        raise ValueError(
            f'{folder}/config.json: model_type "{model_type}" is not supported; '
            f"supported: {', '.join(FAMILIES)}."
        )
    if model_type in CONFIG_MAPPING:
        config = AutoConfig.from_pretrained(folder)
    else:
        # What transformers knows only by a repository's own code is taken as it is: no code is run,
        # and nothing is checked or reworded by rules for other models.
        config = PretrainedConfig()
        vars(config).update(settings)
    backbone = family.open_folder(
        folder,
        config,
        processing or read(folder) or family.PROCESSING,
        max_length=max_length,
    )
    if adapter and weights:
        merging.read(adapter, backbone.names)  # what is unsupported is best said at once
    return dataclasses.replace(backbone, adapter=adapter, base=base)


def _find(
    folder_or_hub_id: str, revision: str | None = None, *, weights: bool
) -> tuple[pathlib.Path, str]:
    """The folder, and what others can find it by."""
    folder = pathlib.Path(folder_or_hub_id).expanduser()
    if folder.is_dir():
        return folder, str(folder.resolve())
    return _download(folder_or_hub_id, revision, weights), folder_or_hub_id


def _check_folder(folder: pathlib.Path) -> None:
    """Raises ValueError if it is no model, and says what it is if that is a run's."""
    if (folder / "hf" / "config.json").exists():
        raise ValueError(
            f"{folder} is the work directory of a run; the model that it exported is in "
            f"{folder / 'hf'}: open that."
        )
    if (folder / "checkpoints").is_dir():
        raise ValueError(
            f"{folder} is the work directory of a run that has no exported model yet. Let the run "
            f"finish, or export its newest checkpoint with --config.job=export; then open "
            f"{folder / 'hf'}."
        )
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json, so it is not a Hugging Face model folder.")


def _base_of(adapter: pathlib.Path, *, weights: bool) -> tuple[pathlib.Path, str]:
    config = merging.read_config(adapter)
    name = config.get("base_model_name_or_path")
    if not name:
        raise ValueError(f"{adapter / merging.CONFIG}: base_model_name_or_path is missing.")
    beside = adapter / name
    try:
        where, revision = str(beside) if beside.is_dir() else name, config.get("revision")
        folder, base = _find(where, revision, weights=weights)
    except ValueError as error:
        raise ValueError(f"{adapter / merging.CONFIG} names its base: {error}") from error
    if (folder / merging.CONFIG).exists():
        raise ValueError(
            f"The base of the adapter {adapter} is itself an adapter, {folder}: merge that one "
            "first (config.job=export with config.steps=0 writes it merged)."
        )
    return folder, base


@functools.cache
def _download(hub_id: str, revision: str | None, weights: bool) -> pathlib.Path:
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", hub_id):
        raise ValueError(
            f'"{hub_id}" is not a local folder: there is none of this name, and a hub id has the '
            "form <owner>/<name>."
        )
    try:
        files = [*HUB_FILES, *(WEIGHTS if weights else ())]
        return pathlib.Path(snapshot_download(hub_id, revision=revision, allow_patterns=files))
    except Exception as error:
        raise ValueError(
            f'"{hub_id}" is not a local folder, and it cannot be downloaded from the Hugging Face '
            f"hub: {error}"
        ) from error
