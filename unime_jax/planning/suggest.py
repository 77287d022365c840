"""Changes of a run that make it fit a slice, or fill it, each tried by compiling."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

from unime_jax import config
from unime_jax.models import scan
from unime_jax.planning.report import Entry

MOST = 6  # compilations; each takes minutes
ORDER: tuple[scan.Remat, ...] = ("none", "dots", "full")  # from what keeps most to what keeps least
FULL = 0.95  # of a chip's memory: what a guess may come to, so that compiling it is worth a try
GAIN = 0.05  # of a step's time: less is no reason to change anything

Settings = config.TrainConfig | config.EmbedConfig


class Attempt(Protocol):
    """What can plan a run on a slice, here `jobs.plan.Recipe`."""

    settings: Settings

    def attempt(self, topology: str, settings: Settings, *, compiled: bool = True) -> Entry:
        """The plan of these settings, or what of it is known without compiling."""
        ...


def suggest(recipe: Attempt, topology: str, entry: Entry) -> str:
    """What to change, as flags, after trying it out; or what is missing after all was tried.

    Tried in this order, each together with what came before: chunks encoded twice, smaller chunks
    and recomputed layers (they change speed alone), int8 for frozen weights (which changes
    embeddings a little), and kernels split over more mesh axes. Of chunk sizes the largest that
    should fit by proportion comes first.
    """
    tried, best = 0, entry
    for settings, flags in _candidates(recipe.settings, entry):
        if tried == MOST:
            break
        found = recipe.attempt(topology, settings)
        if found.problem or found.memory is None:
            continue
        tried += 1
        if found.memory.fits:
            peak = (found.memory.peak or 0) / 1e9
            return f"fits with{flags}: {peak:.2f} GB a chip, compiled"
        if best.memory is None or (found.memory.peak or 0) < (best.memory.peak or 0):
            best = found
    memory = best.memory
    assert memory is not None
    least = (memory.peak or memory.weights + memory.optimizer + memory.inputs) / 1e9
    return (
        f"nothing fits of {tried} changes that were compiled; the least was {least:.2f} GB a chip "
        f"of {memory.capacity / 1e9:.2f}: take a larger slice, or chips with more memory"
    )


def faster(recipe: Attempt, topology: str, entry: Entry) -> str:
    """Layers that recompute less, where a run leaves room for what they keep; "": none of them.

    How much that is is known from tracing; what should fit by that is compiled.
    """
    now = recipe.settings
    if not isinstance(now, config.TrainConfig) or entry.memory is None or entry.estimate is None:
        return ""
    memory, seconds = entry.memory, entry.estimate.seconds
    for remat in ORDER[: ORDER.index(now.execution.remat)]:
        settings, flags = _executed(now, "", "remat", remat)
        draft = recipe.attempt(topology, settings, compiled=False)
        if draft.memory is None or memory.peak is None:
            continue
        if memory.peak + draft.memory.activations - memory.activations > FULL * memory.capacity:
            continue
        found = recipe.attempt(topology, settings)
        if found.memory is None or found.estimate is None or not found.memory.fits:
            continue
        if found.estimate.seconds < (1 - GAIN) * seconds:
            return (
                f"has room for{flags}: {found.estimate.seconds:.3g} s a step instead of "
                f"{seconds:.3g} by the estimate, {(found.memory.peak or 0) / 1e9:.2f} GB a chip, "
                "compiled"
            )
    return ""


def _candidates(settings: Settings, entry: Entry) -> Iterator[tuple[Settings, str]]:
    if not isinstance(settings, config.TrainConfig):
        yield from _meshes(settings, entry, "")
        return
    now, flags = settings, ""
    if not now.execution.recompute:
        now, flags = _executed(now, flags, "recompute", True)
        yield now, flags
    yield from _chunks(now, entry, flags)
    smallest = _shards(entry)
    if now.chunk_size > smallest:
        now = dataclasses.replace(now, chunk_size=smallest)
        flags += f" --config.chunk_size={smallest}"
    for remat in ORDER[ORDER.index(now.execution.remat) + 1 :]:
        yield _executed(now, flags, "remat", remat)
    if now.execution.remat != "full":
        now, flags = _executed(now, flags, "remat", "full")
    if now.lora.rank and now.execution.frozen_dtype != "int8":
        now, flags = _executed(now, flags, "frozen_dtype", "int8")
        yield now, flags
    yield from _meshes(now, entry, flags)


def _executed(
    settings: config.TrainConfig, flags: str, key: str, value: Any
) -> tuple[config.TrainConfig, str]:
    """The same with another value in `execution`."""
    execution = dataclasses.replace(settings.execution, **{key: value})
    changed = dataclasses.replace(settings, execution=execution)
    return changed, f"{flags} --config.execution.{key}={value}"


def _chunks(
    settings: config.TrainConfig, entry: Entry, flags: str
) -> Iterator[tuple[Settings, str]]:
    """Smaller chunks, from the largest that should fit."""
    memory, smallest = entry.memory, _shards(entry)
    if memory is None:
        return
    held = memory.weights + memory.optimizer + memory.inputs
    spare, needed = memory.capacity - held, (memory.peak or held) - held
    if spare <= 0:
        return  # chunks are not what is too large
    sizes = []
    size = settings.chunk_size // 2
    while size >= smallest and size % smallest == 0:
        sizes.append(size)
        size //= 2
    likely = [size for size in sizes if needed * size / settings.chunk_size < spare]
    for size in likely[:1] + [size for size in sizes if size < min(likely[:1] or [0])]:
        yield (
            dataclasses.replace(settings, chunk_size=size),
            f"{flags} --config.chunk_size={size}",
        )


def _meshes(settings: Settings, entry: Entry, flags: str) -> Iterator[tuple[Settings, str]]:
    """All devices over fsdp, then part of them over tensor."""
    devices = 1
    for size in entry.settings.get("mesh", {}).values():
        devices *= size
    tensor = 1
    while tensor <= min(devices, 8):
        mesh = config.MeshConfig(data=1, fsdp=devices // tensor, tensor=tensor)
        if dataclasses.asdict(mesh) != entry.settings.get("mesh"):
            sizes = {"data": 1, "fsdp": mesh.fsdp, "tensor": tensor}
            named = "".join(f" --config.mesh.{axis}={size}" for axis, size in sizes.items())
            yield dataclasses.replace(settings, mesh=mesh), flags + named
        tensor *= 2


def _shards(entry: Entry) -> int:
    mesh = entry.settings.get("mesh", {})
    return int(mesh.get("data", 1) * mesh.get("fsdp", 1))
