"""A job's own program with abstract arguments, traced for devices that are not at hand."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from unime_jax import backbones, config, encode, sharding
from unime_jax.backbones import Backbone
from unime_jax.batch import Batch, Inputs
from unime_jax.data.packing import bucket_shapes
from unime_jax.data.shapes import BatchShapes
from unime_jax.models import forward, inference
from unime_jax.models.vlm import Execution
from unime_jax.training import setup, state, step
from unime_jax.training.objectives import Distillation


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted program, its abstract arguments and its mesh.

    Attributes:
      mesh: of the devices, which may be those of a topology without any hardware; abstract where
        they are not even known to a compiler.
      run: the jitted function that the job calls.
      arguments: of `run`, all abstract, with shardings.
      plan: the shapes of its rows.
      parameters: the trainable and the frozen ones, abstract, by path.
      execution: how `graph` is run.
      keeps: whether the backward pass finds activations of all chunks, or encodes them again.
      items: pairs (or texts, if nothing is trained) that one call is for.
    """

    mesh: Mesh
    run: Any
    arguments: tuple[Any, ...]
    plan: BatchShapes
    graph: Any
    parameters: tuple[dict[str, Any], dict[str, Any]]
    execution: Execution
    keeps: bool
    items: int

    def traced(self) -> Any:
        """The program as a jaxpr."""
        mesh: Any = self.mesh.abstract_mesh if self.compiles else self.mesh
        with jax.sharding.use_abstract_mesh(mesh):
            return self.run.trace(*self.arguments)

    @property
    def compiles(self) -> bool:
        """Whether the mesh is of devices, and not abstract."""
        return isinstance(self.mesh, Mesh)

    @property
    def groups(self) -> tuple[Inputs, ...]:
        """The rows among the arguments."""
        last = self.arguments[-1]
        return last.groups if isinstance(last, Batch) else last

    @property
    def opt_state(self) -> Any:
        """The optimizer's state among the arguments."""
        first = self.arguments[0]
        return first.opt_state if isinstance(first, step.TrainState) else ()


def abstract_mesh(sizes: config.MeshConfig, devices: int) -> Mesh:
    """`sharding.make_mesh` of devices that nothing is known of but their number.

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
    settings: config.TrainConfig,
    backbone: Backbone,
    mesh: Mesh,
    *,
    teacher: int,
) -> Program:
    """The step of `jobs.train`.

    Args:
      teacher: width of the teacher's embeddings, if the loss is distillation.

    Raises:
      ValueError: a part of the config does not fit the backbone or the mesh.
    """
    if isinstance(settings.loss, Distillation):
        backbone = backbones.language_only(backbone, teacher)
    found = setup.trace(settings, mesh, backbone, backbone.preprocess)
    now = state.abstract_state(found.abstract_model, found.optimizer(), mesh)
    return Program(
        mesh=mesh,
        run=found.train_step(now),
        arguments=(now, abstract_batch(found.shapes, mesh, settings.batch_size)),
        plan=found.shapes,
        graph=found.abstract_model.graph,
        parameters=(now.trainable, now.frozen),
        execution=found.execution,
        keeps=not settings.execution.recompute,
        items=settings.batch_size,
    )


def embed_program(backbone: Backbone, mesh: Mesh, plan: BatchShapes, dtype: jnp.dtype) -> Program:
    """The program with which `Embedder` encodes rows of one shape."""
    graph, targets = inference.targets(backbone.make_model, mesh, dtype)
    execution = inference.default_execution(dtype)
    return Program(
        mesh=mesh,
        run=encode._program(forward.make_encode(graph, execution), mesh),
        arguments=({}, targets, abstract_rows(plan, mesh)),
        plan=plan,
        graph=graph,
        parameters=({}, targets),
        execution=execution,
        keeps=False,
        items=plan.rows,
    )


def abstract_batch(plan: BatchShapes, mesh: Mesh, batch_size: int) -> Batch:
    """A batch of pairs by shapes, dtypes and shardings."""
    groups = abstract_rows(plan, mesh)
    pairs = NamedSharding(mesh, jax.P(sharding.ROWS))
    pair = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=pairs)
    rows = sharding.chunked_rows(mesh)
    return Batch(
        groups=groups,
        query=pair,
        positive=pair,
        negative=jax.ShapeDtypeStruct((batch_size, plan.negatives), jnp.int32, sharding=pairs),
        target_id=tuple(
            jax.ShapeDtypeStruct(group.length.shape, np.uint32, sharding=rows) for group in groups
        ),
        source=pair,
    )


def abstract_rows(plan: BatchShapes, mesh: Mesh) -> tuple[Inputs, ...]:
    """The rows of all buckets by shapes, dtypes and shardings."""
    groups = tuple(bucket_shapes(plan, bucket) for bucket in plan.buckets)
    rows = sharding.chunked_rows(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), groups)
