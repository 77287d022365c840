"""Automatic values: what a config leaves to backbone and data, decided once and recorded.

A run that goes on takes them from its record, also if the data would give others by then.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from unime_jax import config, config_reader, files, sharding
from unime_jax.backbones import Backbone
from unime_jax.data.formats import Source
from unime_jax.data.length_sample import Sample
from unime_jax.data.schema import check_names
from unime_jax.data.settings import Bucket
from unime_jax.training import chunk_choice, measured_buckets

FILE = "automatic.json"  # of a work directory

LARGE = 10**9  # parameters from which on adapters are trained in the place of the weights
RANK = 16  # UniME, VLM2Vec and Magic-MM-Embedding
ADAPTERS = ((r".*\.lora_(a|b|magnitude)", True), (".*", False))
EVERYTHING = ((".*", True),)
ADAPTERS_RATE = 1e-4  # UniME-V2; UniME for Phi-3.5-Vision
WARMUP = 10  # steps of a run, of which one is of the warm-up
# Of a chunk on each device, at most; 16 rows of 2k tokens of a 7B take 6 GB with remat "full".
CHUNK_TOKENS, CHUNK_ROWS = 2**15, 64
# Of all weights, by the root of their number: 1e-5 for LLaVE-0.5B with its tower, and within the
# 2e-5 to 5e-5 that are customary for BERT's size.
WEIGHTS_RATE, OF_PARAMETERS = 3e-5, 1e8

_OPEN = (  # keys, and the value that leaves each open
    ("trainable", None),
    ("lora.rank", None),
    ("optimizer.learning_rate", None),
    ("optimizer.warmup_steps", None),
    ("data.buckets", ()),
    ("chunk_size", 0),
    ("execution.remat", "auto"),
    ("execution.kept_chunks", None),
    ("execution.merged_chunks", None),
    ("execution.dtype", None),
    ("execution.frozen_dtype", None),
    ("export.dtype", None),
)


# Keys that follow from the devices that there are now, and are chosen anew when a run goes on.
OF_DEVICES = (
    "chunk_size",
    "execution.remat",
    "execution.kept_chunks",
    "execution.merged_chunks",
)


def left_open(settings: config.TrainConfig) -> tuple[str, ...]:
    """The keys whose values follow from backbone and data."""
    follows = ("steps",) if settings.epochs else ()
    return (*follows, *(key for key, value in _OPEN if _get(settings, key) == value))


def resolved(
    settings: config.TrainConfig,
    backbone: Backbone,
    rows: Mapping[str, Source],
    workdir: files.Path | None,
    mesh: Mesh,
) -> config.TrainConfig:
    """The settings with a value for every key that was left open.

    They are logged, and a training run records them in <workdir>/`FILE`.

    Args:
      backbone: opened with as many tokens of a row as it takes, which bound the buckets.
      rows: the training data by source; none: an export of the backbone itself.
      workdir: where an earlier part of the run may have recorded them; None: nowhere.
      mesh: whose devices' memory decides what is kept for gradients.

    Raises:
      ValueError: the record is damaged, no row can be measured, or a length in passes has no data.
    """
    keys, shards = left_open(settings), sharding.row_shards(mesh)
    recorded = read(workdir) if workdir and _has_checkpoints(workdir) else {}
    values = {key: recorded[key] for key in keys if key in recorded}
    # Of the same data, unless a run is extended; and of the devices that there are now.
    if "steps" in keys and (rows or "steps" not in values):
        values["steps"] = steps_of(settings, rows)
    for key in OF_DEVICES:
        values.pop(key, None)
    settings = _filled(settings, values)
    missing = [key for key in keys if key not in values and key not in OF_DEVICES]
    if missing:
        parameters = jax.tree.leaves(jax.eval_shape(backbone.make_model, jax.random.key(0)))
        of_model = by_size(settings, sum(leaf.size for leaf in parameters))
        values |= {key: of_model[key] for key in missing if key in of_model}
        if "data.buckets" in missing:
            rows_of = _rows_of_chunks(settings, backbone, shards, chunk_choice.capacity(mesh))
            values["data.buckets"] = measured_buckets.chosen(
                settings, backbone, rows, shards, rows_of
            )
        settings = _filled(settings, values)
    if of_devices := [key for key in keys if key in OF_DEVICES]:
        chosen = by_devices(settings, backbone, mesh, chunk_choice.capacity(mesh))
        values |= {key: chosen[key] for key in of_devices}
        settings = _filled(settings, values)
    if workdir and settings.job == "train" and values != recorded and jax.process_index() == 0:
        text = json.dumps(values, indent=2, default=dataclasses.asdict)
        files.write_whole(workdir / FILE, text + "\n")
    origin = "record of this run" if not missing else "backbone and data"
    listed = "\n".join(f"  config.{key} = {value!r}" for key, value in values.items())
    logging.info("chosen by the %s:\n%s", origin, listed)
    return settings


def read(workdir: files.Path) -> dict[str, Any]:
    """The values of <workdir>/`FILE` by key; {} if there is none.

    Raises:
      ValueError: the file is damaged.
    """
    file = workdir / FILE
    try:
        return {key: _typed(key, value) for key, value in files.read_object(file).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: {error}. It holds what this run chose by backbone and data: repair it; or "
            "remove it, if neither has changed, and the same is chosen again."
        ) from error


def by_size(settings: config.TrainConfig, parameters: int) -> dict[str, Any]:
    """Values of the open keys that follow from the backbone's parameters, and the warm-up."""
    large = parameters >= LARGE
    dtype = "bfloat16" if large else "float32"
    rank = settings.lora.rank
    if rank is None:
        rank = RANK if large else 0
    of_weights = WEIGHTS_RATE * math.sqrt(OF_PARAMETERS / parameters)
    return {
        "trainable": ADAPTERS if rank else EVERYTHING,
        "lora.rank": rank,
        "optimizer.warmup_steps": settings.steps // WARMUP,
        "optimizer.learning_rate": ADAPTERS_RATE if rank else float(f"{of_weights:.1e}"),
        "execution.dtype": dtype,
        "execution.frozen_dtype": dtype,
        "export.dtype": dtype,
    }


