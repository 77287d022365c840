"""Kernels that lie over "fsdp", gathered whole for the layer that multiplies by them.

Left to choose, XLA:TPU multiplies by the part of a kernel that it has while the next one travels,
and adds up in HBM what a layer with its input over "fsdp" computes of each. A whole kernel is read
once, and what a layer gathers travels while the layer before it computes.
"""

import functools
import math

import jax
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int8

from unime_jax import paths, sharding
from unime_jax.models.layers import Linear, linears


def takes_part(x: jax.Array) -> bool:
    """Whether layers gather their kernels for x, [rows, ...]: rows and kernels are spread alike.

    The mesh is that of `jax.set_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape["fsdp"] > 1 and x.shape[0] % sharding.row_shards(mesh) == 0


def gather(layer: nnx.Module, x: jax.Array) -> None:
    """Hands the linear layers of a layer, one of a stack, their kernels in x's dtype and whole.

    Those over "tensor" stay split there. A kernel stays where it is if moving the activations would
    be less, as of a few short rows. Gradients are scattered as soon as they are computed.
    """
    mesh = jax.sharding.get_abstract_mesh()
    tokens = math.prod(x.shape[:-1])
    for path, linear in linears(layer):
        own = _spec(path, linear, mesh)
        if "fsdp" in own and tokens >= min(linear.kernel.shape):
            kernel = linear.kernel[...]
            whole = P(*(None if axis == "fsdp" else axis for axis in own))
            if linear.kernel_scale is None:
                kernel = _gathered(kernel.astype(x.dtype), own, whole)
            else:
                kernel = jax.lax.with_sharding_constraint(kernel, whole)
            linear.whole = nnx.Param(kernel)


def _spec(path: str, linear: Linear, mesh: AbstractMesh) -> P:
    """The sharding of one layer's kernel, of a stack that has it behind its first axis."""
    name = f"layers.{path}.kernel"
    spec = paths.assign(sharding.RULES, [name], what="sharding rules")[name]
    return P(*sharding.fit(spec, (1, *linear.kernel.shape), mesh)[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(
    kernel: Float[Array, "in out"] | Int8[Array, "in out"], own: P, whole: P
) -> Float[Array, "in out"] | Int8[Array, "in out"]:
    return jax.lax.with_sharding_constraint(kernel, whole)


def _forward(kernel, own, whole):
    return jax.lax.with_sharding_constraint(kernel, whole), None


def _backward(own, whole, _, cotangent):
    return (jax.lax.with_sharding_constraint(cotangent, own),)


_gathered.defvjp(_forward, _backward)
