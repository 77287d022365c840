"""Export of a model as a Hugging Face folder: weights, tokenizer, processor and prompts."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from unime_jax import files, paths
from unime_jax.backbones import Backbone
from unime_jax.backbones.dual_encoder.rows import PairPreprocessor
from unime_jax.backbones.io import weights
from unime_jax.backbones.preprocessing import (
    chat_templates,
    image_processor_config,
    processing,
    system_prompt,
    video_processor_config,
)
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.backbones.preprocessing.system_prompt import SystemPrompt
from unime_jax.export import sentence_transformers
from unime_jax.models import lora
from unime_jax.models.layers import Linear, linears

CARRIED = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "spiece.model")
# Of an earlier export, or of an adapter: what they say is not true of the new folder.
NOT_CARRIED = (
    "*.index.json",
    "self_check*",
    "merge.json",
    "adapter_config.json",
    "modules.json",
    "*sentence_*.json",
)


def write(
    folder: files.Path,
    backbone: Backbone,
    graph: nnx.GraphDef,
    parameters: paths.Parameters,
    *,
    dtype: np.dtype,
    prompts: Mapping[str, str],
    dims: Sequence[int] = (),
    truncate_dim: int | None = None,
) -> None:
    """Writes config, merged weights, tokenizer and processor; `folder` appears when complete.

    Adapters are folded into their kernels. Tensors that only generation uses come from the
    backbone's own files. An earlier export in `folder` is replaced. `prompts` are those of
    sentence-transformers, whose files are left out where it would not embed as this model does. A
    backbone that is such a model itself keeps its own.

    Args:
      dims: numbers of the prefixes that were trained to be embeddings, for config.json.
      truncate_dim: numbers that users get who ask for no other; None: as the backbone says.

    Raises:
      ValueError: as of `check_truncation`.
    """
    check_truncation(backbone, truncate_dim)
    merged = merged_parameters(graph, parameters, dtype)
    if jax.process_index() != 0:  # takes part in gathering, but writes nothing
        backbone.save_weights(pathlib.Path(folder.name), merged, dtype)
        return
    with files.replacing(folder, last="config.json") as partial:
        backbone.save_weights(partial, merged, dtype)
        write_beside_weights(partial, backbone, dtype, prompts)
        if dims:  # vLLM reads both; it serves these numbers and no others
            whole = [*dims, backbone.dimension]
            _update_json(
                partial / "config.json", {"is_matryoshka": True, "matryoshka_dimensions": whole}
            )
        if truncate_dim is not None:
            _update_json(partial / sentence_transformers.PROMPTS, {"truncate_dim": truncate_dim})


def check_truncation(backbone: Backbone, truncate_dim: int | None) -> None:
    """Raises ValueError where no file of an export would say how many numbers users get."""
    if truncate_dim is not None and not (has_template(backbone) or backbone.own_files):
        raise ValueError(
            f"config.export.truncate_dim={truncate_dim}: exports of"
            f" {backbone.base or backbone.folder} have no files of sentence-transformers, where it"
            " would stand; leave it None, and ask for the numbers where vectors are made"
        )


def has_template(backbone: Backbone) -> bool:
    """Whether exports get files that sentence-transformers embeds by as this package does."""
    kinds = (
        isinstance(backbone.preprocess, PairPreprocessor),
        isinstance(backbone.preprocess.prompt, Prompt),
    )
    return backbone.loads_in_transformers and any(kinds)


def write_beside_weights(
    partial: pathlib.Path, backbone: Backbone, dtype: np.dtype, prompts: Mapping[str, str]
) -> None:
    """Writes config, tokenizer, processor and the files of sentence-transformers.

    Arguments are those of `write`; `dtype` is what config.json says of the weights.
    """
    copy_files(backbone.folder, partial)
    if backbone.convert:
        backbone.convert(partial)
    _update_json(
        partial / "config.json",
        {"dtype": np.dtype(dtype).name} | dict(backbone.config_changes),
    )
    image_processor_config.write(
        partial, settings=backbone.image_processor_changes, processor=backbone.processor_config
    )
    video_processor_config.write(partial, backbone.video_processor)
    chat_templates.write(partial)
    processing.write(
        partial,
        backbone.processing,
        max_length=backbone.preprocess.prompt.max_length,
        commits=backbone.commits,
    )
    for name in backbone.own_files:
        _copy(backbone.folder / name, partial / name)
    prompt = backbone.preprocess.prompt
    preprocess = backbone.preprocess
    if isinstance(preprocess, PairPreprocessor) and backbone.loads_in_transformers:
        sentence_transformers.write_separate(
            partial,
            max_length=prompt.max_length,
            padded=preprocess.prompt.padding is not None,
            image=preprocess.tile.processor_kwargs,
            prompts=prompts,
        )
    if isinstance(prompt, Prompt) and backbone.loads_in_transformers:
        sentence_transformers.write(
            partial,
            **wording(prompt),
            dimension=backbone.dimension,
            max_length=prompt.max_length,
            prompts=prompts,
        )


def wording(prompt: Prompt) -> sentence_transformers.Wording:
    """Arguments with which sentence-transformers' template words inputs as `prompt` does."""
    if isinstance(prompt, SystemPrompt):
        return {
            "frames": prompt.image_frames(),
            "markers": prompt.media_tokens,
            "strip": False,
            "image_token": None,
            "in_front": False,
            "clips": _clip_turn(prompt),
            "system": {
                "opening": prompt.opening,
                "default": system_prompt.DEFAULT,
                "nothing": system_prompt.NOTHING,
                "punctuation": system_prompt.punctuation(),
            },
        }
    chat = prompt.style == "chat"
    return {
        "frames": prompt.image_frames(),
        "markers": prompt.media_tokens,
        "strip": chat,
        "image_token": None if chat else prompt.image_token,
        "in_front": prompt.style == "verbatim",
        "clips": _clip_turn(prompt),
        "system": None,
    }


