"""Changes of a run that make it fit a slice, or fill it, each tried by compiling."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Protocol

from unime_jax import config
from unime_jax.models.settings import Remat, RematChoice
from unime_jax.planning.report import Entry
from unime_jax.training import chunk_choice

MOST = 6  # compilations; each takes minutes
ORDER: tuple[RematChoice, ...] = (
    *chunk_choice.ORDER,
    "offload",
)  # from what keeps most on a chip to what keeps least
COARSE: tuple[Remat, ...] = ("dots", "full")  # of these, tried where a run does not fit
FULL = 0.95  # of a chip's memory: what a guess may come to, so that compiling it is worth a try
GAIN = 0.05  # of a step's time: less is no reason to change anything

Settings = config.TrainConfig | config.EmbedConfig


class Attempt(Protocol):
    """A run that can be planned with other settings, here `jobs.plan.Recipe`."""

    settings: Settings

    def attempt(self, topology: str, settings: Settings, *, compiled: bool = True) -> Entry:
        """The plan of these settings, or the part that is known without compiling."""
        ...


def suggest(recipe: Attempt, topology: str, entry: Entry) -> str:
    """What to change, as flags, after trying it out; or what is missing after all was tried.

    Tried in this order, each together with what came before: chunks encoded twice, or without
    features of a frozen tower that are kept, smaller chunks and recomputed layers (they change
    speed alone), int8 for frozen weights (which changes embeddings a little), and kernels split
    over more mesh axes. Of chunk sizes the largest that should fit by proportion comes first.
    """
    least = entry.memory
    if least is None:
        return ""
    tried = 0
    for settings, flags in _candidates(recipe.settings, entry):
        if tried == MOST:
            break
        memory = recipe.attempt(topology, settings).memory
        if memory is None:
            continue  # these settings cannot run at all
        tried += 1
        if memory.fits:
            return f"fits with{flags}: {memory.known_peak / 1e9:.2f} GB a chip, compiled"
        least = min(least, memory, key=lambda memory: memory.known_peak)
    return (
        f"nothing fits of {tried} changes that were compiled; the least was "
        f"{least.known_peak / 1e9:.2f} GB a chip of {least.capacity / 1e9:.2f}: take a larger "
        "slice, or chips with more memory"
    )


def faster(recipe: Attempt, topology: str, entry: Entry) -> str:
    """Layers that recompute less, where a run leaves room for what they keep; "": none of them.

    Tracing says how much they keep. What should fit by that is compiled.
    """
    settings, memory, estimate = recipe.settings, entry.memory, entry.estimate
    if not isinstance(settings, config.TrainConfig) or memory is None or estimate is None:
        return ""
    for remat in ORDER[: ORDER.index(settings.execution.remat)]:
        changed, flags = _executed(settings, "", "remat", remat)
        draft = recipe.attempt(topology, changed, compiled=False).memory
        if draft is None:
            continue
        likely_peak = memory.known_peak + draft.activations - memory.activations
        if likely_peak > FULL * memory.capacity:
            continue
        plan = recipe.attempt(topology, changed)
        if plan.memory is None or plan.estimate is None or not plan.memory.fits:
            continue
        if plan.estimate.seconds < (1 - GAIN) * estimate.seconds:
            return (
                f"has room for{flags}: {plan.estimate.seconds:.3g} s a step instead of "
                f"{estimate.seconds:.3g} by the estimate, {plan.memory.known_peak / 1e9:.2f} GB a "
                "chip, compiled"
            )
    return ""


def _candidates(settings: Settings, entry: Entry) -> Iterator[tuple[Settings, str]]:
    """Changed settings with their flags, in the order of `suggest`."""
    flags = ""
    if isinstance(settings, config.TrainConfig):
        if not settings.execution.recompute:
            settings, flags = _executed(settings, flags, "recompute", True)
            yield settings, flags
        elif entry.memory and entry.memory.features:
            settings, flags = _executed(settings, flags, "keep_features", False)
            yield settings, flags
        yield from _chunks(settings, entry, flags)
        smallest = _row_shards(entry)
        if settings.chunk_size > smallest:
            settings, flags = _with_chunks(settings, flags, smallest)
        least = ORDER.index(settings.execution.remat)
        for remat in (each for each in COARSE if ORDER.index(each) > least):
            yield _executed(settings, flags, "remat", remat)
        if settings.execution.remat not in ("full", "offload"):
            settings, flags = _executed(settings, flags, "remat", "full")
        if settings.lora.rank and settings.execution.frozen_dtype != "int8":
            settings, flags = _executed(settings, flags, "frozen_dtype", "int8")
            yield settings, flags
    yield from _meshes(settings, entry, flags)


def _executed(
    settings: config.TrainConfig, flags: str, key: str, value: Any
) -> tuple[config.TrainConfig, str]:
    """The same with another value in `execution`."""
    execution = dataclasses.replace(settings.execution, **{key: value})
    changed = dataclasses.replace(settings, execution=execution)
    return changed, f"{flags} --config.execution.{key}={value}"


def _with_chunks(
    settings: config.TrainConfig, flags: str, size: int
) -> tuple[config.TrainConfig, str]:
    """The same with another chunk size."""
    return dataclasses.replace(settings, chunk_size=size), f"{flags} --config.chunk_size={size}"


def _chunks(
    settings: config.TrainConfig, entry: Entry, flags: str
) -> Iterator[tuple[Settings, str]]:
    """Smaller chunks that should fit, as temporaries are in proportion, from the largest."""
    memory, shards = entry.memory, _row_shards(entry)
    if memory is None:
        return
    spare = memory.capacity - memory.held
    temporaries = memory.known_peak - memory.held - memory.features
    size = settings.chunk_size // 2
    while size >= shards and size % shards == 0:
        if temporaries * size / settings.chunk_size < spare:
            yield _with_chunks(settings, flags, size)
        size //= 2


def _meshes(settings: Settings, entry: Entry, flags: str) -> Iterator[tuple[Settings, str]]:
    """All devices over fsdp, then part of them over tensor."""
    planned = entry.settings["mesh"]
    devices = math.prod(planned.values())
    for tensor in (1, 2, 4, 8):
        sizes = {"data": 1, "fsdp": devices // tensor, "tensor": tensor}
        if tensor <= devices and sizes != planned:
            named = "".join(f" --config.mesh.{axis}={size}" for axis, size in sizes.items())
            yield dataclasses.replace(settings, mesh=config.MeshConfig(**sizes)), flags + named


def _row_shards(entry: Entry) -> int:
    mesh = entry.settings["mesh"]
    return int(mesh["data"] * mesh["fsdp"])
