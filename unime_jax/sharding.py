"""The device mesh, and sharding rules from array axes to mesh axes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unime_jax import paths

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # mesh axes that the rows of a batch are spread over

COLUMN_PARALLEL = "(q_proj|k_proj|v_proj|gate_proj|up_proj|(linear_)?fc1)"
ROW_PARALLEL = r"(o_proj|out_proj|attn\.proj|down_proj|(linear_)?fc2)"
# Kernels are [layers, in, out]. Column-parallel layers put "tensor" on their outputs, row-parallel
# ones on their inputs, so that a block needs one reduction; "fsdp" takes the other side.
RULES: paths.Rules[P] = (
    # SigLIP's heads are one layer deep: no stacks.
    (r".*\.head\.mlp\.fc1\.kernel", P("fsdp", "tensor")),
    (r".*\.head\.(attention\.out_proj|mlp\.fc2)\.kernel", P("tensor", "fsdp")),
    (r".*\.head\.attention\.in_proj_weight", P(None, "fsdp")),
    (r"(text_model\.head|(text|visual)_projection)\.kernel", P("fsdp", "tensor")),
    (r".*\.head\..*", P()),
    # A merger alone is no stack; those of Qwen3-VL's other levels are one.
    (r".*\.merger\.linear_fc1\.kernel", P("fsdp", "tensor")),
    (r".*\.merger\.linear_fc2\.kernel", P("tensor", "fsdp")),
    (r".*\.merger\.linear_fc[12]\..*", P()),
    (rf".*\.{COLUMN_PARALLEL}\.kernel", P(None, "fsdp", "tensor")),
    (rf".*\.{ROW_PARALLEL}\.kernel", P(None, "tensor", "fsdp")),
    (rf".*\.{COLUMN_PARALLEL}\.lora_a", P(None, "fsdp", None)),
    (rf".*\.{COLUMN_PARALLEL}\.lora_b", P(None, None, "tensor")),
    (rf".*\.{ROW_PARALLEL}\.lora_a", P(None, "tensor", None)),
    (rf".*\.{ROW_PARALLEL}\.lora_b", P(None, None, "fsdp")),
    # Queries, keys and values side by side: parts of them all are on a device only if it has all.
    (r".*\.qkv\.(kernel|lora_a)", P(None, "fsdp", None)),
    (r".*\.(self\.(query|key|value)|intermediate\.dense)\.kernel", P(None, "fsdp", "tensor")),
    (r".*\.output\.dense\.kernel", P(None, "tensor", "fsdp")),
    (r".*\.(linear_1|to_[qkv]|feed_forward\.(value|gate))\.kernel", P("fsdp", "tensor")),
    (r".*\.(linear_2|to_out|feed_forward\.down)\.kernel", P("tensor", "fsdp")),
    (r".*\.(embed_tokens|word_embeddings|token_embedding)\.embedding", P("tensor", "fsdp")),
    (r".*\.lm_head\.kernel", P("fsdp", "tensor")),
    (r".*\.(patch_embedding|patch_embed\.proj)\.kernel", P(None, "fsdp")),
    (r".*", P()),
)


def make_mesh(
    data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A (data, fsdp, tensor) mesh over `devices`, by default all of them.

    One size may be -1: all devices that the other two leave. Only the data axis crosses TPU slices.
    It moves the least, gradients of trainable parameters, and slices are joined by the slow
    data-center network.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or slices would share more
        than the data axis.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = [data, fsdp, tensor]
    if shape.count(-1) == 1 and 0 not in shape:
        shape[shape.index(-1)] = len(devices) // -math.prod(shape)
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise ValueError(
            f"mesh.data={data} x mesh.fsdp={fsdp} x mesh.tensor={tensor} does not give the "
            f"{len(devices)} device(s) present. Set them so that their product is {len(devices)} "
            "(one of them may be -1: what the other two leave)."
        )
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if shape[0] % slices:
        raise ValueError(
            f"mesh.data={shape[0]} cannot be shared out over {slices} slices, and only the data "
            "axis may cross from one slice to another: make mesh.data a multiple of the slices, "
            "and mesh.fsdp x mesh.tensor at most the devices of one."
        )
    within = shape[0] // slices, *shape[1:]
    # Split: a mesh axis may take a part of a torus axis, as 2 x 8 does of a 4 x 4 slice.
    if slices == 1:
        grid = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    # The default of axis_types changed in jax 0.9, so it is never left out.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Number of shards of the rows of a batch."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def parameter_shardings(
    mesh: Mesh, shapes: Mapping[str, tuple[int, ...]], rules: paths.Rules[P] = RULES
) -> dict[str, NamedSharding]:
    """Shardings of all parameters, by path. An axis that does not divide evenly is not split."""
    specs = paths.assign(rules, shapes, what="sharding rules")
    return {path: NamedSharding(mesh, fit(specs[path], shapes[path], mesh)) for path in shapes}


def abstract_parameters(
    shapes: Mapping[str, Any], mesh: Mesh, dtype: Callable[[str], jnp.dtype]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Parameters by shape, dtype (given a path) and sharding: targets of reading and tracing."""
    placed = parameter_shardings(mesh, {path: leaf.shape for path, leaf in shapes.items()})
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, dtype(path), sharding=placed[path])
        for path, leaf in shapes.items()
    }


def fit(spec: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """`spec` without the mesh axes that do not divide their array axis.

    Raises:
      ValueError: the spec names more axes than the array has.
    """
    if len(spec) > len(shape):
        raise ValueError(f"{spec} names {len(spec)} axes, but the array has shape {shape}.")
    return P(*(a if a and n % mesh.shape[a] == 0 else None for a, n in zip(spec, shape)))


def chunked_rows(mesh: Mesh) -> NamedSharding:
    """Sharding of [C, R, ...] arrays: every chunk is spread over all row shards."""
    return NamedSharding(mesh, P(None, ROWS))


def shard_rows(x: jax.Array) -> jax.Array:
    """Constrains activations, [R, ...], to be sharded by row, like the inputs.

    Unconstrained, the compiler may split them by features where a weight lies over "fsdp": just as
    exact, but every device then holds all rows. No constraint without a mesh (`jax.set_mesh`), or
    where the mesh does not divide the rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % row_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, P(ROWS, *[P.UNCONSTRAINED] * (x.ndim - 1)))


def shard_chunked_rows(x: jax.Array) -> jax.Array:
    """As `shard_rows` of [C, R, ...] arrays, whose chunks are each spread over all row shards."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[1] % row_shards(mesh):
        return x
    spec = P(None, ROWS, *[P.UNCONSTRAINED] * (x.ndim - 2))
    return jax.lax.with_sharding_constraint(x, spec)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, P())


def to_global(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array, assembled from the part of each process."""
    return jax.make_array_from_process_local_data(sharding, array)
