"""A search over chunk size, remat and mesh for the fastest step that fits a slice.

Every candidate of a small grid is predicted from the plan that was compiled, and the best few are
compiled; only these are believed.
"""

import dataclasses
import math
from collections.abc import Iterator

from unime_jax import config
from unime_jax.planning import chips, estimate
from unime_jax.planning.report import Candidate, Entry
from unime_jax.planning.suggest import FULL, GAIN, Attempt
from unime_jax.training import chunk_choice

CHUNKS = (0.25, 0.5, 1, 2)  # of the planned chunk size
SPLITS = (1, 2, 4)  # replicas of the weights that take the place of as many of their parts
# A chunk's weights come and go this often in each pass: gathered ones are written, and read twice.
WEIGHT_PASSES = 3


def search(recipe: Attempt, topology: str, entry: Entry, most: int) -> tuple[list[Candidate], str]:
    """Candidates from the fastest by prediction, and the fastest that fits, as flags.

    At most `most` are compiled: those that should fit and be faster than the plan by a twentieth.

    Returns:
      candidates, the plan itself first, and a sentence on what they come to; an embedding job has
      none.
    """
    settings, given = recipe.settings, entry.estimate
    if not isinstance(settings, config.TrainConfig) or given is None or entry.memory is None:
        return [], ""
    drafts = [
        (changed, candidate)
        for changed, flags in _grid(settings, entry.settings["mesh"])
        if (candidate := _predicted(recipe, topology, entry, changed, flags))
    ]
    drafts.sort(key=lambda draft: (draft[1].predicted_seconds, draft[1].ratio))
    own = _row(entry, settings, "", given.seconds, entry.memory.known_peak)
    candidates, tried, best = [_compiled(own, entry)], 0, own
    for changed, candidate in drafts:
        likely = candidate.predicted_peak <= FULL * entry.memory.capacity
        faster = candidate.predicted_seconds < (1 - GAIN) * given.seconds
        if likely and faster and tried < most:
            candidate = _compiled(candidate, recipe.attempt(topology, changed))
            tried += 1
            if candidate.fits and _seconds(candidate) < _seconds(best):
                best = candidate
        candidates.append(candidate)
    if _seconds(best) < (1 - GAIN) * given.seconds and best.flags:
        return candidates, (
            f"faster with{best.flags}: {_seconds(best):.3g} s a step instead of "
            f"{given.seconds:.3g} by the estimate, {(best.peak or 0) / 1e9:.2f} GB a chip, compiled"
        )
    return candidates, (
        f"nothing faster that fits: {tried} of {len(drafts)} other settings of chunk, remat and "
        "mesh were compiled"
    )


def _grid(
    settings: config.TrainConfig, mesh: dict[str, int]
) -> Iterator[tuple[config.TrainConfig, str]]:
    """Other settings with their flags. Rows go over as many chips as planned."""
    shards = mesh["data"] * mesh["fsdp"]
    for split in SPLITS:
        if mesh["fsdp"] % split:
            continue
        sizes = dict(mesh, data=mesh["data"] * split, fsdp=mesh["fsdp"] // split)
        over = settings.mesh if split == 1 else config.MeshConfig(**sizes)
        named = "".join(f" --config.mesh.{axis}={size}" for axis, size in sizes.items())
        for times in CHUNKS:
            chunk = int(settings.chunk_size * times)
            if not chunk or chunk % shards or chunk > 2 * settings.batch_size:
                continue
            kept = tuple(int(count / times) for count in settings.execution.kept_chunks or ())
            for remat in chunk_choice.ORDER:
                execution = dataclasses.replace(settings.execution, remat=remat, kept_chunks=kept)
                changed = dataclasses.replace(
                    settings, chunk_size=chunk, mesh=over, execution=execution
                )
                if changed == settings:
                    continue
                flags = f" --config.chunk_size={chunk}" if times != 1 else ""
                if remat != settings.execution.remat:
                    flags += f" --config.execution.remat={remat}"
                if kept != tuple(settings.execution.kept_chunks or ()):
                    flags += f" --config.execution.kept_chunks='{kept}'"
                yield changed, flags + (named if split > 1 else "")


def _predicted(
    recipe: Attempt, topology: str, entry: Entry, changed: config.TrainConfig, flags: str
) -> Candidate | None:
    """A candidate by a trace of its program, and by the plan's traffic and temporaries, scaled.

    FLOPs and what lies on the chip are exact. Weights are gathered and read by every chunk, all
    other traffic grows with FLOPs; temporaries but gradients and activations with the chunk.
    None: these settings cannot run.
    """
    draft = recipe.attempt(topology, changed, compiled=False)
    memory, work = entry.memory, entry.work
    if not (draft.memory and draft.work and memory and work and work.hbm is not None):
        return None
    assert isinstance(recipe.settings, config.TrainConfig)
    chunks = recipe.settings.chunk_size / changed.chunk_size  # as many as planned, times this
    parts, planned_parts = draft.settings["mesh"]["fsdp"], entry.settings["mesh"]["fsdp"]
    gathers = _others(parts) / _others(planned_parts) if planned_parts > 1 else 1.0
    weights = memory.weights * planned_parts * WEIGHT_PASSES * _chunks(entry)
    weights = min(weights, work.hbm)
    moved = estimate.Work(
        useful=work.useful,
        executed=draft.work.executed,
        ici={kind: size * chunks * gathers for kind, size in (work.ici or {}).items()},
        hbm=(work.hbm - weights) * draft.work.executed / work.executed + weights * chunks,
    )
    items = recipe.settings.batch_size
    time = estimate.estimate(moved, chips.parse(topology), items)
    planned, other = (
        part.held + part.gradients + part.activations + part.features
        for part in (memory, draft.memory)
    )
    temporaries, peak = memory.known_peak - planned, other
    peak += round(max(temporaries, 0) / chunks)
    return _row(draft, changed, flags, time.seconds, peak)


def _others(parts: int) -> float:
    """The share of the weights that a chip gets from others."""
    return (parts - 1) / parts


def _chunks(entry: Entry) -> float:
    """Chunks of a step, counted in tokens of the largest bucket."""
    settings = entry.settings
    longest = max(bucket["tokens"] for bucket in settings["buckets"]) or 1
    tokens = sum(
        rows * bucket["tokens"]
        for rows, bucket in zip(settings["load"]["rows"], settings["buckets"])
    )
    return math.ceil(tokens / longest / settings["chunk_size"])


def _row(
    entry: Entry, settings: config.TrainConfig, flags: str, seconds: float, peak: int
) -> Candidate:
    """A candidate that is not compiled."""
    work = entry.work
    return Candidate(
        flags=flags,
        chunk_size=settings.chunk_size,
        remat=settings.execution.remat,
        mesh=dict(entry.settings["mesh"]),
        ratio=work.executed / work.useful if work and work.useful else 0.0,
        predicted_seconds=seconds,
        predicted_peak=peak,
    )


def _compiled(candidate: Candidate, entry: Entry) -> Candidate:
    """A candidate with what its compiled program says."""
    if entry.memory is None or entry.estimate is None:
        return dataclasses.replace(candidate, fits=False)
    return dataclasses.replace(
        candidate,
        seconds=entry.estimate.seconds,
        bound=entry.estimate.bound,
        peak=entry.memory.known_peak,
        fits=entry.memory.fits,
    )


def _seconds(candidate: Candidate) -> float:
    return math.inf if candidate.seconds is None else candidate.seconds
