"""Merging of a PEFT adapter (LoRA or DoRA) into its base while the base is read.

The arithmetic is PEFT's `merge_and_unload`, in float32: W + s B A, and for DoRA every row scaled to
its trained magnitude (Liu et al. 2024, eq. 5). Any slice of a merged tensor needs just that slice
of the base, but for the norms of its rows, which are computed once.

The configuration's targets are held against the file, both ways: PEFT loads half an adapter as half
of one, and leaves out what is not targeted.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from unime_jax.backbones.io.names import Modules, Names, module_in
from unime_jax.backbones.io.peft_targets import is_target
from unime_jax.backbones.io.tensor_files import FLOATS, Tensor, open_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
BLOCK = 256  # rows of a tensor whose norms are computed at once
TINY = 1e-15  # below any norm that a trained row has
DEFAULTS = {"r": 8, "lora_alpha": 8}  # PEFT's, of a configuration that leaves them out

_NAME = re.compile(
    re.escape(PREFIX)
    + r"(?:0\.(?:auto_)?model\.)?"  # around a whole SentenceTransformer
    + r"(?P<module>.+)\."
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
        """Merged tensor of a base [out, in], as lazy as the base."""
        a, b = _float(self.parts["lora_A"]), _float(self.parts["lora_B"])
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        merged = Merged(weight, a, b * np.float32(self.scale), None)
        if self.dora and self.factor is None:
            magnitude = _float(self.parts["lora_magnitude_vector"]).reshape(-1, 1)
            self.factor = magnitude / merged.norms()
        return dataclasses.replace(merged, factor=self.factor)

    def misfits(self, shape: tuple[int, ...]) -> list[str]:
        """Misfit of the parts with a tensor of this shape in the file."""
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
        """Norms of rows, [out, 1]; never zero, so that a dead row stays dead."""
        blocks = (np.asarray(self[i : i + BLOCK]) for i in range(0, len(self.b), BLOCK))
        norms = [np.linalg.norm(block, axis=1, keepdims=True) for block in blocks]
        return np.maximum(np.concatenate(norms), np.float32(TINY))


def _float(tensor: Tensor) -> np.ndarray:
    return tensor.open().astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Deltas of a folder, by the published name of the tensor that each changes.

    `config`: the content of adapter_config.json, defaults filled in.
    `strangers`: names in the file that are no part of a LoRA or DoRA.
    `repeated`: names of parts that the file holds under another name, too.
    """

    folder: pathlib.Path
    config: Mapping[str, Any]
    deltas: Mapping[str, Delta]
    strangers: tuple[str, ...]
    repeated: tuple[str, ...]

    def misfits(
        self, linears: Mapping[str, tuple[int, ...]], adaptable: Mapping[str, bool], names: Names
    ) -> list[str]:
        """A line for everything that does not fit.

        Args:
          linears: shapes of all linear layers and convolutions, by published name.
          adaptable: published names of the layers that the embedder uses and PEFT can adapt, and
            whether each is a linear layer (no convolution, no embedding).
          names: of the family.
        """
        lines = [f"adapter     {name}: twice, under another name, too" for name in self.repeated]
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
        return lines + self._untargeted(adaptable, names)

    def _untargeted(self, adaptable: Mapping[str, bool], names: Names) -> list[str]:
        """A line for each target that is not in the file, and for each tensor of no target.

        Patterns are matched with the names that modules had where the adapter was trained. Of
        several models that fit the names in the file, the one counts that fits best: the language
        model alone may have been all that there was.
        """
        deltas = {name: delta for name, delta in self.deltas.items() if name in adaptable}
        models = [
            model
            for model in names.modules
            if all(module_in(model, name) == delta.module for name, delta in deltas.items())
        ]
        found = [self._differences(model, adaptable) for model in models or names.modules]
        return min(found, key=len)

    def _differences(self, model: Modules, adaptable: Mapping[str, bool]) -> list[str]:
        lines = []
        for name, linear in adaptable.items():
            module = module_in(model, name)
            targeted = module is not None and is_target(self.config, module, linear=linear)
            if name in self.deltas and not targeted:
                lines.append(
                    f"adapter     {self.deltas[name].module}: in {WEIGHTS}, but target_modules does"
                    " not name it"
                )
            elif targeted and name not in self.deltas and not self._is_strange(f"{module}."):
                lines.append(
                    f"adapter     {module}: target_modules names it, but {WEIGHTS} has no tensors"
                    " of it"
                )
        return lines

    def _is_strange(self, module: str) -> bool:
        """Whether tensors of the module are among what is refused anyway."""
        return any(name.removeprefix(PREFIX).startswith(module) for name in self.strangers)


def read(folder: pathlib.Path, names: Names) -> Adapter:
    """Reads an adapter's configuration and where its tensors lie.

    Raises:
      ValueError: its weights are not there as safetensors, it has none, its configuration lacks
        something, or it does what is not done here.
    """
    config = DEFAULTS | read_config(folder)
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
    config["target_modules"] = config.get("target_modules") or list(names.targets)
    if not config["target_modules"]:
        raise ValueError(
            f"{folder / CONFIG}: target_modules is missing, so that it is not known what the "
            "adapter changes; write the names of the layers there that it was trained on."
        )
    deltas: dict[str, Delta] = {}
    strangers, repeated = [], []
    for spelled, tensor in open_file(folder / WEIGHTS).items():
        match = _NAME.fullmatch(spelled)
        if match is None:
            strangers.append(spelled)
            continue
        module, part = match["module"], match["part"]
        name = names.published(module + ".weight")
        if name not in deltas:
            rank, scale = _rank_and_scale(config, module, names, folder / CONFIG)
            deltas[name] = Delta(module, {}, rank, scale, bool(config.get("use_dora")))
        if part in deltas[name].parts:
            repeated.append(spelled)
        deltas[name].parts[part] = tensor
    if not deltas:
        raise ValueError(
            f"{folder / WEIGHTS} has no tensors of a LoRA or DoRA (it has {len(strangers)} others),"
            " so that this would be the base without the adapter: write the adapter again, with"
            " PEFT's save_pretrained of the model that was trained."
        )
    return Adapter(folder, config, deltas, tuple(strangers), tuple(repeated))


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The adapter_config.json of a folder."""
    return json.loads((folder / CONFIG).read_text())


def _rank_and_scale(
    config: Mapping[str, Any], module: str, names: Names, file: pathlib.Path
) -> tuple[int, float]:
    """Patterns are matched with a module's name in the file, and with that in transformers 5."""
    spellings = (module, names.module(names.published(module + ".weight")))

    def chosen(patterns: Mapping[str, Any] | None, default: Any) -> Any:
        for pattern, value in (patterns or {}).items():
            if any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in spellings):
                return value
        return default

    rank = chosen(config.get("rank_pattern"), config["r"])
    alpha = chosen(config.get("alpha_pattern"), config["lora_alpha"])
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ValueError(
            f"{file}: {module} has rank {rank!r} and lora_alpha {alpha!r}; they must be a whole"
            " number of at least 1, and a number"
        )
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
