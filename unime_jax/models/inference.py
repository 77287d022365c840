"""A model for inference: its parameters as they are stored, and how its forward is run."""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from unime_jax import paths, sharding
from unime_jax.models import layers
from unime_jax.models.forward import SHARED
from unime_jax.models.vlm import EmbeddingModel, Execution


def targets(
    make_model: Callable[[jax.Array], EmbeddingModel], mesh: Mesh, dtype: jnp.dtype
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """The graph, and shapes, dtypes and shardings of the parameters by path, for reading weights.

    Args:
      make_model: the model with random parameters, given a key; it is traced alone.
      dtype: of weights; int8: linear layers as codes with scales, the rest bfloat16.
    """

    graph, shapes = _trace(make_model, dtype == jnp.int8)

    def stored(path: str) -> jnp.dtype:
        codes = shapes[path].dtype == jnp.int8
        scale = path.endswith(".kernel_scale")
        return shapes[path].dtype if codes or scale else activations(dtype)

    return graph, sharding.abstract_parameters(shapes, mesh, stored)


@functools.lru_cache(maxsize=SHARED)
def _trace(
    make_model: Callable[[jax.Array], EmbeddingModel], quantized: bool
) -> tuple[nnx.GraphDef, Mapping[str, Any]]:
    """The graph and shapes of the model, with linear layers as int8 codes or as they are."""

    def make() -> EmbeddingModel:
        model = make_model(jax.random.key(0))
        if quantized:
            layers.quantize(model, {f"{path}.kernel" for path, _ in layers.linears(model)})
        return model

    graph, shapes = paths.split(jax.eval_shape(make))
    return graph, types.MappingProxyType(shapes)


def activations(dtype: jnp.dtype) -> jnp.dtype:
    """Dtype of activations, given that of the weights."""
    return jnp.dtype("bfloat16") if dtype == jnp.int8 else dtype


def default_execution(dtype: jnp.dtype) -> Execution:
    """Execution of the forward that runs on any device, given the dtype of the weights."""
    return Execution(activations(dtype), "none", "xla")
