"""Export of LoRA and DoRA adapters as a folder in PEFT's format; `merging` reads such folders."""

import json
import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np
import scipy.linalg

from unime_jax import files
from unime_jax.backbones.backbone import Backbone
from unime_jax.backbones.io import merging
from unime_jax.backbones.io.names import Names, by_tensor, table
from unime_jax.backbones.io.tensor_files import save_file
from unime_jax.backbones.io.weights import to_host
from unime_jax.backbones.preprocessing import processing
from unime_jax.models.lora import LoraConfig

PARTS = {  # a layer's adapter parameters, and PEFT's names for them
    "lora_a": "lora_A.weight",
    "lora_b": "lora_B.weight",
    "lora_magnitude": "lora_magnitude_vector",
}

_INDEXED = re.compile(r"(.*?\.)(\d+)(\..*)")


def save(
    folder: files.Path,
    backbone: Backbone,
    parameters: Mapping[str, jax.Array],
    config: LoraConfig,
    *,
    dtype: np.dtype,
) -> None:
    """Writes adapter_config.json, adapter_model.safetensors and files of the inputs.

    Modules are called as PEFT sees them in transformers 5. The adapters of layers that are one in
    the file become one: A stacked, B block by block. Everything but the adapters is the base's, so
    nothing else may have been trained. All processes take part, process 0 writes; an earlier
    `folder` is replaced.

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
    rank = config.rank
    assert rank is not None  # resolved in set-up
    ranks, tensors = _collect(backbone.names, parameters, dtype)
    if not ranks:
        raise ValueError(f"{folder}: the model has no adapters to write.")
    if jax.process_index() != 0:
        return
    record = {
        "base_model_name_or_path": backbone.base or str(backbone.folder.resolve()),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "alpha_pattern": _pattern(ranks, rank, config.alpha / rank),
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "revision": backbone.commits.get(backbone.base),
        "rank_pattern": _pattern(ranks, rank, 1),
        "target_modules": selection(ranks),
        "task_type": None,
        "use_dora": config.dora,
        "use_rslora": False,
    }
    with files.replacing(folder, last=merging.CONFIG) as partial:
        save_file(tensors, partial / merging.WEIGHTS, metadata={"format": "pt"})
        (partial / merging.CONFIG).write_text(json.dumps(record, indent=2) + "\n")
        processing.write(
            partial,
            backbone.processing,
            max_length=backbone.preprocess.prompt.max_length,
            commits=backbone.commits,
        )


def _collect(
    names: Names, parameters: Mapping[str, jax.Array], dtype: np.dtype
) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Rank of each adapted module, and tensors of the file."""
    adapted = {path[: -len(".lora_a")] for path in parameters if path.endswith(".lora_a")}
    shapes = {path: x.shape for path, x in parameters.items() if path.endswith(".kernel")}
    ranks, tensors = {}, {}
    for entries in by_tensor(table(shapes, names)):
        layers = [entry.path[: -len(".kernel")] for entry in entries]
        if adapted.isdisjoint(layers):
            continue
        found = [_adapter(parameters, layer) for layer in layers]
        dora = any(f"{layer}.lora_magnitude" in parameters for layer in layers)
        for i, name in enumerate(entries[0].names):
            each = [
                {k: (x[i] if entries[0].stacked else x).T for k, x in one.items()} for one in found
            ]
            fused = {
                "lora_a": np.concatenate([one["lora_a"] for one in each]),
                "lora_b": scipy.linalg.block_diag(*(one["lora_b"] for one in each)),
            }
            if dora:
                fused["lora_magnitude"] = np.concatenate([one["lora_magnitude"] for one in each])
            module = names.module(name)
            ranks[module] = len(fused["lora_a"])
            for part, value in fused.items():
                tensor = np.ascontiguousarray(value).reshape(_shape(part, entries[0].shape))
                tensors[f"{merging.PREFIX}{module}.{PARTS[part]}"] = tensor.astype(dtype)
    return ranks, tensors


def _adapter(parameters: Mapping[str, jax.Array], layer: str) -> dict[str, np.ndarray]:
    """A layer's adapter parameters; of one that has none, those that change nothing."""
    if f"{layer}.lora_a" in parameters:
        parts = [part for part in PARTS if f"{layer}.{part}" in parameters]
        return {part: to_host(parameters[f"{layer}.{part}"]) for part in parts}
    kernel = to_host(parameters[f"{layer}.kernel"]).astype(np.float32)
    if f"{layer}.kernel_scale" in parameters:
        kernel *= to_host(parameters[f"{layer}.kernel_scale"])[..., None, :]
    *stack, fan_in, fan_out = kernel.shape
    return {
        "lora_a": np.zeros((*stack, fan_in, 0), np.float32),
        "lora_b": np.zeros((*stack, 0, fan_out), np.float32),
        "lora_magnitude": np.linalg.norm(kernel, axis=-2),
    }


def _pattern(ranks: Mapping[str, int], rank: int, factor: float) -> dict[str, float]:
    """PEFT's pattern for modules of other ranks than `rank`: their rank, times `factor`."""
    others = sorted(set(ranks.values()) - {rank})
    return {selection(m for m in ranks if ranks[m] == other): other * factor for other in others}


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
    """Regex that matches exactly these module names.

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
