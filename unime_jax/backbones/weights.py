"""Parameters from Hugging Face safetensors and back, by one table used in both directions.

A parameter's path is its checkpoint name but for three generic rules (layers are stacked, linear
weights transposed, leaves renamed) and each family's prefixes. Files are memory-mapped: a process
reads the bytes of its own shards only. Never pickle, never remote code.
"""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes  # noqa: F401  teaches numpy, and so safetensors, the name bfloat16
import numpy as np
from jax.experimental import multihost_utils
from safetensors import safe_open
from safetensors.numpy import save_file

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 10**9  # the hub's customary shard size

_STACKED = re.compile(r"(.*\.(?:layers|blocks))\.(.*)")


@dataclasses.dataclass(frozen=True)
class Names:
    """How a checkpoint spells names.

    `prefixes`: (path prefix, name prefix) as the family is published; first match wins.
    `aliases`: (regex, replacement) that turn other spellings into the published one.
    `unused`: regexes of tensors that the embedder has no use for (carried over on export).
    `convolution`: path of the kernel that is a convolution in the file, and the shape of one of
    its filters there.
    """

    prefixes: tuple[tuple[str, str], ...]
    aliases: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]
    convolution: tuple[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one parameter lies in a checkpoint: one tensor, or one per layer of a stack."""

    path: str
    names: tuple[str, ...]
    stacked: bool
    shape: tuple[int, ...]  # of each tensor in the file
    transposed: bool

    def to_file(self, layer: np.ndarray) -> np.ndarray:
        """One layer's parameter in the file's layout."""
        layer = layer.T if self.transposed else layer
        return np.ascontiguousarray(layer).reshape(self.shape)

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        """The inverse of `to_file`."""
        flat = tensor.reshape(tensor.shape[0], -1) if self.transposed else tensor
        return flat.T if self.transposed else flat


def table(shapes: Mapping[str, tuple[int, ...]], names: Names) -> list[Entry]:
    """An entry for every parameter. Raises ValueError where a path has no prefix rule."""
    return [_entry(path, tuple(shape), names) for path, shape in shapes.items()]


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
    return Entry(path, all_names, match is not None, shape, leaf == "kernel")


class Checkpoint:
    """The tensors of a folder, under the family's published names, read lazily."""

    def __init__(self, folder: pathlib.Path, names: Names):
        self._names = names
        self._open: dict[str, Any] = {}
        self.folder = folder
        self.spelling: dict[str, tuple[str, str]] = {}  # published name -> (file, name in the file)
        for file in checkpoint_files(folder):
            for name in self._file(file).keys():  # noqa: SIM118
                self.spelling[self._published(name)] = (file, name)

    def _file(self, file: str) -> Any:
        if file not in self._open:
            self._open[file] = safe_open(self.folder / file, framework="np")
        return self._open[file]

    def _published(self, name: str) -> str:
        for pattern, replacement in self._names.aliases:
            name = re.sub(pattern, replacement, name)
        return name

    def spelled(self, name: str) -> str:
        """A name as this folder spells it; as published, if it is not there."""
        return self.spelling[name][1] if name in self.spelling else name

    def slice(self, name: str) -> Any:
        """A lazy view of a tensor: indexing reads just those bytes."""
        file, spelled = self.spelling[name]
        return self._file(file).get_slice(spelled)

    def unused(self) -> list[str]:
        """Names that the embedder has no use for."""
        patterns = [re.compile(p) for p in self._names.unused]
        return [n for n in self.spelling if any(p.fullmatch(n) for p in patterns)]

    def check(self, entries: Sequence[Entry]) -> None:
        """Raises ValueError that lists everything missing, left over and of the wrong shape."""
        wanted = {name: entry.shape for entry in entries for name in entry.names}
        problems = [f"missing     {n} {wanted[n]}" for n in wanted if n not in self.spelling]
        left_over = set(self.spelling) - set(wanted) - set(self.unused())
        problems += [f"left over   {n}" for n in sorted(left_over)]
        for name, shape in wanted.items():
            if name in self.spelling and tuple(self.slice(name).get_shape()) != shape:
                found = tuple(self.slice(name).get_shape())
                problems.append(f"wrong shape {name}: {found} in the file, {shape} in the model")
        if problems:
            raise ValueError(
                f"The weights in {self.folder} do not fit its config.json "
                f"({len(problems)} problem(s)):\n  " + "\n  ".join(problems)
            )


def checkpoint_files(folder: pathlib.Path) -> list[str]:
    """The safetensors files of a folder; empty if it has none. As transformers, one file first.

    Raises:
      ValueError: the index names a file that is not there.
    """
    if (folder / SINGLE).exists():
        return [SINGLE]
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text())
        files = sorted(set(index["weight_map"].values()))
        absent = [file for file in files if not (folder / file).exists()]
        if absent:
            raise ValueError(f"{folder / INDEX} names files that are absent: {', '.join(absent)}")
        return files
    return []


