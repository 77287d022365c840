"""The measurement of one benchmark case, in a process of its own.

A process that runs out of memory takes no other case with it, and the peak of its memory is that of
its case. The parent writes a pickled `Request` to standard input; the result is a JSON file.
"""

import dataclasses
import datetime
import json
import math
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding

from unime_jax import backbones, config, files, paths, sharding
from unime_jax.backbones import Backbone
from unime_jax.batch import Row
from unime_jax.data import inference_shapes
from unime_jax.data.shapes import Bucket
from unime_jax.jobs import benchmark_peer_folder, benchmark_rows
from unime_jax.models import inference, layers
from unime_jax.operations import compilation_cache
from unime_jax.planning import chips, compiler, estimate, program
from unime_jax.planning.estimate import Load
from unime_jax.planning.program import Program


@dataclasses.dataclass(frozen=True)
class Request:
    """What the parent asks of this process.

    Attributes:
      result: the JSON file that is written, whatever happens.
      peer_folder: where weights, rows and embeddings are left for peers; "": nowhere.
    """

    name: str
    case: config.BenchmarkCase
    platform: str
    warmup: int
    repetitions: int
    compilation_cache: str
    workdir: str
    result: str
    peer_folder: str


@dataclasses.dataclass(frozen=True)
class Ready:
    """A program with its arguments on the devices.

    Attributes:
      backbone: what the program runs, which may be a component of the case's model.
      rows: before they are packed.
      live_chunks: chunks that hold a live row, by bucket.
    """

    program: Program
    backbone: Backbone
    rows: Sequence[Row]
    load: Load
    live_chunks: Sequence[int]
    arguments: tuple[Any, ...]
    trains: bool


def main() -> None:
    """Reads the request, measures, and leaves the figures, or the problem, in a file."""
    request: Request = pickle.load(sys.stdin.buffer)
    try:
        values = measure(request)
    except Exception as error:  # the file says it; other cases go on
        traceback.print_exc()
        values = {"problem": f"{type(error).__name__}: {error}".strip()}
    files.write_whole(files.as_path(request.result), json.dumps(values, indent=2) + "\n")


def measure(request: Request) -> dict[str, Any]:
    """Figures of a case, as a JSON object.

    Raises:
      ValueError: the devices are not those that are meant, or the case does not make sense.
      jax.errors.JaxRuntimeError: a device has too little memory.
    """
    if request.platform not in ("any", jax.default_backend()):
        raise ValueError(
            f"config.platform is {request.platform!r}, but the devices here are {jax.devices()}; "
            'choose the preset of these devices, or --config.platform="any"'
        )
    compilation_cache.use_for_job(request.compilation_cache, files.as_path(request.workdir))
    settings = request.case.run
    mesh = sharding.make_mesh(settings.mesh.data, settings.mesh.fsdp, settings.mesh.tensor)
    backbone = _open(request.case)
    ready = prepare(request.case, backbone, mesh)
    if request.peer_folder:
        _write_for_peers(request.peer_folder, ready)
    with jax.set_mesh(mesh):
        lowered = ready.program.run.lower(*ready.arguments)
        started = time.perf_counter()
        compiled = lowered.compile()
        compile_seconds = time.perf_counter() - started
        logging.info("%s: compiled in %.1f s", request.name, compile_seconds)
        seconds, result = _timed(compiled, ready, request.warmup, request.repetitions)
    if request.peer_folder and not ready.trains:
        benchmark_peer_folder.write_embeddings(request.peer_folder, result, len(ready.rows))
    return {"problem": ""} | _figures(ready, compiled, compile_seconds, seconds, result)


def prepare(case: config.BenchmarkCase, backbone: Backbone, mesh: Mesh) -> Ready:
    """The program of a case, with random weights and generated rows on the devices.

    Raises:
      ValueError: the case does not fit the model or the mesh.
    """
    settings = case.run
    if isinstance(settings, config.TrainConfig):
        drawn = dataclasses.replace(settings, init="random", init_from="")
        run = program.train_setup(drawn, backbone, mesh, teacher=case.teacher)
        made = program.step_program(run, backbone)
        items = made.items * (2 + made.shapes.negatives)
        load = estimate.assume(made.shapes, items, case.rows, case.tokens)
        rows = benchmark_rows.rows_of(run.backbone, made.shapes, load, image=case.image, seed=0)
        batch, chunks = benchmark_rows.train_batch(rows, made.shapes, made.items, load)
        arguments = run.initial_state(), _placed(batch, made.arguments[-1])
        return Ready(made, run.backbone, rows, load, chunks, arguments, True)
    made = encode_program(case, settings, backbone, mesh)
    load = estimate.assume(made.shapes, made.items, case.rows, case.tokens)
    rows = benchmark_rows.rows_of(backbone, made.shapes, load, image=case.image, seed=0)
    groups, chunks = benchmark_rows.encode_groups(rows, made.shapes, load)
    parameters = random_parameters(backbone, mesh, jnp.dtype(settings.dtype))
    placed = _placed(groups, made.arguments[-1])
    return Ready(made, backbone, rows, load, chunks, ({}, parameters, placed), False)


def encode_program(
    case: config.BenchmarkCase, settings: config.EmbedConfig, backbone: Backbone, mesh: Mesh
) -> Program:
    """The program with which `Embedder` encodes a batch of rows as long as the case says."""
    longest = backbone.preprocess.prompt.max_length
    shapes = inference_shapes.plan_of(
        Bucket(longest, case.tiles),
        backbone.layout,
        sharding.row_shards(mesh),
        settings.batch_size,
    )
    return program.embed_program(backbone, mesh, shapes, jnp.dtype(settings.dtype))


