"""A step's memory and time on the devices that it is meant for, by shapes, or compiled."""

import pathlib
from typing import Any

import jax
import numpy as np

from unime_jax import config, files, sharding
from unime_jax.data.shapes import BatchShapes
from unime_jax.jobs.doctor_model import Model
from unime_jax.jobs.doctor_report import Report
from unime_jax.jobs.doctor_rows import Sample
from unime_jax.planning import chips, compiler, estimate, memory, program
from unime_jax.planning.chips import Slice

TIGHT = 0.85  # of a device, without what a compiler needs besides
CHANGES = (
    "Lower config.chunk_size, raise config.execution.remat (up to 'full'), keep no chunks "
    "(config.execution.kept_chunks=()), spread the weights (config.mesh.fsdp=-1), or take int8 for "
    "frozen weights; --config=plan:<recipe> tries changes by compiling."
)


def check(
    report: Report,
    facts: dict[str, Any],
    model: Model,
    sample: Sample | None,
    options: config.DoctorOptions,
    workdir: files.Path,
) -> float | None:
    """Whether a step fits the memory of a device; its least seconds, None: they are not known.

    `sample`: of rows, that batches are taken to be like; None: all rows are the longest.
    """
    where = chips.parse(options.slice) if options.slice else _here(report)
    if where is None:
        return None
    made = program.step_program(model.run, model.backbone)
    load = _load(made.shapes, model, sample)
    row = estimate.row_costs(made, load)
    compiled = None
    if options.compile:
        compiled = _compiled(report, model, where, workdir)
    needed = memory.memory(made, where, row.kept, compiled)
    time = estimate.estimate(estimate.work(made, load, row, None), where, made.items)
    known = needed.held + needed.gradients + needed.activations
    facts["chips"] = f"{where.chips} x {where.chip.name}, {needed.capacity / 1e9:.1f} GB each"
    facts["weights"] = f"{needed.weights / 1e9:.1f} GB"
    facts["optimizer"] = f"{needed.optimizer / 1e9:.1f} GB"
    facts["batches"] = f"{needed.inputs / 1e9:.1f} GB"
    facts["gradients and activations"] = f"{(needed.gradients + needed.activations) / 1e9:.1f} GB"
    if needed.peak is not None:
        facts["compiled peak"] = f"{needed.peak / 1e9:.1f} GB"
    facts["step"] = f"{time.seconds:.3g} s by FLOPs and published peaks"
    _judge(report, where, needed, known)
    return time.seconds


def _judge(report: Report, where: Slice, needed: memory.Memory, known: int) -> None:
    size = known if needed.peak is None else needed.peak
    by = "by shapes, without what a compiler needs besides" if needed.peak is None else "compiled"
    said = (
        f"a chip of {where.name} has {needed.capacity / 1e9:.1f} GB, and the step takes "
        f"{size / 1e9:.1f} GB ({by})"
    )
    if size > needed.capacity:
        report.add("error", "plan.memory", said, where="config.chunk_size", do=CHANGES)
    elif needed.peak is None and size > TIGHT * needed.capacity:
        report.add(
            "warning",
            "plan.memory",
            f"{said}, which may not fit once compiled",
            where="config.chunk_size",
            do=f"--config.doctor.compile=True tells. {CHANGES}",
        )


def _here(report: Report) -> Slice | None:
    """The devices of this machine as a slice; None: what they are is not known."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        why = "the devices here are CPUs: --config.doctor.slice=v5e:4x4 says what the run is for"
    elif kind not in chips.KINDS:
        why = f"published peaks of {kind} are not known here; planning/chips.py has those that are"
    else:
        return Slice(f"{len(devices)} x {kind}", chips.KINDS[kind], (len(devices),))
    report.skip("plan.memory", why)
    return None


def _load(shapes: BatchShapes, model: Model, sample: Sample | None) -> estimate.Load:
    """The content of a batch, as the sample has it; else all rows in the largest bucket."""
    items = model.settings.batch_size * (2 + shapes.negatives)
    shares: list[float] = []
    tokens: list[int] = []
    if sample is not None and len(sample.sizes):
        edges = np.array([(bucket.tokens, bucket.tiles) for bucket in shapes.buckets])
        fits = np.all(sample.sizes[:, None] <= edges, axis=2)
        sizes = sample.sizes[np.any(fits, axis=1)]
        taken = np.argmax(fits[np.any(fits, axis=1)], axis=1)
        for number, bucket in enumerate(shapes.buckets):
            own = sizes[taken == number, 0]
            shares.append(len(own) / max(len(sizes), 1))
            tokens.append(round(float(own.mean())) if len(own) else bucket.tokens)
    try:
        return estimate.assume(shapes, items, shares, tokens)
    except ValueError:  # a bucket's share of the batch is less than the sample's
        return estimate.assume(shapes, items, (), ())


def _compiled(
    report: Report, model: Model, where: Slice, workdir: files.Path
) -> compiler.Compiled | None:
    if not isinstance(workdir, pathlib.Path):
        report.skip("plan.compiled", "programs are kept in a local work directory alone")
        return None
    settings = model.settings
    try:
        devices = compiler.devices(where)
    except compiler.NoCompilerError as error:
        report.skip("plan.compiled", str(error))
        return None
    sizes = settings.mesh
    mesh = sharding.make_mesh(sizes.data, sizes.fsdp, sizes.tensor, devices)
    made = program.train_program(settings, model.backbone, mesh, teacher=model.teacher)
    return compiler.compile_program(made, where, workdir / "cache")