def with_lengths(
    settings: config.TrainConfig, backbone: Backbone, mesh: Mesh, memory: int, sample: Sample
) -> config.TrainConfig:
    """The settings with buckets for a sample of lengths on TPUs of so many bytes, if they are open.

    The other keys that follow from the backbone have been named.
    """
    if settings.data.buckets:
        return settings
    shards = sharding.row_shards(mesh)
    rows_of = _rows_of_chunks(settings, backbone, shards, memory)
    buckets = measured_buckets.of_sample(settings, backbone, sample, shards, rows_of, "tpu")
    return _filled(settings, {"data.buckets": buckets})


def with_memory(
    settings: config.TrainConfig, backbone: Backbone, mesh: Mesh, memory: int
) -> config.TrainConfig:
    """The settings with a value for every open key that follows from a device's memory, in bytes.

    The others have been named.
    """
    keys = [key for key in left_open(settings) if key in OF_DEVICES]
    if not keys:
        return settings
    chosen = by_devices(settings, backbone, mesh, memory)
    return _filled(settings, {key: chosen[key] for key in keys})


def by_devices(
    settings: config.TrainConfig, backbone: Backbone, mesh: Mesh, memory: int | None
) -> dict[str, Any]:
    """Values of the keys of memory against time, those that are given among them.

    Without `memory`, where a platform does not say what a device has, as CPUs do not, chunks are as
    `chunk_rows` has them, and layers recompute all.
    """
    shards = sharding.row_shards(mesh)
    rows = chunk_rows(settings, backbone.layout.patches, shards)
    execution = settings.execution
    if memory is None:
        remat = "full" if execution.remat == "auto" else execution.remat
        chosen: tuple[Any, ...] = settings.chunk_size or rows, remat, (), 1
    else:
        choice = chunk_choice.choose(settings, backbone, mesh, memory, rows // shards)
        chosen = choice.chunk_size, choice.remat, choice.kept_chunks, choice.merged_chunks
        logging.info("%s", choice.reason)
    return dict(zip(OF_DEVICES, chosen))


def steps_of(settings: config.TrainConfig, rows: Mapping[str, Source]) -> int:
    """Steps of as many passes over the rows of all sources as `epochs` says, at least one.

    Raises:
      ValueError: there are no such sources, or no rows.
    """
    names = settings.data.weights or rows
    check_names(names, rows)
    count = sum(len(rows[name]) for name in names)
    if not count:
        raise ValueError(
            f"config.epochs={settings.epochs:g}: there are no rows in config.data.train="
            f"{settings.data.train!r} that say how many steps these are"
        )
    return max(1, math.ceil(round(settings.epochs * count / settings.batch_size, 6)))


def chunk_rows(settings: config.TrainConfig, patches: int, shards: int) -> int:
    """Rows of the largest bucket with `CHUNK_TOKENS` tokens or patches on each device.

    They are a power of two, `CHUNK_ROWS` at most, and on all devices no more than a batch has.

    Args:
      patches: of a tile.
      shards: `sharding.row_shards` of the mesh.
    """
    largest = settings.data.buckets[-1]
    size = max(1, largest.tokens, largest.tiles * patches)
    fitting = max(1, CHUNK_TOKENS // size)
    most = math.ceil(settings.batch_size * (2 + settings.data.negatives) / shards)
    return shards * min(1 << (fitting.bit_length() - 1), CHUNK_ROWS, most)


def _rows_of_chunks(
    settings: config.TrainConfig, backbone: Backbone, shards: int, memory: int | None
) -> Callable[[Bucket], int]:
    """Rows of a chunk of a largest bucket, before it is known what of them fits the memory."""
    patches = backbone.layout.patches

    def rows_of(last: Bucket) -> int:
        most = chunk_rows(_filled(settings, {"data.buckets": (last,)}), patches, shards)
        if memory is None:  # as `by_devices` has them
            return most
        return min(most, shards * chunk_choice.enough_rows(last, patches))

    return rows_of


def _has_checkpoints(workdir: files.Path) -> bool:
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def _get(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


def _filled(settings: config.TrainConfig, values: Mapping[str, Any]) -> config.TrainConfig:
    if "steps" in values:
        settings = dataclasses.replace(settings, epochs=0.0)  # which they are in the place of
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        if group:
            value = dataclasses.replace(getattr(settings, group), **{name: value})
        settings = dataclasses.replace(settings, **{group or name: value})
    return settings


def _typed(key: str, value: Any) -> Any:
    """A value out of JSON as the key's dataclass holds it; ValueError or KeyError if it cannot."""
    hint: Any = config.TrainConfig
    for part in key.split("."):
        hint = typing.get_type_hints(hint)[part]
    return config_reader.typed(hint, value, f"config.{key}")
