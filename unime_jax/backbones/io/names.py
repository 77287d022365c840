"""Mapping between parameters and checkpoint tensors, in both directions.

A parameter's path is its checkpoint name but for three generic rules (layers are stacked, linear
weights transposed, leaves renamed) and each family's prefixes.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

_STACKED = re.compile(r"(.*\.(?:layers?|blocks|deepstack_merger_list))\.(.*)")
Modules = tuple[tuple[str, str], ...]
AS_PUBLISHED: Modules = (("", ""),)
STRIP = 128  # bytes of every target row that are written at once when transposing: cache lines


@dataclasses.dataclass(frozen=True)
class Fused:
    """Fused layers: one tensor in a file, with the rows of several layers in order.

    In the module `inside` (a path that ends in a dot), `name` is made of the layers `parts`.
    """

    inside: str
    name: str
    parts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Names:
    """Naming rules of a checkpoint.

    `prefixes`: (path prefix, name prefix) as the family is published; first match wins.
    `aliases`: (regex, replacement) that turn other spellings into the published one, in order.
    `modules`: what modules are called, which is what PEFT sees, in each model that the tensors may
    have been part of: (published prefix, module prefix), first match wins; a name that no prefix
    covers is not in that model. First comes transformers 5's model with its head, then others:
    without the head, of older versions, the language model alone.
    `unused`: regexes of tensors that the embedder has no use for (carried over on export).
    `convolution`: path of the kernel that is a convolution in the file, and the shape of one of
    its filters there.
    `fused`: layers that are one in the file.
    `shared`: published names of tensors that a file may hold under several names.
    `targets`: layers that PEFT adapts if an adapter's configuration names none; (): it refuses.
    """

    prefixes: tuple[tuple[str, str], ...]
    aliases: tuple[tuple[str, str], ...]
    modules: tuple[Modules, ...]
    unused: tuple[str, ...]
    convolution: tuple[str, tuple[int, ...]]
    fused: tuple[Fused, ...] = ()
    shared: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def published(self, name: str) -> str:
        """Published name of a tensor, given any spelling of it."""
        for pattern, replacement in self.aliases:
            name = re.sub(pattern, replacement, name)
        return name

    def module(self, name: str) -> str:
        """Module of transformers 5 that holds the tensor of a published name."""
        module = module_in(self.modules[0], name)
        assert module is not None, f"no module of transformers 5 has {name}"
        return module

    def is_unused(self, name: str) -> bool:
        """Whether an embedder does not use the tensor of a published name."""
        return _any_of(self.unused).fullmatch(name) is not None


def module_in(model: Modules, name: str) -> str | None:
    """Module of a model that holds the tensor of a published name, or None."""
    for published, theirs in model:
        if name.startswith(published):
            return (theirs + name[len(published) :]).rpartition(".")[0]
    return None


@functools.cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or r"(?!)")


@dataclasses.dataclass(frozen=True)
class Entry:
    """Location of a parameter in a checkpoint: one tensor, or one per layer of a stack.

    `rows` are those of the file's tensor that are the parameter's: all, unless it is fused.
    """

    path: str
    names: tuple[str, ...]
    stacked: bool
    shape: tuple[int, ...]  # of each tensor in the file
    transposed: bool
    rows: range

    def to_file(self, layer: np.ndarray) -> np.ndarray:
        """One layer's parameter in the file's layout: its rows of a tensor of `shape`."""
        shape = (len(self.rows), *self.shape[1:])
        if not self.transposed:
            return np.ascontiguousarray(layer).reshape(shape)
        tensor = np.empty(layer.shape[::-1], layer.dtype)
        copy_transposed(tensor, layer)
        return tensor.reshape(shape)

    def within(self, rows: slice) -> slice:
        """Rows of the file's tensor, given rows of the parameter."""
        part = self.rows[rows]
        return slice(part.start, part.stop)


class Rows(Protocol):
    """A matrix whose rows can be sliced, and slices made arrays."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Some of the rows."""
        ...


def copy_transposed(target: np.ndarray, source: Rows) -> None:
    """`target[...] = source.T`, several times as fast for large matrices."""
    rows = STRIP // target.itemsize
    for start in range(0, target.shape[1], rows):
        strip = np.asarray(source[start : start + rows]).astype(target.dtype, copy=False)
        target[:, start : start + rows] = strip.T


def table(shapes: Mapping[str, tuple[int, ...]], names: Names) -> list[Entry]:
    """Entries of all parameters; a fused layer needs all of its parts, or none.

    Raises:
      ValueError: a path has no prefix rule.
    """
    return [_part(path, shapes, names) for path in shapes]


def by_tensor(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Entries of the same tensors together, in the order of their rows."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.rows.start):
        groups.setdefault(entry.names, []).append(entry)
    return list(groups.values())


def _part(path: str, shapes: Mapping[str, tuple[int, ...]], names: Names) -> Entry:
    """The entry of a parameter, with its rows if it is a part of a fused layer."""
    entry = _entry(path, tuple(shapes[path]), names)
    for fused in names.fused:
        layer, _, leaf = path.removeprefix(fused.inside).partition(".")
        if path.startswith(fused.inside) and layer in fused.parts:
            sizes = [shapes[f"{fused.inside}{part}.{leaf}"][-1] for part in fused.parts]
            first = sum(sizes[: fused.parts.index(layer)])
            return dataclasses.replace(
                entry,
                names=tuple(name.replace(f".{layer}.", f".{fused.name}.") for name in entry.names),
                shape=(sum(sizes), *entry.shape[1:]),
                rows=range(first, first + entry.shape[0]),
            )
    return entry


def _entry(path: str, shape: tuple[int, ...], names: Names) -> Entry:
    for ours, theirs in names.prefixes:
        if path.startswith(ours):
            name = theirs + path[len(ours) :]
            break
    else:
        raise ValueError(f"No name prefix of the family covers the parameter {path}.")
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("kernel", "embedding"):
        name = name[: -len(leaf)] + "weight"
    match = _STACKED.fullmatch(name)
    layers, shape = (shape[0], shape[1:]) if match else (1, shape)
    if leaf == "kernel":
        shape = shape[::-1]
        convolution, filter_shape = names.convolution
        if path == convolution:
            shape = (shape[0], *filter_shape)
    all_names = tuple(f"{match[1]}.{i}.{match[2]}" for i in range(layers)) if match else (name,)
    transposed = leaf == "kernel"
    return Entry(path, all_names, match is not None, shape, transposed, range(shape[0]))
