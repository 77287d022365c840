"""A PEFT adapter (LoRA or DoRA), merged into its base while the base is read.

The arithmetic is PEFT's `merge_and_unload`, in float32: W + s B A, and for DoRA every row scaled to
its trained magnitude (Liu et al. 2024, eq. 5). Any slice of a merged tensor needs just that slice
of the base, but for the norms of its rows, which are computed once.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from unime_jax.backbones.names import Names
from unime_jax.backbones.tensor_files import FLOATS, Tensor, open_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
BLOCK = 256  # rows of a tensor whose norms are computed at once
TINY = 1e-15  # below any norm that a trained row has

_NAME = re.compile(
    re.escape(PREFIX) + r"(?P<module>.+)\."
    r"(?P<part>lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
# What changes the arithmetic, or the base, in ways that are not done here.
_UNSUPPORTED = (
    "lora_bias",
    "modules_to_save",
    "fan_in_fan_out",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "megatron_config",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
_PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva")  # others change the base


@dataclasses.dataclass
class Delta:
    """The low-rank change of one tensor: A [R, in], B [out, R] and DoRA's magnitude [out].

    Those of a convolution have its filter's axes, too. `rank` and `dora` are what the adapter's
    configuration says; `factor` is what DoRA scales the rows by, once that is known.
    """

    module: str  # as the adapter spells it
    parts: dict[str, Tensor]
    rank: int
    scale: float
    dora: bool
    factor: np.ndarray | None = None

    def onto(self, weight: np.ndarray) -> "Merged":
        """The merged tensor of a base [out, in], as lazy as that is."""
        a, b = _float(self.parts["lora_A"]), _float(self.parts["lora_B"])
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        merged = Merged(weight, a, b * np.float32(self.scale), None)
        if self.dora and self.factor is None:
            magnitude = _float(self.parts["lora_magnitude_vector"]).reshape(-1, 1)
            self.factor = magnitude / merged.norms()
        return dataclasses.replace(merged, factor=self.factor)

    def misfits(self, shape: tuple[int, ...]) -> list[str]:
        """What is wrong with the parts for a tensor of this shape in the file."""
        ones = (1,) * (len(shape) - 2)  # B of a convolution is a convolution of size one
        expected = {"lora_A": (self.rank, *shape[1:]), "lora_B": (shape[0], self.rank, *ones)}
        if self.dora:
            expected["lora_magnitude_vector"] = (1, shape[0], *ones) if ones else (shape[0],)
        lines = [f"{part} is missing" for part in expected if part not in self.parts]
        for part, tensor in self.parts.items():
            if part not in expected:
                lines.append(f"{part}: unexpected, as use_dora is false")
            elif tensor.shape != expected[part]:
                lines.append(f"{part}: {tensor.shape} in the file, {expected[part]} expected")
            elif tensor.dtype not in FLOATS:
                lines.append(f"{part}: {tensor.dtype} is no float")
        return [f"adapter     {self.module}.{line}" for line in lines]


@dataclasses.dataclass(frozen=True)
class Merged:
    """(weight + b a) * factor, of shape [out, in]: slices are lazy, `np.asarray` computes them."""

    weight: np.ndarray
    a: np.ndarray
    b: np.ndarray  # scaled
    factor: np.ndarray | None

    def __getitem__(self, index: slice | tuple[slice, slice]) -> "Merged":
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        factor = None if self.factor is None else self.factor[rows]
        return Merged(self.weight[rows, columns], self.a[:, columns], self.b[rows], factor)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        value = np.array(self.weight, np.float32)
        value += self.b @ self.a
        if self.factor is not None:
            value *= self.factor
        return value.astype(dtype or np.float32, copy=False)

    def norms(self) -> np.ndarray:
        """The norm of every row, [out, 1]; never zero, so that a dead row stays dead."""
        blocks = (np.asarray(self[i : i + BLOCK]) for i in range(0, len(self.b), BLOCK))
        norms = [np.linalg.norm(block, axis=1, keepdims=True) for block in blocks]
        return np.maximum(np.concatenate(norms), np.float32(TINY))


def _float(tensor: Tensor) -> np.ndarray:
    return tensor.open().astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The deltas of a folder, by the published name of the tensor that each changes.

    `strangers`: names in the file that are no part of a LoRA or DoRA.
    """

    folder: pathlib.Path
    deltas: Mapping[str, Delta]
    strangers: tuple[str, ...]

    def misfits(self, linears: Mapping[str, tuple[int, ...]], names: Names) -> list[str]:
        """A line for everything that does not fit, given the shapes of all linear layers."""
        lines = []
        for name in self.strangers:
            # PEFT keeps a copy of the head of the base in the file if it has an adapter.
            tensor = name.removeprefix(PREFIX).replace(".base_layer.", ".")
            if not names.is_unused(names.published(tensor)):
                lines.append(f"adapter     {name}: no part of a LoRA or DoRA")
        for name, delta in self.deltas.items():
            if name in linears:
                lines += delta.misfits(linears[name])
            elif not names.is_unused(name):
                lines.append(f"adapter     {delta.module}: the model has no such linear layer")
        return lines


def read(folder: pathlib.Path, names: Names) -> Adapter:
    """Reads an adapter's configuration and where its tensors lie.

    Raises:
      ValueError: its weights are not there as safetensors, or it does what is not done here.
    """
    config = read_config(folder)
    unsupported = [key for key in _UNSUPPORTED if config.get(key)]
    unsupported += ["bias"] if config.get("bias", "none") != "none" else []
    unsupported += ["peft_type"] if config.get("peft_type") != "LORA" else []
    if config.get("init_lora_weights") not in _PLAIN_INITS:
        unsupported.append("init_lora_weights")
    if unsupported:
        settings = ", ".join(f"{key}={config.get(key)!r}" for key in unsupported)
        raise ValueError(
            f"{folder / CONFIG}: {settings} is not supported; merge this adapter with PEFT's "
            "merge_and_unload and use the folder that save_pretrained then writes."
        )
    if not (folder / WEIGHTS).exists():
        raise ValueError(
            f"{folder} has no {WEIGHTS}; pickled weights are never read. Load the adapter with "
            "peft.PeftModel.from_pretrained and write it again with save_pretrained, which makes "
            "a safetensors file."
        )
    parts: dict[str, dict[str, Tensor]] = {}
    strangers = []
    for name, tensor in open_file(folder / WEIGHTS).items():
        match = _NAME.fullmatch(name)
        if match:
            parts.setdefault(match["module"], {})[match["part"]] = tensor
        else:
            strangers.append(name)
    deltas = {}
    for module, found in parts.items():
        name = names.published(module + ".weight")
        rank, scale = _rank_and_scale(config, module, names)
        deltas[name] = Delta(module, found, rank, scale, bool(config.get("use_dora")))
    return Adapter(folder, deltas, tuple(strangers))


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The adapter_config.json of a folder."""
    return json.loads((folder / CONFIG).read_text())


def _rank_and_scale(config: Mapping[str, Any], module: str, names: Names) -> tuple[int, float]:
    """Patterns are matched with a module's name in the file, and with that in transformers 5."""
    spellings = (module, names.module(names.published(module + ".weight")))

    def chosen(patterns: Mapping[str, Any] | None, default: Any) -> Any:
        for pattern, value in (patterns or {}).items():
            if any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in spellings):
                return value
        return default

    rank = int(chosen(config.get("rank_pattern"), config["r"]))
    alpha = float(chosen(config.get("alpha_pattern"), config["lora_alpha"]))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