def random_parameters(backbone: Backbone, mesh: Mesh, dtype: jnp.dtype) -> paths.Parameters:
    """Random parameters for inference, each device making its own part."""
    _, targets = inference.targets(backbone.make_model, mesh, dtype)
    kernels = {path for path, target in targets.items() if target.dtype == jnp.int8}

    def make() -> paths.Parameters:
        model = backbone.make_model(jax.random.key(0))
        layers.quantize(model, kernels)
        parameters = paths.split(model)[1]
        return {path: leaf.astype(targets[path].dtype) for path, leaf in parameters.items()}

    return jax.jit(make, out_shardings={p: t.sharding for p, t in targets.items()})()


def memory_of(devices: Sequence[jax.Device], compiled: jax.stages.Compiled) -> dict[str, int | str]:
    """Peak memory of a device in bytes, who says so, and what the compiler says of the program.

    The allocator's figure holds everything that the process had on the fullest device until now, so
    also the making of the weights; the compiler's is of the program alone, arguments and results
    included, and stands in for the other where a backend has no allocator that counts.
    """
    analysis: Any = compiled.memory_analysis()
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    alone = analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    known = [peak for peak in peaks if peak]
    if known:
        return {"bytes": max(known), "source": "device", "program": alone}
    return {"bytes": alone, "source": "compiler", "program": alone}


def slice_of(devices: Sequence[jax.Device]) -> chips.Slice | None:
    """The devices as a slice of chips with published peaks; None: their peaks are not known."""
    chip = chips.KINDS.get(devices[0].device_kind)
    if chip is None:
        return None
    if len(devices) == 1:
        sides: tuple[int, ...] = (1,) * chip.dimensions
    elif chip.dimensions == 1:
        sides = (len(devices),)
    else:
        places = np.array([getattr(device, "coords", (0,) * 3) for device in devices])
        sides = tuple((places.max(0) - places.min(0) + 1)[: chip.dimensions].tolist())
        if math.prod(sides) != len(devices):  # wired in a way that is not known here
            return None
    return chips.Slice(f"{len(devices)} x {chip.name}", chip, sides)


def _open(case: config.BenchmarkCase) -> Backbone:
    settings = case.run
    longest = (
        max(bucket.tokens for bucket in settings.data.buckets)
        if isinstance(settings, config.TrainConfig)
        else settings.max_length
    )
    return backbones.open_backbone(
        case.model,
        max_length=longest,
        processing=settings.processing,
        weights=False,
        clips=isinstance(settings, config.TrainConfig) and settings.data.clips,
    )


def _write_for_peers(folder: str, ready: Ready) -> None:
    """Weights before the first step, and rows."""
    first, *_ = ready.arguments
    parameters = first.trainable | first.frozen if ready.trains else ready.arguments[1]
    dtype = np.dtype(ready.program.execution.dtype)
    benchmark_peer_folder.write(
        folder, ready.backbone, ready.program.graph, parameters, ready.rows, dtype
    )


def _placed(tree: Any, like: Any) -> Any:
    """Arrays of the host in the shardings of abstract ones."""

    def place(array: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
        assert isinstance(target.sharding, NamedSharding)
        return sharding.to_global(array, target.sharding)

    return jax.tree.map(place, tree, like)


def _timed(
    compiled: Callable[..., Any], ready: Ready, warmup: int, repetitions: int
) -> tuple[list[float], Any]:
    """Seconds of each call, until its results are there, and what the last one computed."""
    arguments = ready.arguments
    seconds = []
    result: Any = None
    for _ in range(warmup + repetitions):
        started = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - started)
        if ready.trains:
            state, result = result
            arguments = state, arguments[1]
    return seconds[warmup:], result


def _figures(
    ready: Ready,
    compiled: jax.stages.Compiled,
    compile_seconds: float,
    seconds: Sequence[float],
    result: Any,
) -> dict[str, Any]:
    """Everything that is reported of a case."""
    made, load = ready.program, ready.load
    devices = list(made.mesh.devices.flat)
    where = slice_of(devices)
    costs = estimate.row_costs(made, load)
    of_tpu = compiler.Compiled(0, 0, too_large=False, text=compiled.as_text() or "")
    knows_traffic = where is not None and devices[0].platform == "tpu"
    work = estimate.work(made, load, costs, of_tpu if knows_traffic else None)
    expected = estimate.estimate(work, where, made.items) if where else None
    median = float(np.median(seconds))
    peak = where.chip.flops * where.chips if where else None
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(result))
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": {
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "count": len(devices),
            "peak_flops": peak,
        },
        "versions": compiler.versions(),
        "work": "train step" if ready.trains else "encode",
        "items": made.items,
        "rows": sum(load.rows),
        "load": dataclasses.asdict(load),
        "buckets": [dataclasses.asdict(bucket) for bucket in made.shapes.buckets],
        "chunk_size": made.shapes.chunk_size,
        "tokens": estimate.live_tokens(load),
        "pad_share": estimate.pad_share(made.shapes, load, ready.live_chunks),
        "seconds": {
            "median": median,
            "least": min(seconds),
            "most": max(seconds),
            "all": list(seconds),
        },
        "compile_seconds": compile_seconds,
        "memory": memory_of(devices, compiled),
        "flops": {"useful": work.useful, "executed": work.executed},
        "mfu": work.useful / median / peak if peak else None,
        "hardware_mfu": work.executed / median / peak if peak else None,
        "estimate": dataclasses.asdict(expected) if expected else None,
        "finite": finite,
    }


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    main()
