"""Stacks of equal layers: built by vmap, run by scan, so that depth costs no compile time."""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx

from unime_jax import sharding
from unime_jax.models.settings import Remat

Layer = TypeVar("Layer", bound=nnx.Module)

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def stack(make: Callable[[jax.Array], Layer], layers: int, key: jax.Array) -> Layer:
    """`layers` copies of a module with every parameter stacked on a new first axis."""
    return jax.vmap(make)(jax.random.split(key, layers))


def run(
    layers: Layer,
    call: Callable[[Layer, jax.Array], jax.Array],
    x: jax.Array,
    *,
    remat: Remat,
) -> jax.Array:
    """Applies the stacked layers in turn to x, [rows, ...]. `remat`: what the backward recomputes.

    "none" keeps every activation, "dots" keeps matmul outputs, "full" keeps only layer inputs.
    Every device keeps to its own rows: left to choose, XLA splits activations by features where
    weights lie over "fsdp", and reduces them over all devices in every layer.
    """

    def body(x: jax.Array, layer: Layer) -> tuple[jax.Array, None]:
        return sharding.shard_rows(call(layer, x)), None

    if remat != "none":
        # Inside a scan the loop itself keeps XLA from merging the two forwards.
        body = jax.checkpoint(body, policy=_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(body, sharding.shard_rows(x), layers)[0]
