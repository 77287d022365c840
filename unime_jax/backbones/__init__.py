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
from unime_jax.backbones.processing import Processing, read, read_commits

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

_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_backbone(
    folder_or_hub_id: str,
    *,
    max_length: int,
    revision: str | None = None,
    processing: Processing | None = None,
    weights: bool = True,
) -> Backbone:
    """Opens a local folder, or downloads a hub repository first.

    A folder with an adapter_config.json is a PEFT adapter: it is merged into the weights of the
    base that it names, and everything else, tokenizer and image processor too, is the base's.

    Args:
      max_length: the most tokens of a row.
      revision: branch, tag or commit of a hub repository; None: its main branch as it is now. The
        revision of an adapter's base is in adapter_config.json.
      processing: how items become rows; None: as recorded when the folder was exported from
        here, else as the family's published embedders do it.
      weights: whether to download them, too; without them there is nothing to load.

    Raises:
      ValueError: config.json is missing, or names a family that is not supported; an adapter asks
        for what is not done here; or there is a revision of what is a local folder.
    """
    folder, base = _find(folder_or_hub_id, revision, weights=weights)
    commits = _commits(folder, base)
    adapter = None
    if (folder / merging.CONFIG).exists():
        adapter = folder
        folder, base = _base_of(adapter, weights=weights)
        commits |= _commits(folder, base)
        processing = processing or read(adapter)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json, so it is not a Hugging Face model folder.")
    settings = json.loads((folder / "config.json").read_text())
    model_type = settings.get("model_type")
    family = FAMILIES.get(model_type)
    if family is None:
        raise ValueError(
            f'{folder}/config.json: model_type "{model_type}" is not supported; '
            f"supported: {', '.join(FAMILIES)}."
        )
    if model_type in CONFIG_MAPPING:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
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
    return dataclasses.replace(backbone, adapter=adapter, base=base, commits=commits)


def _find(
    folder_or_hub_id: str, revision: str | None, *, weights: bool
) -> tuple[pathlib.Path, str]:
    """The folder, and what others can find it by."""
    folder = pathlib.Path(folder_or_hub_id).expanduser()
    if not folder.is_dir():
        return _download(folder_or_hub_id, revision, weights), folder_or_hub_id
    if revision is not None:
        raise ValueError(
            f"revision is {revision!r}, but {folder} is a folder here, of which there is one: leave"
            " the revision out, or give the id of a repository on the Hugging Face hub"
        )
    return folder, str(folder.resolve())


def _commits(folder: pathlib.Path, found_by: str) -> dict[str, str]:
    """Commits of hub repositories that a folder came from, by their ids.

    A download lies in a folder of the cache that is called as its commit.
    """
    if found_by == str(folder.resolve()):
        return read_commits(folder)
    return {found_by: folder.name} if _COMMIT.fullmatch(folder.name) else {}


def _base_of(adapter: pathlib.Path, *, weights: bool) -> tuple[pathlib.Path, str]:
    config = merging.read_config(adapter)
    name = config.get("base_model_name_or_path")
    if not name:
        raise ValueError(f"{adapter / merging.CONFIG}: base_model_name_or_path is missing.")
    beside = adapter / name
    where = str(beside) if beside.is_dir() else name
    # PEFT, too, has a use for it on the hub only.
    revision = None if pathlib.Path(where).expanduser().is_dir() else config.get("revision")
    try:
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
    try:
        files = [*HUB_FILES, *(WEIGHTS if weights else ())]
        return pathlib.Path(snapshot_download(hub_id, revision=revision, allow_patterns=files))
    except Exception as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(
            f'config.backbone "{hub_id}" is not a local folder, and it cannot be downloaded from '
            f"the Hugging Face hub{at}: {error}"
        ) from error
