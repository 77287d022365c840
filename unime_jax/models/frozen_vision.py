"""Vision features that no trained parameter has a part in, computed once for all uses in a step."""

import dataclasses
import math
from collections.abc import Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from unime_jax import paths, sharding
from unime_jax.batch import Inputs
from unime_jax.models.forward import chunk_at, count_live_chunks, model_of
from unime_jax.models.vlm import Execution

FEATURES = "frozen_features"  # scope of the loop over the chunks whose features are kept


@dataclasses.dataclass(frozen=True)
class FrozenVision:
    """The part of a model's forward that makes `Inputs.vision` of patches, and is not trained.

    `stage`: number of `EmbeddingModel.vision_stages`.
    """

    graph: nnx.GraphDef
    execution: Execution
    stage: int

    def __call__(self, trainable: paths.Parameters, frozen: paths.Parameters, chunk: Inputs) -> Any:
        """Features of a chunk with patches, each [R, ...]."""
        model = model_of(self.graph, trainable, frozen)
        return model.vision_stages()[self.stage](chunk, self.execution)


def frozen_vision(
    graph: nnx.GraphDef,
    execution: Execution,
    parameters: Mapping[str, jax.ShapeDtypeStruct],
    trainable: Container[str],
    chunk: Inputs,
) -> tuple[FrozenVision | None, list[str]]:
    """The stage of the forward that reads no trainable parameter, by tracing it.

    Of several it is the one with the smallest features: a projector to a wide decoder costs
    little of what its tower does, and its image tokens take more memory than what it reads.

    Args:
      parameters: all, abstract.
      trainable: paths of those that are trained.
      chunk: abstract, with patches.

    Returns:
      None where the first stage reads a trainable parameter, or the model has no stages; and the
      trainable parameters that the last stage looked at reads.
    """
    read: list[str] = []
    smallest, least = None, math.inf
    bare = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in parameters.items()}
    plain = dataclasses.replace(execution, remat="none", attention="xla")  # to be traced anywhere
    stages = len(jax.eval_shape(lambda p: paths.merge(graph, p), bare).vision_stages())
    for stage in range(stages):
        compute = FrozenVision(graph, plain, stage)
        read = [path for path in _read(compute, bare, chunk) if path in trainable]
        if read:
            break
        size = _bytes(jax.eval_shape(compute, bare, {}, chunk))
        if size <= least:
            smallest, least = FrozenVision(graph, execution, stage), size
    return smallest, read


def _read(compute: FrozenVision, parameters: dict[str, Any], chunk: Inputs) -> list[str]:
    """Paths of the parameters that any operation takes."""
    jaxpr = jax.make_jaxpr(lambda p, c: compute(p, {}, c))(parameters, chunk).jaxpr
    used = {id(x) for equation in jaxpr.eqns for x in equation.invars}
    used |= {id(x) for x in jaxpr.outvars}
    paths_in_order = sorted(parameters)  # as the leaves of a dict
    return [path for path, x in zip(paths_in_order, jaxpr.invars) if id(x) in used]


def with_features(
    compute: FrozenVision,
    trainable: paths.Parameters,
    frozen: paths.Parameters,
    inputs: Inputs,
) -> Inputs:
    """A group with features in the place of patches, chunk after chunk; without patches, itself.

    Only live chunks are computed, so it takes the memory of one chunk, and of the features of all.
    There is no gradient through it.
    """
    if inputs.patches is None:
        return inputs
    fixed = jax.lax.stop_gradient(trainable)

    def of_chunk(i: int | Int[Array, ""]) -> Any:
        return compute(fixed, frozen, chunk_at(inputs, i))

    def body(i: Int[Array, ""], kept: Any) -> Any:
        return jax.tree.map(lambda all_chunks, x: all_chunks.at[i].set(x), kept, of_chunk(i))

    chunks = inputs.live.shape[0]
    room = jax.tree.map(
        lambda x: sharding.shard_chunked_rows(jnp.zeros((chunks, *x.shape), x.dtype)),
        jax.eval_shape(of_chunk, 0),
    )
    with jax.named_scope(FEATURES):  # by which a plan knows the loop
        vision = jax.lax.fori_loop(0, count_live_chunks(inputs.live), body, room)
    return dataclasses.replace(inputs, patches=None, patch_position=None, vision=vision)


def bytes_of(
    compute: FrozenVision, parameters: Mapping[str, Any], groups: tuple[Inputs, ...]
) -> int:
    """Bytes of the features of all groups, on all devices together; arguments may be abstract."""

    def features(parameters: paths.Parameters, groups: tuple[Inputs, ...]) -> list[Any]:
        return [with_features(compute, {}, parameters, group).vision for group in groups]

    return _bytes(jax.eval_shape(features, dict(parameters), groups))


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
