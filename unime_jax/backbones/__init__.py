"""Model families: what a Hugging Face folder means, in one module a family.

A family module gives `PROCESSING`, `POOLINGS` (by the names of sentence-transformers) and
`open_folder`; one whose published folders are used in several ways says by `published` how a folder
is. Nothing outside this package asks which family a model is of.
"""

import dataclasses
import json
import pathlib
import types
from typing import TYPE_CHECKING

from absl import logging

from unime_jax.backbones.backbone import (
    Backbone,
    MakeModel,
    Preprocessor,
    language_only,
    with_lm_head,
)
from unime_jax.backbones.dual_encoder import clip, siglip, siglip2
from unime_jax.backbones.io import merging, model_folders, st_folder
from unime_jax.backbones.llava import llava_next, llava_onevision, llava_qwen
from unime_jax.backbones.phi3_v import phi3_v
from unime_jax.backbones.preprocessing.processing import Processing, Record, read_record
from unime_jax.backbones.qwen2_5_vl import qwen2_5_vl
from unime_jax.backbones.qwen2_vl import qwen2_vl
from unime_jax.backbones.qwen3_vl import qwen3_vl
from unime_jax.backbones.texts import bert, nv_embed

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "FAMILIES",
    "Backbone",
    "MakeModel",
    "Preprocessor",
    "Processing",
    "language_only",
    "open_backbone",
    "with_lm_head",
]

FAMILIES = {
    "bert": bert,
    "clip": clip,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "llava_qwen": llava_qwen,
    "nvembed": nv_embed,
    "phi3_v": phi3_v,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "siglip": siglip,
    "siglip2": siglip2,
}

MAX_LENGTH = 4096  # tokens of a row, where neither user nor folder says


def open_backbone(
    folder_or_hub_id: str,
    *,
    max_length: int | None,
    revision: str | None = None,
    token: str | None = None,
    processing: Processing | None = None,
    weights: bool = True,
    clips: bool = False,
) -> Backbone:
    """Opens a local folder, or downloads a hub repository first.

    A folder with an adapter_config.json is a PEFT adapter: it is merged into the weights of the
    base that it names, and everything else, tokenizer and image processor too, is the base's.

    Args:
      max_length: the most tokens of a row; None: as many as the folder says, else
        `MAX_LENGTH`. A family may take less.
      revision: branch, tag or commit of a hub repository; None: its main branch as it is now. The
        revision of an adapter's base is in adapter_config.json.
      token: of the hub; None: that of `hf auth login` or `HF_TOKEN`.
      processing: how items become rows; None: as recorded when the folder was exported from
        here, also if another library has saved it since, else as the family's published
        embedders do it, which is logged.
      weights: whether to download them, too; without them there is nothing to load.
      clips: whether the rows of a layout may have clips; at inference each batch says so itself.

    Raises:
      ValueError: config.json is missing, or names a family that is not supported; an adapter asks
        for what is not done here; or there is a revision of what is a local folder.
    """
    folder, base = model_folders.find(folder_or_hub_id, revision, token, weights=weights)
    commits = model_folders.commits(folder, base)
    adapter = None
    if (folder / merging.CONFIG).exists():
        adapter = folder
        folder, base = model_folders.base_of(adapter, token, weights=weights)
        commits |= model_folders.commits(folder, base)
    model_folders.check(folder)
    settings = json.loads((folder / "config.json").read_text())
    model_type = settings.get("model_type")
    family = FAMILIES.get(model_type)
    if family is None:
        raise ValueError(
            f'{folder}/config.json: model_type "{model_type}" is not supported; '
            f"supported: {', '.join(FAMILIES)}."
        )
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    if model_type in CONFIG_MAPPING:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    else:
        # What transformers knows only by a repository's own code is taken as it is: no code is run,
        # and nothing is checked or reworded by rules for other models.
        config = PretrainedConfig()
        vars(config).update(settings)
    sources = [adapter, folder] if adapter else [folder]
    record = next((x for source in sources if (x := _recorded(source, family))), None)
    whole = sources[0]  # an adapter without such files is not used as its base is
    if st_folder.is_one(whole):
        st_folder.check(whole, family.POOLINGS)
    defaults = st_folder.read_defaults(whole, pooled=bool(family.POOLINGS))
    defaults = dataclasses.replace(defaults, max_length=_longest(whole, record))
    backbone = family.open_folder(
        folder,
        config,
        processing or (record.processing if record else _assumed(whole, folder, config, family)),
        max_length=max_length or defaults.max_length or MAX_LENGTH,
    )
    if clips:
        backbone = dataclasses.replace(backbone, layout=backbone.layout.with_clips())
    if adapter and weights:
        merging.read(adapter, backbone.names)  # what is unsupported is best said at once
    if defaults.truncate_dim is not None:
        kept = min(defaults.truncate_dim, backbone.dimension)
        defaults = dataclasses.replace(defaults, truncate_dim=kept)
    return dataclasses.replace(
        backbone, adapter=adapter, base=base, commits=commits, defaults=defaults
    )


def _recorded(folder: pathlib.Path, family: types.ModuleType) -> Record | None:
    """How an export from here makes its inputs, whoever has saved it since; None: it is none."""
    record = read_record(folder)
    style = st_folder.style(folder)
    worded = st_folder.is_one(folder) and "lasttoken" in family.POOLINGS
    if record and worded and style != record.processing.prompt:
        logging.warning(
            "%s was exported with processing.prompt %r, and sentence-transformers words its inputs"
            " by another chat template; the recorded one is used. `processing` overrules it",
            folder,
            record.processing.prompt,
        )
    if record is None and style is not None:
        # Plain positions of image tokens cannot be told to others, so they were not asked for.
        record = Record(Processing(prompt=style, grid_positions=style != "chat"))
    return record


def _assumed(
    folder: pathlib.Path,
    base: pathlib.Path,
    config: "PretrainedConfig",
    family: types.ModuleType,
) -> Processing:
    """The processing of a folder that does not record its own; `base`: it, or what it adapts."""
    processing: Processing = family.PROCESSING
    if published := getattr(family, "published", None):
        processing = published(base, config)
    if "lasttoken" not in family.POOLINGS:
        return processing  # of texts only; there is no choice
    words = {key: value for key, value in dataclasses.asdict(processing).items() if value}
    message = (
        "%s does not record how its inputs are made; assumed is %s, as of the published embedders"
        " of its family. `processing` of the config or of Embedder.from_pretrained overrules it"
    )
    if st_folder.is_one(folder):
        logging.warning(
            message
            + ". It was saved by sentence-transformers, which may word its inputs otherwise",
            folder,
            words,
        )
    else:
        logging.info(message, folder, words)
    return processing


def _longest(folder: pathlib.Path, record: Record | None) -> int | None:
    """The most tokens of a row that a folder asks for; None: it leaves that open."""
    recorded = record.max_length if record else None
    if not st_folder.is_one(folder):
        return recorded
    asked = st_folder.max_seq_length(folder)
    if asked is not None:
        return asked
    saved = st_folder.tokenizer_setting(folder, "model_max_length")
    if saved is None:
        return recorded
    # That of an export is one that was asked for; others may name one that no row is meant to have.
    return saved if recorded else min(saved, MAX_LENGTH)