def _clip_turn(prompt: Prompt) -> sentence_transformers.ClipTurn | None:
    """Words of clips; None: they have no token of their own, no place, or more words than that."""
    places, worded = prompt.clips, prompt.style in ("chat", "system")
    own = prompt.clip_token not in ("", prompt.image_token)
    if not own or prompt.clip_place or (worded and not places):
        return None
    return {
        "token": prompt.clip_token,
        "unit": places.unit if places else "",
        "start": places.start if places else 0,
        "images_first": bool(places and places.images_first),
        "mixed": places is None or places.images_first is not None,
    }


def copy_files(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a checkpoint's configuration, tokenizer and processor files, but no weights."""
    for pattern in CARRIED:
        for file in source.glob(pattern):
            if not any(file.match(other) for other in NOT_CARRIED):
                shutil.copyfile(file, target / file.name)


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    if source.exists():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


@dataclasses.dataclass(frozen=True)
class Folded:
    """A lazily merged kernel of a layer with an adapter or int8 codes.

    It is computed when it is written, so the merged model is never fully in memory.
    """

    linear: Linear
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the layer's own kernel."""
        return self.linear.kernel[...].shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        value = weights.to_host(_fold(self.linear, self.dtype))
        return value.astype(dtype or self.dtype, copy=False)


_fold = jax.jit(lora.fold, static_argnames="dtype")


def merged_parameters(
    graph: nnx.GraphDef, parameters: paths.Parameters, dtype: np.dtype
) -> dict[str, weights.Leaf]:
    """Parameters with adapters and scales folded into kernels, which then have `dtype`."""
    merged: dict[str, weights.Leaf] = dict(parameters)
    for path, linear in linears(paths.merge(graph, parameters)):
        if lora.is_folded(linear):
            continue
        for leaf in ("kernel_scale", "lora_a", "lora_b", "lora_magnitude"):
            merged.pop(f"{path}.{leaf}", None)
        merged[f"{path}.kernel"] = Folded(linear, np.dtype(dtype))
    return merged


def _update_json(path: pathlib.Path, changes: Mapping[str, Any]) -> None:
    content = (json.loads(path.read_text()) if path.exists() else {}) | dict(changes)
    path.write_text(json.dumps(content, indent=2) + "\n")
