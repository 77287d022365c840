"""Trained LoRA and DoRA adapters as a folder in PEFT's format; `merging` reads such folders."""

import json
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from safetensors.numpy import save_file

from unime_jax.backbones import merging, processing
from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.names import Names, table
from unime_jax.backbones.weights import to_host
from unime_jax.models.lora import LoraConfig

PARTS = {  # a layer's adapter parameters, and PEFT's names for them
    "lora_a": "lora_A.weight",
    "lora_b": "lora_B.weight",
    "lora_magnitude": "lora_magnitude_vector",
}

_INDEXED = re.compile(r"(.*?\.)(\d+)(\..*)")


def save(
    folder: pathlib.Path,
    backbone: Backbone,
    parameters: Mapping[str, jax.Array],
    config: LoraConfig,
    *,
    dtype: np.dtype,
) -> None:
    """Writes adapter_config.json, adapter_model.safetensors and how inputs are made.

    Modules are called as PEFT sees them in transformers 5. Everything but the adapters is the
    base's, so nothing else may have been trained. All processes take part, process 0 writes; an
    earlier `folder` is replaced.

    Args:
      backbone: what the adapters were trained on.
      parameters: of the model with adapters; others than theirs are not read.
      config: what the adapters were made with.
      dtype: of the tensors in the file.

    Raises:
      ValueError: there are no adapters, or the backbone's weights have an adapter merged into
        them, so that they are nowhere to be found as a base.
    """
    if backbone.adapter:
        raise ValueError(
            f"{folder} would be an adapter of {backbone.base} with the adapter {backbone.adapter} "
            "merged, which PEFT cannot load as one: export that first, and train on the export."
        )
    modules, tensors = _collect(backbone.names, parameters, dtype)
    if not modules:
        raise ValueError(f"{folder}: the model has no adapters to write.")
    if jax.process_index() != 0:
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / merging.WEIGHTS, metadata={"format": "pt"})
    record = {
        "base_model_name_or_path": backbone.base or str(backbone.folder.resolve()),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": selection(modules),
        "task_type": None,
        "use_dora": config.dora,
        "use_rslora": False,
    }
    (partial / merging.CONFIG).write_text(json.dumps(record, indent=2) + "\n")
    processing.write(partial, backbone.processing)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _collect(
    names: Names, parameters: Mapping[str, jax.Array], dtype: np.dtype
) -> tuple[list[str], dict[str, np.ndarray]]:
    """The adapted modules, and the tensors of the file."""
    modules, tensors = [], {}
    for layer in (path[: -len(".lora_a")] for path in parameters if path.endswith(".lora_a")):
        kernel = f"{layer}.kernel"
        (entry,) = table({kernel: parameters[kernel].shape}, names)
        parts = [part for part in PARTS if f"{layer}.{part}" in parameters]
        found = {part: to_host(parameters[f"{layer}.{part}"]) for part in parts}
        for i, name in enumerate(entry.names):
            module = names.module(name)
            modules.append(module)
            for part, value in found.items():
                tensor = np.ascontiguousarray((value[i] if entry.stacked else value).T)
                tensor = tensor.reshape(_shape(part, entry.shape)).astype(dtype)
                tensors[f"{merging.PREFIX}{module}.{PARTS[part]}"] = tensor
    return modules, tensors


def _shape(part: str, weight: tuple[int, ...]) -> tuple[int, ...]:
    """A part's shape in the file, given its weight's; more than [out, in] is a convolution.

    -1 stands for the rank.
    """
    ones = (1,) * (len(weight) - 2)
    shapes = {
        "lora_a": (-1, *weight[1:]),
        "lora_b": (weight[0], -1, *ones),
        "lora_magnitude": (1, weight[0], *ones) if ones else (weight[0],),
    }
    return shapes[part]


def selection(modules: Iterable[str]) -> str:
    """A regex that matches these module names and no others.

    Towers may have the same layers without adapters, so that names of layers would not do. Layers
    that are adapted alike share an alternative.
    """
    numbers: dict[tuple[str, str], list[str]] = {}
    for module in modules:
        match = _INDEXED.fullmatch(module)
        before, number, after = match.groups() if match else (module, "", "")
        numbers.setdefault((before, after), []).append(number)
    suffixes: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (before, after), found in numbers.items():
        suffixes.setdefault((before, tuple(found)), []).append(after)
    return "|".join(
        re.escape(before) + _either(found) + _either(map(re.escape, after))
        for (before, found), after in suffixes.items()
    )


def _either(choices: Iterable[str]) -> str:
    choices = list(choices)
    return choices[0] if len(choices) == 1 else f"({'|'.join(choices)})"
