"""A job's own program with abstract arguments, traced for devices that are not at hand."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from unime_jax import backbones, config, sharding
from unime_jax.backbones import Backbone
from unime_jax.batch import Batch, Inputs
from unime_jax.data.bucket_filling import bucket_shapes
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.inference import encoder_programs
from unime_jax.models import forward, frozen_vision, inference
from unime_jax.models.vlm import Execution
from unime_jax.training import activations, setup, state, step, temperature
from unime_jax.training.loss_settings import Distillation, contrastive_part
from unime_jax.training.settings import ExecutionConfig

Parameters = dict[str, Any]  # abstract, by path


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted program, its abstract arguments, and what lies on the devices beside them.

    Attributes:
      mesh: of the devices, which may be those of a topology without any hardware; abstract where
        they are not even known to a compiler.
      run: the jitted function that the job calls.
      arguments: of `run`, all abstract, with shardings; the last one is a batch.
      next_call: the arrays of the next call, which is prepared while this one runs: its batch.
      idle: weights on the devices that `run` does not read, by path.
      shapes: of its rows.
      parameters: the trainable and the frozen ones, abstract, by path.
      execution: how `graph` is run.
      kept: chunks whose activations the backward pass finds, by bucket; it encodes others again.
      merged: chunks that are encoded at once where no gradient is needed.
      vision: makes the features of images that are kept for both passes; None: there are none.
      items: pairs (or texts, if nothing is trained) of one call.
    """

    mesh: Mesh
    run: Any
    arguments: tuple[Any, ...]
    next_call: Any
    idle: Parameters
    shapes: BatchShapes
    graph: Any
    parameters: tuple[Parameters, Parameters]
    execution: Execution
    kept: tuple[int, ...]
    merged: int
    items: int
    vision: frozen_vision.FrozenVision | None = None

    def traced(self) -> Any:
        """The program as a jaxpr."""
        mesh: Any = self.mesh.abstract_mesh if self.compiles else self.mesh
        with jax.sharding.use_abstract_mesh(mesh):
            return self.run.trace(*self.arguments)

    def chunk(self, rows: int, bucket: Bucket) -> tuple[Parameters, Parameters, Inputs]:
        """Trainable and frozen parameters and a chunk of so many rows, without shardings."""
        trainable, frozen = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.parameters
        )
        return trainable, frozen, activations.chunk(rows, bucket, self.shapes.layout)

    @property
    def compiles(self) -> bool:
        """Whether the mesh is of devices, and not abstract."""
        return isinstance(self.mesh, Mesh)

    @property
    def groups(self) -> tuple[Inputs, ...]:
        """The rows among the arguments."""
        batch = self.arguments[-1]
        return batch.groups if isinstance(batch, Batch) else batch

    @property
    def opt_state(self) -> Any:
        """The optimizer's state among the arguments."""
        first = self.arguments[0]
        return first.opt_state if isinstance(first, step.TrainState) else ()


