"""Plans as a markdown table and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from unime_jax.planning import largest
from unime_jax.planning.chips import parse
from unime_jax.planning.estimate import Estimate, Work
from unime_jax.planning.memory import Memory

NOTE = (
    "Memory is what the compiler says of the program, with a second batch: the next one is placed "
    "while a step runs. Step times are estimates, and bounds at that: published peaks of the chip, "
    "everything overlapped, for batches as assumed. Nothing here was measured on a TPU."
)
SEARCH_HEADER = ("chunk", "remat", "data x fsdp x tensor", "FLOPs run / useful") + (
    "predicted step s",
    "predicted peak GB",
    "compiled step s (estimate)",
    "peak GB",
    "fits",
)
LARGEST = (
    f"The {largest.MOST} largest readers and writers of HBM and the {largest.MOST} largest "
    "collectives of a step, on one chip; loops counted. Lines of the backward pass are of the call "
    "that differentiates."
)
HEADER = (
    ("recipe", "slice", "batch", "chunk", "weights", "optimizer", "inputs (2 batches)")
    + ("temporaries (activations)", "peak of HBM, GB", "fits", "pad", "PFLOP useful / run")
    + ("ICI GB", "step s (estimate)", "MFU at most", "pairs/s", "hours")
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Settings that a search considers, by prediction and, where it compiled them, by the compiler.

    Attributes:
      flags: that change the plan's settings to these; "": they are the plan's.
      ratio: executed FLOPs by useful ones.
      predicted_seconds: of a step.
      predicted_peak: bytes on one chip.
      seconds: of a step by the estimate of the compiled program; None: not compiled.
      bound: what `seconds` is bound by.
      peak: the compiler's; None: not compiled.
      fits: None: not compiled.
    """

    flags: str
    chunk_size: int
    remat: str
    mesh: dict[str, int]
    ratio: float
    predicted_seconds: float
    predicted_peak: int
    seconds: float | None = None
    bound: str = ""
    peak: int | None = None
    fits: bool | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """Plan of one recipe on one slice.

    Attributes:
      settings: of the program: mesh, batch, chunk, remat, dtypes, buckets and the load.
      stand_in: the folder whose config.json was taken instead of the backbone's; "": none.
      compiler: versions that `memory` is by; "": there was none, and nothing was compiled.
      hours: of all steps, by `estimate`; None without steps.
      problem: why there is no plan; "": there is one.
      suggestion: what would fit, or how much is missing; of what fits, what would be faster.
      searched: settings that a search compared, the plan's first; none without a search.
    """

    recipe: str
    topology: str
    backbone: str
    stand_in: str
    settings: dict[str, Any]
    compiler: str = ""
    memory: Memory | None = None
    work: Work | None = None
    estimate: Estimate | None = None
    hours: float | None = None
    problem: str = ""
    suggestion: str = ""
    searched: list[Candidate] = dataclasses.field(default_factory=list)


def to_json(entries: Sequence[Entry]) -> dict[str, Any]:
    """Everything, with what follows from it: {"note", "plans": [...]}."""
    return {"note": NOTE, "plans": [entry_to_json(entry) for entry in entries]}


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """JSON object of an entry, with `fits`."""
    values = dataclasses.asdict(entry)
    values["chips"] = parse(entry.topology).chips
    values["fits"] = entry.memory.fits if entry.memory else False
    return values


def entry_from_json(values: dict[str, Any]) -> Entry:
    """The inverse of `entry_to_json`."""
    own = {field.name: values[field.name] for field in dataclasses.fields(Entry)}
    for key, kind in (("memory", Memory), ("work", Work), ("estimate", Estimate)):
        own[key] = own[key] and kind(**own[key])
    if own["work"]:
        for key in ("readers_and_writers", "collectives"):
            movers = [largest.Mover(**mover) for mover in values["work"][key]]
            own["work"] = dataclasses.replace(own["work"], **{key: movers})
    own["searched"] = [Candidate(**candidate) for candidate in own["searched"]]
    return Entry(**own)


def page(entries: Sequence[Entry]) -> str:
    """The table of plans, and of each what a search compared and the operations that move most."""
    parts = [table(entries)]
    for entry in entries:
        moved = entry.work and largest.tables(
            entry.work.readers_and_writers, entry.work.collectives
        )
        if moved or entry.searched:
            parts.append(f"## {entry.recipe} on {entry.topology}")
        if entry.searched:
            parts.append(_search_table(entry.searched))
        if moved:
            parts.append(f"{LARGEST}\n\n{moved}")
    return "\n\n".join(parts)


