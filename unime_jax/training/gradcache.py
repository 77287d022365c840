"""GradCache (Gao et al. 2021): embeddings of all rows with the memory of one chunk, differentiable.

The loss sees the whole batch, whatever the mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unime_jax import paths
from unime_jax.batch import Inputs
from unime_jax.models.forward import Encode, chunk_at, count_live_chunks, encode_live_chunks

KEPT = "kept_chunks"  # scope of the loops over chunks whose activations are kept
Pullback = Callable[[Float[Array, "R D"]], tuple[paths.Parameters]]


def encode_in_chunks(
    encode: Encode,
    trainable: paths.Parameters,
    frozen: paths.Parameters,
    inputs: Inputs,
    *,
    recompute: bool,
    kept: int = 0,
    merged: int = 1,
) -> Float[Array, "C R D"]:
    """Embeddings of all rows of a group, with a gradient for `trainable` alone.

    Rows of chunks without a live row have zeros. The backward sums the gradient chunk by chunk.

    Args:
      recompute: the forward keeps embeddings alone, and the backward encodes each chunk again;
        else the forward keeps activations, in room for those of all chunks.
      kept: chunks from the first on of which the forward keeps activations nevertheless.
      merged: of the chunks that the backward encodes again, so many at once in the forward, see
        `forward.encode_live_chunks`.
    """
    chunks = inputs.live.shape[0]
    kept = min(kept, chunks) if recompute else chunks

    @jax.custom_vjp
    def encode_all(
        trainable: paths.Parameters, frozen: paths.Parameters, inputs: Inputs, live: Int[Array, ""]
    ) -> Float[Array, "C R D"]:
        return encode_live_chunks(encode, trainable, frozen, inputs, live, merged=merged)

    def forward(trainable, frozen, inputs, live):
        parts, activations = [], []
        if kept:
            with jax.named_scope(KEPT):
                out, activations = keep(trainable, frozen, inputs, jnp.minimum(live, kept))
            parts.append(out)
        if kept < chunks:
            others = encode_live_chunks(
                encode, trainable, frozen, inputs, live, first=kept, merged=merged
            )
            parts.append(others[kept:])
        out = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        return out, (trainable, frozen, inputs, live, activations)

    def backward(residual, cotangent):
        trainable, frozen, inputs, live, activations = residual
        total = jax.tree.map(jnp.zeros_like, trainable)
        if kept:  # first, so that the second pass has their room
            pullback = pullback_of(trainable, frozen, activations)
            with jax.named_scope(KEPT):
                total = _gradient(pullback, cotangent, total, 0, jnp.minimum(live, kept))
        if kept < chunks:

            def again(i):
                return _encode_chunk(encode, trainable, frozen, inputs, i)[1]

            total = _gradient(again, cotangent, total, kept, live)
        return total, None, None, None

    keep, pullback_of = _keeping_activations(encode, kept)
    encode_all.defvjp(forward, backward)
    return encode_all(trainable, frozen, inputs, count_live_chunks(inputs.live))


def _keeping_activations(encode: Encode, kept: int) -> tuple[Callable, Callable]:
    """The first `kept` chunks' embeddings with the arrays of their pullbacks, and the pullbacks.

    A pullback holds activations of its chunk and parameters, which all chunks have in common.
    Activations get room for `kept` chunks. Parameters, known by the identity of their tracers as in
    `jax.vjp` itself, are put back in the backward, not stored for each chunk.

    Each more declarative way has a cost that this one does not have:

      * Autodiff of a `scan` over all chunks, with a `cond` for dead ones, stores parameters chunk
        by chunk: what a branch keeps comes out of the `cond`, and so depends on the chunk.
      * `jax.checkpoint` around that `cond`, with a policy that saves everything, stores no
        parameters, but overrules the layers' own `jax.checkpoint` (`Execution.remat`): with "full"
        all activations of a layer are kept, not its input alone. Dead chunks also add zeros to the
        whole gradient.
      * The pullback's `args_res`, with all parameters as arguments of `jax.vjp`, separates them,
        but then activations are kept, and gradients traced, for frozen parameters, too.
      * `jax.closure_convert` and `jax.linearize` give one list of arrays, which does not tell
        activations from parameters.
    """
    structure: list[Any] = []  # tree of a pullback, and which of its leaves are which parameters

    def forward(trainable, frozen, inputs, live):
        number = {id(x): n for n, x in enumerate(jax.tree.leaves((trainable, frozen)))}

        def keep(i):
            out, pullback = _encode_chunk(encode, trainable, frozen, inputs, i)
            leaves, tree = jax.tree.flatten(pullback)
            numbers = [number.get(id(leaf)) for leaf in leaves]
            structure[:] = tree, numbers
            return out, [leaf for leaf, n in zip(leaves, numbers) if n is None]

        def body(i, kept):
            return jax.tree.map(lambda chunks, chunk: chunks.at[i].set(chunk), kept, keep(i))

        shapes = jax.eval_shape(keep, 0)
        room = jax.tree.map(lambda x: jnp.zeros((kept, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, live, body, room)

    def pullback_of(trainable, frozen, activations):
        parameters = jax.tree.leaves((trainable, frozen))
        tree, numbers = structure

        def pullback(i):
            own = iter(activations)
            leaves = [next(own)[i] if n is None else parameters[n] for n in numbers]
            return jax.tree.unflatten(tree, leaves)

        return pullback

    return forward, pullback_of


def _encode_chunk(
    encode: Encode,
    trainable: paths.Parameters,
    frozen: paths.Parameters,
    inputs: Inputs,
    i: Int[Array, ""],
) -> tuple[Float[Array, "R D"], Pullback]:
    """Embeddings of a chunk, and the function from their cotangent to that of `trainable`."""
    return jax.vjp(lambda p: encode(p, frozen, chunk_at(inputs, i)), trainable)


def _gradient(
    pullback: Callable[[Int[Array, ""]], Pullback],
    cotangent: Float[Array, "C R D"],
    total: paths.Parameters,
    first: int,
    live: Int[Array, ""],
) -> paths.Parameters:
    """`total` with the gradients of the chunks from `first` up to `live`."""

    def body(i: Int[Array, ""], total: paths.Parameters) -> paths.Parameters:
        return jax.tree.map(jnp.add, total, pullback(i)(cotangent[i])[0])

    return jax.lax.fori_loop(first, live, body, total)
