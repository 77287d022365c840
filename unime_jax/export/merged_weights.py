"""Weights of a merged model, written tensor by tensor: in memory is one tensor of each part.

Tensors are read as float32, merged, and rounded once. A tensor that is equal in all parts, and in
the base if there is one, is copied, so that no arithmetic touches what no training has.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Bool

from unime_jax import paths
from unime_jax.backbones import Backbone
from unime_jax.backbones.io.folder_tensors import Checkpoint
from unime_jax.backbones.io.names import table
from unime_jax.backbones.io.tensor_files import FLOATS, INDEX, SINGLE, write_file
from unime_jax.backbones.io.weights import SHARD_BYTES
from unime_jax.config import MergeConfig
from unime_jax.export import merge_methods
from unime_jax.operations import watchdog

DTYPES = [np.dtype(x) for x in (np.float32, np.float16, ml_dtypes.bfloat16)]  # of merged weights


@dataclasses.dataclass
class Tally:
    """Counts of tensors in a merged folder.

    `left_out`: names of tensors that embeddings do not need, and that not all parts have alike.
    """

    merged: int = 0
    copied: int = 0
    left_out: tuple[str, ...] = ()


def open_weights(backbone: Backbone) -> Checkpoint:
    """The checkpoint of a backbone, known to hold all parameters of its model in their shapes.

    Raises:
      ValueError: there are no weights, or they do not fit.
    """
    checkpoint = backbone.checkpoint()
    if not checkpoint.tensors:
        raise ValueError(
            f"{backbone.folder} holds no {SINGLE} or {INDEX}: there is nothing to merge"
        )
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    checkpoint.check(table({path: x.shape for path, x in shapes.items()}, backbone.names))
    checkpoint.carried()
    return checkpoint


def dtype_of(backbone: Backbone, checkpoints: Sequence[Checkpoint]) -> np.dtype:
    """The dtype that the weights of all checkpoints have; float32 if they have several."""
    dtypes = {
        tensor.dtype
        for checkpoint in checkpoints
        for name, tensor in checkpoint.tensors.items()
        if not backbone.names.is_unused(name)
    }
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= set(DTYPES) else np.dtype(np.float32)


def write(
    folder: pathlib.Path,
    backbone: Backbone,
    parts: Sequence[Checkpoint],
    base: Checkpoint | None,
    settings: MergeConfig,
    dtype: np.dtype,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Tally:
    """Writes the merge of all tensors that the parts have in common.

    Args:
      folder: gets model.safetensors, or shards with an index if that would be too large.
      backbone: of the first part, whose names the tensors get.
      parts: what is merged.
      base: what TIES and DARE-TIES take differences from.
      settings: method, weights and the like.
      dtype: of the tensors in the file; what is no float keeps its own.
      shard_bytes: most bytes of a file, unless a single tensor has more.

    Raises:
      ValueError: a merged tensor is not finite.
    """
    sources = [*parts, *([base] if base else [])]
    common = [name for name in parts[0].tensors if _is_alike(name, sources)]
    tally = Tally(left_out=tuple(sorted(parts[0].tensors.keys() - set(common))))
    spell: Callable[[str], Sequence[str]] = (
        (lambda name: [name]) if backbone.convert else parts[0].spelled
    )
    layout = {name: _stored(parts[0], name, dtype) for name in common}
    write_tensors(
        folder,
        layout,
        lambda name: _merged(name, parts, base, settings, layout[name][0], tally),
        spell,
        shard_bytes,
    )
    return tally


def write_tensors(
    folder: pathlib.Path,
    layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    value: Callable[[str], np.ndarray],
    spell: Callable[[str], Sequence[str]],
    shard_bytes: int,
) -> None:
    """Writes tensors one by one, as model.safetensors, or as shards with an index.

    Args:
      folder: gets the files.
      layout: dtype and shape of each tensor, by published name.
      value: of the tensor of a name; it is asked for once.
      spell: names under which the tensor of a published name is written.
      shard_bytes: most bytes of a file, unless a single tensor has more.
    """
    # Wide numbers first, so that all are aligned in the file.
    shards = _shards(
        sorted(layout, key=lambda name: -layout[name][0].itemsize), layout, shard_bytes
    )
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = SINGLE
        if len(shards) > 1:
            file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        spelled = {own: layout[name] for name in names for own in spell(name)}
        tensors = (tensor for name in names for tensor in [value(name)] for _ in spell(name))
        write_file(spelled, tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(spelled, file)
    if len(shards) > 1:
        total = sum(_bytes(stored) * len(spell(name)) for name, stored in layout.items())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _is_alike(name: str, sources: Sequence[Checkpoint]) -> bool:
    """Whether all have the tensor in one shape; of what are no floats, the same numbers, too."""
    if any(name not in source.tensors for source in sources):
        return False
    first, *others = (source.tensors[name] for source in sources)
    if any(tensor.shape != first.shape for tensor in others):
        return False
    if all(tensor.dtype in FLOATS for tensor in (first, *others)):
        return True
    return all(
        tensor.dtype == first.dtype and np.array_equal(tensor.open(), first.open())
        for tensor in others
    )


def _stored(part: Checkpoint, name: str, dtype: np.dtype) -> tuple[np.dtype, tuple[int, ...]]:
    """Dtype and shape of a merged tensor."""
    tensor = part.tensors[name]
    return (dtype if tensor.dtype in FLOATS else tensor.dtype), tensor.shape


def _shards(
    names: Sequence[str],
    layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    shard_bytes: int,
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name in names:
        if shards[-1] and size + _bytes(layout[name]) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(layout[name])
    return shards


def _bytes(stored: tuple[np.dtype, tuple[int, ...]]) -> int:
    dtype, shape = stored
    return math.prod(shape) * dtype.itemsize


def _merged(
    name: str,
    parts: Sequence[Checkpoint],
    base: Checkpoint | None,
    settings: MergeConfig,
    dtype: np.dtype,
    tally: Tally,
) -> np.ndarray:
    """One tensor as it is stored."""
    watchdog.progress()
    if dtype not in FLOATS:
        tally.copied += 1
        return np.array(parts[0].open(name))
    tensors = [part.float32(name) for part in parts]
    start = base.float32(name) if base else None
    others = tensors[1:] if start is None else [*tensors[1:], start]
    if all(np.array_equal(tensors[0], other) for other in others):
        tally.copied += 1
        return tensors[0].astype(dtype)
    tally.merged += 1
    with np.errstate(over="ignore", invalid="ignore"):  # said below
        merged = _combined(name, tensors, start, settings).astype(dtype)
    if not np.isfinite(merged).all():
        culprits = [
            str(source.folder)
            for source, tensor in zip([*parts, base], [*tensors, start])
            if source and tensor is not None and not np.isfinite(tensor).all()
        ]
        where = f"it is not finite in {', '.join(culprits)}" if culprits else "each part is finite"
        raise ValueError(f"{name} is not finite when merged in {dtype}; {where}")
    return merged


def _combined(
    name: str, tensors: Sequence[np.ndarray], base: np.ndarray | None, settings: MergeConfig
) -> np.ndarray:
    weights = settings.weights or (1.0,) * len(tensors)
    if settings.method == "linear":
        return merge_methods.linear(tensors, weights)
    if settings.method == "slerp":
        return merge_methods.slerp(tensors[0], tensors[1], weights[1] / sum(weights))
    assert base is not None  # the config says so
    if settings.method == "ties":
        return merge_methods.ties(
            base,
            tensors,
            weights,
            density=settings.density,
            normalize=settings.normalize,
            scale=settings.scale,
        )
    return merge_methods.dare_ties(
        base,
        tensors,
        weights,
        [kept(name, i, base.shape, settings) for i in range(len(tensors))],
        normalize=settings.normalize,
        scale=settings.scale,
    )


def kept(
    name: str, part: int, shape: tuple[int, ...], settings: MergeConfig
) -> Bool[np.ndarray, "*any"]:
    """What DARE keeps of a tensor of the part of this number: a function of seed, name and part."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    rng = np.random.default_rng([settings.seed, int.from_bytes(digest), part])
    return rng.random(shape, np.float32) < settings.density
