"""The tensors of a Hugging Face folder, lazily, and whether they are those that a model wants."""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from unime_jax.backbones.io.merging import Adapter, Merged
from unime_jax.backbones.io.names import Entry, Names
from unime_jax.backbones.io.tensor_files import FLOATS, INDEX, Tensor, checkpoint_files, open_file


class Checkpoint:
    """The tensors of a folder under the family's published names, an adapter merged into them."""

    def __init__(self, folder: pathlib.Path, names: Names, adapter: Adapter | None = None):
        self._names = names
        self._adapter = adapter
        self._deltas = adapter.deltas if adapter else {}
        self._problems: list[str] = []
        self.folder = folder
        self.tensors: dict[str, Tensor] = {}
        self.spelling: dict[str, list[str]] = {}  # published name -> names in the file
        for file, promised in checkpoint_files(folder).items():
            found = open_file(folder / file)
            for name in sorted(promised - found.keys()):
                self._problems.append(f"not in file {name}: {INDEX} says {file}")
            for spelled, tensor in found.items():
                name = names.published(spelled)
                if name in self.tensors and name not in names.shared:
                    self._problems.append(f"twice       {name}: also as {spelled} in {file}")
                elif name in self.tensors and not _equal(tensor, self.tensors[name]):
                    self._problems.append(f"differ      {name} and {spelled}, which are the same")
                self.tensors[name] = tensor
                self.spelling.setdefault(name, []).append(spelled)

    def spelled(self, name: str) -> list[str]:
        """A name in all ways that this folder spells it; as published, if it is not there."""
        return self.spelling.get(name, [name])

    def open(self, name: str) -> np.ndarray:
        """A lazy view of a tensor as it is in the file: indexing it reads nothing else."""
        return self.tensors[name].open()

    def matrix(self, name: str) -> np.ndarray | Merged:
        """A lazy view of a linear layer's tensor as [out, in], the adapter merged into it."""
        view = self.open(name)
        view = view.reshape(len(view), -1)
        return self._deltas[name].onto(view) if name in self._deltas else view

    def float32(self, name: str) -> np.ndarray:
        """A tensor's values in the shape of the file, the adapter merged into it unrounded."""
        value = self.matrix(name) if name in self._deltas else self.open(name)
        return np.asarray(value, np.float32).reshape(self.tensors[name].shape)

    def is_merged(self, name: str) -> bool:
        """Whether the adapter changes a tensor."""
        return name in self._deltas

    def whole(self, name: str, dtype: np.dtype) -> np.ndarray:
        """A tensor's values in the shape of the file, the adapter merged into it, rounded once."""
        value = self.float32(name) if name in self._deltas else np.array(self.open(name))
        return value.astype(dtype, copy=False)

    def carried(self) -> Iterator[tuple[str, np.ndarray]]:
        """Tensors that the embedder has no use for, the adapter merged into them, too.

        Raises:
          ValueError: the adapter changes such a tensor that this folder does not have.
        """
        absent = [name for name in self._deltas if name not in self.tensors]
        if absent:
            raise ValueError(
                f"The adapter changes {', '.join(absent)}, which the embedder does not use and "
                f"{self.folder} does not hold, so that the merged model cannot be written."
            )
        return map(self._carry, filter(self._names.is_unused, self.tensors))

    def _carry(self, name: str) -> tuple[str, np.ndarray]:
        tensor = self.tensors[name]
        value = self.matrix(name) if name in self._deltas else self.open(name)
        return name, np.array(value, tensor.dtype).reshape(tensor.shape)

    def check(self, entries: Sequence[Entry]) -> None:
        """Raises ValueError that lists every misfit of names, shapes, dtypes and the adapter."""
        wanted = {name: entry.shape for entry in entries for name in entry.names}
        problems = [f"missing     {n} {wanted[n]}" for n in wanted if n not in self.tensors]
        unused = {name for name in self.tensors if self._names.is_unused(name)}
        left_over = self.tensors.keys() - wanted.keys() - unused
        problems += [f"left over   {n}" for n in sorted(left_over)]
        for name, shape in wanted.items():
            if name not in self.tensors:
                continue
            tensor = self.tensors[name]
            if tensor.shape != shape:
                problems.append(
                    f"wrong shape {name}: {tensor.shape} in the file, {shape} in the model"
                )
            if tensor.dtype not in FLOATS:
                problems.append(f"not a float {name}: {tensor.dtype}")
        if self._adapter:
            linears = {n: entry.shape for entry in entries if entry.transposed for n in entry.names}
            linears |= {n: x.shape for n, x in self.tensors.items() if n in unused and x.shape[1:]}
            problems += self._adapter.misfits(
                linears, _adaptable(entries, self._names), self._names
            )
        problems += self._problems
        if problems:
            where = f"{self.folder}" + (f" and {self._adapter.folder}" if self._adapter else "")
            raise ValueError(
                f"The weights in {where} do not fit config.json "
                f"({len(problems)} problem(s)):\n  " + "\n  ".join(problems)
            )


def _adaptable(entries: Sequence[Entry], names: Names) -> dict[str, bool]:
    """Names of the tensors that PEFT can adapt, and whether each is a linear layer's."""
    return {
        name: entry.transposed and entry.path != names.convolution[0]
        for entry in entries
        if entry.transposed or entry.path.endswith(".embedding")
        for name in entry.names
    }


def _equal(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and np.array_equal(
        a.open().view(np.uint8), b.open().view(np.uint8)
    )
