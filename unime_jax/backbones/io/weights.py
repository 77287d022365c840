"""Reading and writing of parameters as Hugging Face safetensors, by one table for both.

A process reads the bytes of its own shards only, layer by layer into one shard at a time: beside
its arrays, it needs room for the largest of their shards. Kernels to be quantised are read whole,
as a scale belongs to a whole column; in memory are then a few rows of a layer and this process's
part of the codes. Never pickle, never remote code.
"""

import collections
import concurrent.futures
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from unime_jax.backbones.io import quantized
from unime_jax.backbones.io.folder_tensors import Checkpoint
from unime_jax.backbones.io.merging import Adapter
from unime_jax.backbones.io.names import (
    AS_PUBLISHED,
    Entry,
    Fused,
    Modules,
    Names,
    by_tensor,
    copy_transposed,
    table,
)
from unime_jax.backbones.io.tensor_files import INDEX, SINGLE, save_file
from unime_jax.operations import watchdog

__all__ = ["AS_PUBLISHED", "Checkpoint", "Fused", "Modules", "Names", "load", "save"]

SHARD_BYTES = 5 * 10**9  # the hub's customary shard size
THREADS = min(16, os.cpu_count() or 1)  # layers that are read at the same time


class Lazy(Protocol):
    """A value that `np.asarray` computes on demand; all processes must ask for it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, known without the value."""
        ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The value."""
        ...


Leaf = jax.Array | Lazy


def load(
    folder: pathlib.Path,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    names: Names,
    adapter: Adapter | None = None,
) -> dict[str, jax.Array]:
    """Reads every parameter of `targets` in its dtype and sharding, an adapter merged into it.

    Kernels of dtype int8 are quantised, and `targets` has their scales as well, by the path
    "<kernel>_scale". Codes and scales do not depend on the sharding.

    Raises:
      ValueError: the folder has no weights, or they do not fit (one table of all misfits).
    """
    checkpoint = Checkpoint(folder, names, adapter)
    if not checkpoint.tensors:
        raise ValueError(
            f"{folder} holds no {SINGLE} or {INDEX}. Download the whole repository, or "
            "convert pickled weights to safetensors."
        )
    scales = {f"{path}_scale" for path, target in targets.items() if target.dtype == np.int8}
    shapes = {path: target.shape for path, target in targets.items() if path not in scales}
    entries = table(shapes, names)
    checkpoint.check(entries)
    parameters: dict[str, jax.Array] = {}
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for entry in entries:
            path, scale = entry.path, f"{entry.path}_scale"
            if scale in scales:
                parameters[path], parameters[scale] = quantized.read(
                    checkpoint.matrix, entry, targets[path], targets[scale], pool
                )
            else:
                parameters[path] = _read(checkpoint, entry, targets[path], pool)
            watchdog.progress()
    return parameters


def _read(
    checkpoint: Checkpoint,
    entry: Entry,
    target: jax.ShapeDtypeStruct,
    pool: concurrent.futures.Executor,
) -> jax.Array:
    places = target.sharding.addressable_devices_indices_map(target.shape)
    devices: dict[str, list[jax.Device]] = {}  # those that hold the same part share a read
    for device, index in places.items():
        devices.setdefault(str(index), []).append(device)
    arrays = {}
    for same in devices.values():
        shard = _read_shard(checkpoint, entry, target, places[same[0]], pool)
        for device in same:
            arrays[device] = jax.device_put(shard, device)
        jax.block_until_ready([arrays[device] for device in same])
        del shard  # before there is a next one
    return jax.make_array_from_single_device_arrays(
        target.shape, target.sharding, [arrays[device] for device in places], dtype=target.dtype
    )


def _read_shard(
    checkpoint: Checkpoint,
    entry: Entry,
    target: jax.ShapeDtypeStruct,
    index: tuple[slice, ...],
    pool: concurrent.futures.Executor,
) -> np.ndarray:
    layers, inner = (index[0], index[1:]) if entry.stacked else (slice(None), index)
    chosen = entry.names[layers]
    shape = tuple(len(range(size)[part]) for size, part in zip(target.shape, index, strict=True))
    shard = np.empty(shape, target.dtype)

    def fill(place: np.ndarray, name: str) -> None:
        if entry.transposed:
            columns, rows = inner
            copy_transposed(place, checkpoint.matrix(name)[entry.within(rows), columns])
        else:
            rows, *others = inner
            place[...] = checkpoint.open(name)[(entry.within(rows), *others)]

    for _ in pool.map(fill, shard if entry.stacked else shard[None], chosen):
        pass  # raises what `fill` raised
    return shard


def save(
    folder: pathlib.Path,
    parameters: Mapping[str, Leaf],
    names: Names,
    dtype: np.dtype,
    *,
    carried: Iterable[tuple[str, np.ndarray]] = (),
    spell: Callable[[str], Sequence[str]] = lambda name: [name],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes parameters as one safetensors file, or as shards with an index if over the size.

    The folder's former weights are replaced once everything is written, so an interrupted save is
    never taken for a checkpoint.

    Args:
      folder: of the checkpoint.
      parameters: by path; all processes give the same paths.
      names: of the family's tensors.
      dtype: of the tensors in the file.
      carried: further (name, tensor) to store as they are, which the embedder does not use.
      spell: names under which the tensor of a published name is written.
      shard_bytes: most bytes of a file.
    """
    entries = table({path: leaf.shape for path, leaf in parameters.items()}, names)

    def published() -> Iterator[tuple[str, np.ndarray]]:
        for parts in by_tensor(entries):
            values = [to_host(parameters[part.path]) for part in parts]
            for i, name in enumerate(parts[0].names):
                layers = [
                    part.to_file(value[i] if part.stacked else value).astype(dtype, copy=False)
                    for part, value in zip(parts, values, strict=True)
                ]
                watchdog.progress()
                yield name, layers[0] if len(layers) == 1 else np.concatenate(layers)
        yield from carried

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        return ((spelled, tensor) for name, tensor in published() for spelled in spell(name))

    if jax.process_index() != 0:  # takes part in gathering, but writes nothing
        collections.deque(tensors(), maxlen=0)
        return
    shards: list[list[str]] = []
    total = 0
    for shard in _group(tensors(), shard_bytes):
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


def to_host(leaf: Leaf) -> np.ndarray:
    """The whole value in this process; all processes must ask for it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


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