def abstract_mesh(sizes: config.MeshConfig, devices: int) -> Mesh:
    """`sharding.make_mesh` of devices of which only the number is known.

    Raises:
      ValueError: the sizes do not multiply to it.
    """
    shape = [sizes.data, sizes.fsdp, sizes.tensor]
    if shape.count(-1) == 1 and 0 not in shape:
        shape[shape.index(-1)] = devices // -math.prod(shape)
    if min(shape) < 1 or math.prod(shape) != devices:
        raise ValueError(f"config.mesh={shape} does not give {devices} devices.")
    mesh: Any = AbstractMesh(tuple(shape), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    return mesh  # for tracing it is as good


def train_program(
    settings: config.TrainConfig, backbone: Backbone, mesh: Mesh, *, teacher: int
) -> Program:
    """The step of `jobs.train`.

    Args:
      teacher: width of the teacher's embeddings, if the loss has one.

    Raises:
      ValueError: a part of the config does not fit the backbone or the mesh.
    """
    return step_program(train_setup(settings, backbone, mesh, teacher=teacher), backbone)


def train_setup(
    settings: config.TrainConfig, backbone: Backbone, mesh: Mesh, *, teacher: int
) -> setup.Setup:
    """The traced run of `jobs.train`, without data: arguments as of `train_program`."""
    trained = backbone
    if isinstance(settings.loss, Distillation):
        trained = backbones.language_only(backbone, teacher)
    run = setup.trace(settings, mesh, trained, trained.preprocess)
    contrast = contrastive_part(settings.loss)[1]
    if contrast is not None and contrast.uses_teacher:
        layout = dataclasses.replace(run.shapes.layout, teacher=teacher)
        run = dataclasses.replace(run, shapes=dataclasses.replace(run.shapes, layout=layout))
    return run


def step_program(run: setup.Setup, backbone: Backbone) -> Program:
    """The step of a traced run; `backbone`: the whole, of which a run may train a component."""
    settings, mesh = run.settings, run.mesh
    idle: Parameters = {}
    if run.backbone is not backbone and settings.evaluation.every:  # of the whole model
        whole = setup.trace(settings, mesh, backbone, backbone.preprocess).abstract_model.parameters
        idle = {path: x for path, x in whole.items() if path not in run.abstract_model.parameters}
    before = state.abstract_state(run.abstract_model, run.optimizer(), mesh)
    learned = temperature.abstract_temperature(settings.loss, mesh)
    before = dataclasses.replace(before, temperature=learned)
    batch = abstract_batch(run.shapes, mesh, settings.batch_size)
    return Program(
        mesh=mesh,
        run=run.train_step(before),
        arguments=(before, batch),
        next_call=batch,
        idle=idle,
        shapes=run.shapes,
        graph=run.abstract_model.graph,
        parameters=(before.trainable, before.frozen),
        execution=run.execution,
        kept=kept_chunks(settings.execution, run.shapes),
        merged=settings.execution.merged_chunks or 1,
        items=settings.batch_size,
        vision=run.vision,
    )


def kept_chunks(execution: ExecutionConfig, shapes: BatchShapes) -> tuple[int, ...]:
    """Chunks of each bucket whose activations a step keeps for its backward pass."""
    rooms = [shapes.chunks(bucket) for bucket in shapes.buckets]
    if not execution.recompute:
        return tuple(rooms)
    return tuple(map(min, execution.kept_chunks or (0,) * len(rooms), rooms))


def embed_program(backbone: Backbone, mesh: Mesh, shapes: BatchShapes, dtype: jnp.dtype) -> Program:
    """The program with which `Embedder` encodes rows of one shape."""
    graph, parameters = inference.targets(backbone.make_model, mesh, dtype)
    execution = inference.default_execution(dtype)
    groups = abstract_rows(shapes, mesh)
    embeddings = [  # of the next call, or of the one before until they are fetched
        jax.ShapeDtypeStruct(
            (group.embedded.size, backbone.dimension),
            jnp.float32,
            sharding=sharding.replicated(mesh),
        )
        for group in groups
    ]
    return Program(
        mesh=mesh,
        run=encoder_programs.program(forward.make_encode(graph, execution), mesh),
        arguments=({}, parameters, groups),
        next_call=(groups, embeddings),
        idle={},
        shapes=shapes,
        graph=graph,
        parameters=({}, parameters),
        execution=execution,
        kept=(0,) * len(shapes.buckets),
        merged=1,
        items=shapes.rows,
    )


def abstract_batch(shapes: BatchShapes, mesh: Mesh, batch_size: int) -> Batch:
    """A batch of pairs by shapes, dtypes and shardings."""
    groups = abstract_rows(shapes, mesh)
    pairs = NamedSharding(mesh, jax.P(sharding.ROWS))
    pair = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=pairs)
    rows = sharding.chunked_rows(mesh)
    return Batch(
        groups=groups,
        query=pair,
        positive=pair,
        negative=jax.ShapeDtypeStruct((batch_size, shapes.negatives), jnp.int32, sharding=pairs),
        target_id=tuple(
            jax.ShapeDtypeStruct(group.embedded_shape, np.uint32, sharding=rows) for group in groups
        ),
        source=pair,
        query_id=jax.ShapeDtypeStruct((batch_size,), jnp.uint32, sharding=pairs),
        scores=jax.ShapeDtypeStruct((batch_size, 1 + shapes.negatives), jnp.float32, sharding=pairs)
        if shapes.scored
        else None,
        grade=jax.ShapeDtypeStruct((batch_size,), jnp.float32, sharding=pairs)
        if shapes.graded
        else None,
    )


def abstract_rows(shapes: BatchShapes, mesh: Mesh) -> tuple[Inputs, ...]:
    """The rows of all buckets by shapes, dtypes and shardings."""
    groups = tuple(bucket_shapes(shapes, bucket) for bucket in shapes.buckets)
    rows = sharding.chunked_rows(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), groups)
