"""Stacks of equal layers: built by vmap, run by scan, so that depth costs no compile time."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from unime_jax import sharding
from unime_jax.models import gather
from unime_jax.models.settings import Remat

Layer = TypeVar("Layer", bound=nnx.Module)

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def _all_but_gathered(primitive: Any, *arguments: Any, **_: Any) -> bool:
    """A policy that keeps everything but gathered kernels, which would be those of all layers.

    Of a frozen kernel that is a call nobody differentiates; a cast one, which has two axes, would
    be spread like the gathered one.
    """
    if primitive.name == "convert_element_type":
        return arguments[0].ndim > 2
    return primitive.name not in ("sharding_constraint", "custom_vjp_call")


def stack(make: Callable[[jax.Array], Layer], layers: int, key: jax.Array) -> Layer:
    """`layers` copies of a module with every parameter stacked on a new first axis."""
    return jax.vmap(make)(jax.random.split(key, layers))


def run(
    layers: Layer,
    call: Callable[[Layer, jax.Array], jax.Array],
    x: jax.Array,
    *,
    remat: Remat,
    added: Sequence[jax.Array] = (),
) -> jax.Array:
    """Applies the stacked layers in turn to x, [rows, ...]. `remat`: what the backward recomputes.

    "none" keeps every activation, "dots" keeps matmul outputs, "full" keeps only layer inputs.
    Array i of `added` is added to x after layer i (DeepStack, Meng et al. 2024).
    Every device keeps to its own rows: left to choose, XLA splits activations by features where
    weights lie over "fsdp", and reduces them over all devices in every layer.

    Raises:
      ValueError: more of `added` than layers.
    """
    # Layers that are sliced from their stack and run apart would be copies of their parameters,
    # and one array a layer would be as large as all layers' inputs: so the loop picks.
    levels = jnp.stack(added) if added else None
    depth = len(jax.tree.leaves(layers)[0])
    if len(added) > depth:
        raise ValueError(f"{len(added)} arrays are to be added after layers, and there are {depth}")

    gathers = gather.takes_part(x)

    def body(x: jax.Array, scanned: tuple[Layer, Any]) -> tuple[jax.Array, None]:
        layer, i = scanned
        if gathers:
            gather.gather(layer, x)
        x = call(layer, x)
        if levels is not None:
            x = jax.lax.cond(i < len(added), lambda: x + levels[i], lambda: x)
        return sharding.shard_rows(x), None

    if gathers or remat != "none":
        # Inside a scan the loop itself keeps XLA from merging the two forwards.
        policy = _all_but_gathered if remat == "none" else _POLICIES[remat]
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    numbers = None if levels is None else jnp.arange(depth)
    return jax.lax.scan(body, sharding.shard_rows(x), (layers, numbers))[0]
