"""Compiled programs of the bulk encoder: by shapes, in the thread that needs one or ahead of it."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator

import jax
from jax.sharding import Mesh

from unime_jax import paths, sharding
from unime_jax.batch import Inputs
from unime_jax.data.bucket_filling import bucket_shapes
from unime_jax.data.shapes import BatchShapes, described
from unime_jax.models.forward import (
    SHARED,
    Constants,
    Encode,
    count_live_chunks,
    encode_live_chunks,
)
from unime_jax.operations import compiler_options
from unime_jax.operations.compilation_cache import announced
from unime_jax.operations.programs import Programs


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that is ready to encode: its forward, parameters (trainable, frozen) and devices.

    `constants(trainable, frozen)` makes, once a batch, what every chunk is encoded with in the
    place of the frozen parameters; None: the frozen ones themselves.
    """

    encode: Encode
    parameters: tuple[paths.Parameters, paths.Parameters]
    mesh: Mesh
    constants: Constants | None = None


def compile_ahead(model: Model, shapes: BatchShapes) -> None:
    """Compiles the program of some shapes, if it is new, so that no batch waits for it."""
    compiled(model, shapes)


def width(model: Model, shapes: BatchShapes) -> int:
    """D, by shapes alone."""
    chunk = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
        bucket_shapes(shapes, shapes.buckets[0]),
    )
    return jax.eval_shape(model.encode, *model.parameters, chunk).shape[-1]


@functools.lru_cache(maxsize=SHARED)
def program(encode: Encode, mesh: Mesh, constants: Constants | None = None) -> jax.stages.Wrapped:
    """Jitted encoder of rows: (trainable, frozen, groups) to replicated float32 [C * R, D] a group.

    One function for all parameters of a model, so that "before" and "after" compile once.
    """
    everywhere = sharding.replicated(mesh)

    def run(
        trainable: paths.Parameters, frozen: paths.Parameters, groups: tuple[Inputs, ...]
    ) -> list[jax.Array]:
        fixed = frozen if constants is None else constants(trainable, frozen)
        parts = [
            encode_live_chunks(encode, trainable, fixed, group, count_live_chunks(group.live))
            for group in groups
        ]
        parts = [part.reshape(-1, part.shape[-1]) for part in parts]
        return [jax.lax.with_sharding_constraint(part, everywhere) for part in parts]

    return jax.jit(run, compiler_options=compiler_options.of(mesh))


@functools.lru_cache(maxsize=SHARED)
def _programs(encode: Encode, mesh: Mesh, constants: Constants | None) -> Programs:
    """Compiled `program` of the same arguments, by `_key`."""
    return Programs()


def _key(model: Model, shapes: BatchShapes) -> Hashable:
    """All that a compiled `program` is made for."""
    form = (
        tuple((path, x.shape, x.dtype, x.sharding) for path, x in part.items())
        for part in model.parameters
    )
    return shapes, *form


def compiled(model: Model, shapes: BatchShapes) -> jax.stages.Compiled:
    """The program of some shapes; it is compiled in this thread if it is new."""
    programs = _programs(model.encode, model.mesh, model.constants)
    run: jax.stages.Compiled = programs.compiled(
        _key(model, shapes), functools.partial(_compile, model, shapes)
    )
    return run


def _compile(model: Model, shapes: BatchShapes) -> jax.stages.Compiled:
    spread = sharding.chunked_rows(model.mesh)
    groups = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread),
        tuple(bucket_shapes(shapes, bucket) for bucket in shapes.buckets),
    )
    run = program(model.encode, model.mesh, model.constants)
    what = f"the encoder of {shapes.rows} rows, {described(shapes.buckets)}"
    with announced(what), jax.set_mesh(model.mesh):
        return run.lower(*model.parameters, groups).compile()


@contextlib.contextmanager
def compiling(model: Model) -> Iterator[Callable[[BatchShapes], None]]:
    """A function that lets a thread compile the program of some shapes, if it is new.

    On a mesh of several processes it does nothing: all compile in the order in which they run.
    """
    if len({device.process_index for device in model.mesh.devices.flat}) > 1:
        yield lambda shapes: None
        return
    programs = _programs(model.encode, model.mesh, model.constants)
    with programs.ahead() as start:
        begun: set[BatchShapes] = set()

        def needs(shapes: BatchShapes) -> None:
            if shapes not in begun:
                begun.add(shapes)
                start(_key(model, shapes), functools.partial(_compile, model, shapes))

        yield needs