def table(entries: Sequence[Entry]) -> str:
    """Markdown table of plans, with remarks on single lines below."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    lines += ["| " + " | ".join(_cells(entry)) + " |" for entry in entries]
    remarks = [
        f"- {entry.recipe} on {entry.topology}: {remark}"
        for entry in entries
        for remark in _remarks(entry)
    ]
    if any(entry.memory and not entry.compiler for entry in entries):
        remarks.append(
            "- WARNING: without libtpu nothing was compiled. Arguments and FLOPs are exact; "
            "temporaries and traffic (?) are not known, and a step is at best what it computes. "
            'pip install "jax[tpu]" for the rest.'
        )
    compilers = sorted({entry.compiler for entry in entries if entry.compiler})
    remarks += [f"- Compiled by {compiler}." for compiler in compilers]
    stand_ins = sorted({(e.backbone, e.stand_in) for e in entries if e.stand_in})
    remarks += [f"- {model} has the shapes of {folder}/config.json." for model, folder in stand_ins]
    return "\n".join([*lines, "", NOTE, *remarks])


def _search_table(searched: Sequence[Candidate]) -> str:
    """Markdown table of a search; all predictions follow from the plan's own program."""
    lines = ["| " + " | ".join(SEARCH_HEADER) + " |", "|---" * len(SEARCH_HEADER) + "|"]
    for each in searched:
        mesh = " x ".join(map(str, each.mesh.values()))
        compiled = "" if each.seconds is None else f"{each.seconds:.3g} ({each.bound})"
        peak = "" if each.peak is None else _gb(each.peak)
        fits = {True: "yes", False: "no", None: ""}[each.fits]
        predicted = f"{each.predicted_seconds:.3g} | {_gb(each.predicted_peak)}"
        lines.append(
            f"| {each.chunk_size} | {each.remat} | {mesh} | {each.ratio:.2f} | {predicted} "
            f"| {compiled} | {peak} | {fits} |"
        )
    return "\n".join(lines)


def _remarks(entry: Entry) -> list[str]:
    """Sentences on a plan: what is wrong, what would be better, what is not counted."""
    remarks = [entry.problem, _verdict(entry), _kept(entry), entry.suggestion]
    if entry.work and entry.work.unknown_loops:
        remarks.append(
            f"{entry.work.unknown_loops} loops run until something that the program computes; what "
            "they move is counted once, which is too little."
        )
    if entry.work and parse(entry.topology).count > 1:
        remarks.append(
            "traffic between slices is counted as if it went over ICI; the data-centre network "
            "that it takes is slower, by how much is not known here."
        )
    return [remark for remark in remarks if remark]


def _kept(entry: Entry) -> str:
    if entry.memory is None or not entry.memory.features:
        return ""
    return (
        f"{_gb(entry.memory.features)} GB of the temporaries are features of a frozen tower, kept "
        "for both passes over a batch (config.execution.keep_features)"
    )


def _verdict(entry: Entry) -> str:
    memory = entry.memory
    if memory is None or memory.fits is not False:
        return ""
    chunk = entry.settings.get("chunk_size")
    at = f", at chunk_size {chunk}" if chunk else ""
    needed = f"{_gb(memory.known_peak)} GB a chip of {_gb(memory.capacity)}"
    return f"{needed}{at}: the slice is too small"


def _cells(entry: Entry) -> list[str]:
    settings, memory, work, best = entry.settings, entry.memory, entry.work, entry.estimate
    first = [
        entry.recipe,
        entry.topology,
        str(settings.get("batch_size", "")),
        str(settings.get("chunk_size", "")),
    ]
    if memory is None:
        return first + [""] * (len(HEADER) - len(first))
    fits = {True: "yes", False: "no", None: "?"}[memory.fits]
    held = [memory.weights, memory.optimizer, memory.inputs]
    temporaries = f"{_gb(memory.temporaries)} ({_gb(memory.activations)})"
    peak = f"{_gb(memory.peak)} of {_gb(memory.capacity)}"
    share = settings.get("pad_share")  # of the tokens that are computed
    pad = "" if share is None else f"{share:.0%}"
    cells = [*first, *map(_gb, held), temporaries, peak, fits, pad]
    if work is None or best is None:
        return cells + [""] * (len(HEADER) - len(cells))
    moved = "?" if work.ici is None else f"{sum(work.ici.values()) / 1e9:,.0f}"
    return [
        *cells,
        f"{work.useful / 1e15:.3g} / {work.executed / 1e15:.3g}",
        moved,
        f"{best.seconds:.3g} ({best.bound})",
        f"{best.mfu:.0%}",
        f"{best.items_per_second:.3g}",
        "" if entry.hours is None else f"{entry.hours:.3g}",
    ]


def _gb(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e9:.2f}"
