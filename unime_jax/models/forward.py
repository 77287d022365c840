"""An embedding model as a pure function of parameters and rows: one chunk, or chunk after chunk."""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from unime_jax import paths
from unime_jax.batch import Inputs
from unime_jax.models import lora
from unime_jax.models.vlm import EmbeddingModel, Execution

MERGED = "merged_chunks"  # scope of the loop over several chunks at once
# Embeddings of the rows of a chunk, given trainable and frozen parameters.
Encode = Callable[[paths.Parameters, paths.Parameters, Inputs], Float[Array, "R D"]]
# Frozen parameters with all else that stays the same for all chunks of a step, given both parts.
Constants = Callable[[paths.Parameters, paths.Parameters], paths.Parameters]


SHARED = 8  # models of a process of which what is traced and compiled is kept for others
# D by the shapes of the parameters.
_WIDTHS: weakref.WeakKeyDictionary[Encode, dict[tuple[tuple[int, ...], ...], int]] = (
    weakref.WeakKeyDictionary()
)


# A function for all models of one graph: what is jitted of it, in `encode.program` or a step, is
# then traced and compiled once, however often such a model is opened.
@functools.lru_cache(maxsize=SHARED)
def make_encode(graph: nnx.GraphDef, execution: Execution) -> Encode:
    """Embeddings of one chunk as a function of trainable and frozen parameters.

    The frozen ones may come from `with_column_norms`. It is the same function for equal arguments.
    """

    def encode(
        trainable: paths.Parameters, frozen: paths.Parameters, inputs: Inputs
    ) -> Float[Array, "R D"]:
        return model_of(graph, trainable, frozen)(inputs, execution)

    return encode


def model_of(
    graph: nnx.GraphDef, trainable: paths.Parameters, frozen: paths.Parameters
) -> EmbeddingModel:
    """The model of both parts; the frozen one may come from `with_column_norms`."""
    norms = {path: leaf for path, leaf in frozen.items() if path.endswith(f".{lora.NORM}")}
    own = {path: leaf for path, leaf in frozen.items() if path not in norms}
    model: Any = paths.merge(graph, trainable, own)
    lora.set_column_norms(model, norms)
    return model


@functools.lru_cache(maxsize=SHARED)
def with_column_norms(graph: nnx.GraphDef) -> Constants:
    """The frozen parameters with DoRA's column norms, as a function of both parts."""

    def constants(trainable: paths.Parameters, frozen: paths.Parameters) -> paths.Parameters:
        return frozen | lora.column_norms(paths.merge(graph, trainable, frozen))

    return constants


def encode_live_chunks(
    encode: Encode,
    trainable: paths.Parameters,
    frozen: paths.Parameters,
    inputs: Inputs,
    live: Int[Array, ""],
    *,
    first: int = 0,
    merged: int = 1,
) -> Float[Array, "C R D"]:
    """Embeddings of the chunks from `first` up to `live`, in order; zeros for the others.

    Of rows of several texts they are those of all texts that the rows have room for.

    The number of live chunks is a runtime value: a half-full group costs half, and nothing
    recompiles. There is no gradient through it, see `training.gradcache`.

    Args:
      merged: chunks that are encoded at once, which gathers and reads weights as many times less
        often; what is left of the live ones goes one by one.
    """
    width = _width(encode, trainable, frozen, inputs)
    chunks, embedded = inputs.embedded_shape
    rows = inputs.live.shape[1]
    merged = min(merged, chunks - first)
    out = jnp.zeros((chunks, embedded, width), jnp.float32)
    begin: int | Int[Array, ""] = first

    def body(i: Int[Array, ""], out: Float[Array, "C R D"]) -> Float[Array, "C R D"]:
        return out.at[i].set(encode(trainable, frozen, chunk_at(inputs, i)))

    def merged_body(i: Int[Array, ""], out: Float[Array, "C R D"]) -> Float[Array, "C R D"]:
        start = first + i * merged
        several = encode(trainable, frozen, _merged_at(inputs, start, merged))
        of_rows = several.reshape(rows, merged, embedded // rows, width)
        apart = jnp.moveaxis(of_rows, 1, 0).reshape(merged, embedded, width)
        return jax.lax.dynamic_update_slice_in_dim(out, apart, start, 0)

    if merged > 1:
        times = jnp.maximum(live - first, 0) // merged
        with jax.named_scope(MERGED):  # by which a plan knows how often the loop runs
            out = jax.lax.fori_loop(0, times, merged_body, out)
        begin = first + times * merged
    return jax.lax.fori_loop(begin, live, body, out)


def _width(
    encode: Encode, trainable: paths.Parameters, frozen: paths.Parameters, inputs: Inputs
) -> int:
    """D. It follows from the parameters, so the model is traced for it once, not for each group."""
    known = _WIDTHS.setdefault(encode, {})
    shapes = tuple(x.shape for x in jax.tree.leaves((trainable, frozen)))
    if shapes not in known:
        known[shapes] = jax.eval_shape(encode, trainable, frozen, chunk_at(inputs, 0)).shape[-1]
    return known[shapes]


def count_live_chunks(live: Bool[Array, "C R"]) -> Int[Array, ""]:
    """Number of chunks up to the last that holds a live row."""
    used = jnp.any(live, axis=1)
    return jnp.max(jnp.where(used, jnp.arange(1, used.size + 1), 0))


def chunk_at(inputs: Inputs, i: int | Int[Array, ""]) -> Inputs:
    """Chunk i of a group: `Inputs` without the C axis."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), inputs)


def _merged_at(inputs: Inputs, start: Int[Array, ""], count: int) -> Inputs:
    """`count` chunks of a group as one, each row beside the same row of the others.

    In this order each device keeps to its own rows.
    """

    def merge(x: jax.Array) -> jax.Array:
        chunks = jnp.moveaxis(jax.lax.dynamic_slice_in_dim(x, start, count), 0, 1)
        return chunks.reshape(-1, *x.shape[2:])

    return jax.tree.map(merge, inputs)


def cause_of_nonfinite(parameters: Sequence[paths.Parameters]) -> str:
    """The cause of embeddings that are not finite, in a sentence; a call of all processes."""
    named = [(path, x) for part in parameters for path, x in part.items()]
    floats = [(path, x) for path, x in named if jnp.issubdtype(x.dtype, jnp.floating)]
    bad = sorted(path for path, x in floats if not jnp.isfinite(x).all())
    if bad:
        return (
            f"{len(bad)} of {len(named)} parameters hold NaN or infinity, such as {bad[0]}; the"
            " checkpoint is damaged, or was written by a run that diverged"
        )
    return (
        "all weights are finite, so numbers overflow on the way, at this item or at most; try"
        ' float32 (dtype="float32", config.execution.dtype), and look at the item'
    )