def load(
    folder: pathlib.Path, targets: Mapping[str, jax.ShapeDtypeStruct], names: Names
) -> dict[str, jax.Array]:
    """Reads every parameter of `targets` in its dtype and sharding.

    Raises:
      ValueError: the folder has no weights, or they do not fit (one table of all misfits).
    """
    checkpoint = Checkpoint(folder, names)
    if not checkpoint.spelling:
        raise ValueError(
            f"{folder} holds no {SINGLE} or {INDEX}. Download the whole repository, convert "
            'pickled weights to safetensors, or set config.init="random" to start from scratch.'
        )
    entries = table({path: target.shape for path, target in targets.items()}, names)
    checkpoint.check(entries)
    return {entry.path: _read(checkpoint, entry, targets[entry.path]) for entry in entries}


def _read(checkpoint: Checkpoint, entry: Entry, target: jax.ShapeDtypeStruct) -> jax.Array:
    done: dict[str, np.ndarray] = {}

    def shard(index: Any) -> np.ndarray:
        if str(index) not in done:  # devices that hold the same part share one read
            done[str(index)] = read(index)
        return done[str(index)]

    def read(index: Any) -> np.ndarray:
        layers, inner = (index[0], index[1:]) if entry.stacked else (slice(None), index)
        if entry.transposed:
            inner = inner[::-1]
        chosen = entry.names[layers]
        parts = []
        for name in chosen:
            view = checkpoint.slice(name)
            if len(entry.shape) > len(inner):  # a convolution is small: read it whole
                part = entry.from_file(view[:])[tuple(index[-2:])]
            else:
                part = entry.from_file(view[tuple(inner)])
            parts.append(np.asarray(part, target.dtype))
        return np.stack(parts) if entry.stacked else parts[0]

    return jax.make_array_from_callback(target.shape, target.sharding, shard)


def save(
    folder: pathlib.Path,
    parameters: Mapping[str, jax.Array],
    names: Names,
    dtype: np.dtype,
    *,
    carried: Iterable[tuple[str, np.ndarray]] = (),
    spell: Callable[[str], str] = str,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes parameters as one safetensors file, or as shards with an index if over the size.

    What the folder held before is replaced once everything is written: what is cut short is never
    taken for a checkpoint.

    Args:
      carried: further (name, tensor) to store as they are, which the embedder does not use.
      spell: from a published name to the one to write.
    """
    entries = table({path: leaf.shape for path, leaf in parameters.items()}, names)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for entry in entries:
            value = _to_host(parameters[entry.path])
            layers = value if entry.stacked else value[None]
            for name, layer in zip(entry.names, layers, strict=True):
                yield name, entry.to_file(layer).astype(dtype)
        yield from carried

    if jax.process_index() != 0:  # takes part in gathering, but writes nothing
        collections.deque(tensors(), maxlen=0)
        return
    shards: list[list[str]] = []
    total = 0
    for shard in _group(tensors(), shard_bytes):
        shard = {spell(name): tensor for name, tensor in shard.items()}
        save_file(shard, folder / f"shard-{len(shards)}.tmp", metadata={"format": "pt"})
        shards.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    for before in (SINGLE, INDEX):
        (folder / before).unlink(missing_ok=True)
    if len(shards) == 1:
        (folder / "shard-0.tmp").replace(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for i, shard_names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{i}.tmp").replace(folder / file)
        weight_map |= dict.fromkeys(shard_names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "index.tmp").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    (folder / "index.tmp").replace(folder / INDEX)


def _to_host(leaf: jax.Array) -> np.ndarray:
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)


def _group(
    tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard
