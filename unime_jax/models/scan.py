"""Stacks of equal layers: built by vmap, run by scan, so that depth costs no compile time."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from unime_jax import sharding
from unime_jax.models import gather
from unime_jax.models.settings import Remat

Layer = TypeVar("Layer", bound=nnx.Module)

INPUT, HOST = "layer_input", "pinned_host"
_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    # A scan's slices of the host's memory come back as a layer needs them.
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=(),
        names_which_can_be_offloaded=(INPUT,),
        offload_src="device",
        offload_dst=HOST,
    ),
    "attention": jax.checkpoint_policies.save_only_these_names("projection"),
    "attention_up": jax.checkpoint_policies.save_only_these_names("projection", "up"),
    # By name, too: a product of int8 codes is no dot to a policy.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("projection", "gate", "up"),
    ),
}


def check(remat: Remat, mesh: Mesh) -> None:
    """Raises ValueError where the devices cannot do what is asked: "offload" needs host memory.

    An abstract mesh is one of TPUs: none but a planner's has no devices.
    """
    if remat != "offload" or not isinstance(mesh, Mesh):
        return
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise ValueError(
            f'config.execution.remat="offload" puts the inputs of layers into {HOST} memory, and a '
            f"{device.device_kind} has {', '.join(kinds) or 'none that JAX names'} only: set "
            '"full", which keeps them on the device'
        )


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
    call: Callable[..., jax.Array],
    x: jax.Array,
    *,
    remat: Remat,
    added: Sequence[jax.Array] = (),
    kinds: Sequence[bool] = (),
) -> jax.Array:
    """Applies the stacked layers in turn to x, [rows, ...]. `remat`: what the backward recomputes.

    Attention's own products, of tokens by tokens, are computed again by all but "none".
    `call` is given a layer, x and, with `kinds`, the layer's own of them, as data: a layer of
    either kind is compiled once, whatever the depth.
    Array i of `added` is added to x after layer i (DeepStack, Meng et al. 2024).
    Every device keeps to its own rows: left to choose, XLA splits activations by features where
    weights lie over "fsdp", and reduces them over all devices in every layer.

    Raises:
      ValueError: more of `added` than layers, or not a kind for each.
    """
    depth = _depth(layers)
    # Layers that are sliced from their stack and run apart would be copies of their parameters,
    # and one array a layer would be as large as all layers' inputs: so the loop picks.
    levels = jnp.stack(added) if added else None
    if len(added) > depth:
        raise ValueError(f"{len(added)} arrays are to be added after layers, and there are {depth}")

    if kinds and len(kinds) != depth:
        raise ValueError(f"there are {len(kinds)} kinds of {depth} layers")

    gathers = gather.takes_part(x)

    def body(x: jax.Array, scanned: tuple[Layer, Any, Any]) -> tuple[jax.Array, None]:
        layer, i, kind = scanned
        if gathers:
            gather.gather(layer, x)
        x = call(layer, checkpoint_name(x, INPUT), *([] if kind is None else [kind]))
        if levels is not None:
            x = jax.lax.cond(i < len(added), lambda: x + levels[i], lambda: x)
        return sharding.shard_rows(x), None

    numbers = None if levels is None else jnp.arange(depth)
    given = jnp.array(kinds) if kinds else None
    body = _recomputed(body, remat, gathers)
    return jax.lax.scan(body, sharding.shard_rows(x), (layers, numbers, given))[0]


def run_levels(
    layers: Layer,
    call: Callable[[Layer, jax.Array], jax.Array],
    x: jax.Array,
    *,
    remat: Remat,
    levels: Sequence[int],
) -> jax.Array:
    """The states after each of the layers `levels`, which ascend, and after the last: stacked.

    Otherwise as `run`, in one loop over all layers.

    Raises:
      ValueError: `levels` do not ascend, or there is no such layer.
    """
    depth = _depth(layers)
    if list(levels) != sorted(set(levels)) or not all(0 <= level < depth for level in levels):
        raise ValueError(
            f"states are to be kept after the layers {list(levels)}, which must ascend and lie"
            f" within 0 to {depth - 1}"
        )
    gathers = gather.takes_part(x)

    def body(carried: tuple[jax.Array, jax.Array], scanned: tuple[Layer, Any]) -> Any:
        (x, kept), (layer, place) = carried, scanned
        if gathers:
            gather.gather(layer, x)
        x = sharding.shard_rows(call(layer, checkpoint_name(x, INPUT)))
        # Layers up to a level write to its place, and the level last: so no layer is a special one.
        kept = jax.lax.dynamic_update_index_in_dim(kept, x, place, 0)
        return (x, sharding.shard_chunked_rows(kept)), None

    places = np.searchsorted(np.array(levels, np.int32), np.arange(depth))
    x = sharding.shard_rows(x)
    room = sharding.shard_chunked_rows(jnp.zeros((len(levels) + 1, *x.shape), x.dtype))
    body = _recomputed(body, remat, gathers)
    (_, kept), _ = jax.lax.scan(body, (x, room), (layers, jnp.asarray(places, jnp.int32)))
    return kept


def _depth(layers: nnx.Module) -> int:
    return len(jax.tree.leaves(layers)[0])


def _recomputed(body: Callable[..., Any], remat: Remat, gathers: bool) -> Callable[..., Any]:
    """A loop's body whose activations the backward pass computes again, as `remat` says."""
    if not gathers and remat == "none":
        return body
    # Inside a scan the loop itself keeps XLA from merging the two forwards.
    policy = _all_but_gathered if remat == "none" else _POLICIES[remat]
    return jax.checkpoint(body, policy=policy, prevent_cse=False)
