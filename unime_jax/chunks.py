"""Embeddings of all rows with the memory of one chunk, as one differentiable function.

This is GradCache (Gao et al. 2021): the loss sees the whole batch, whatever the mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unime_jax import paths
from unime_jax.batch import Inputs

Encode = Callable[[paths.Parameters, paths.Parameters, Inputs], Float[Array, "R D"]]


def encode_in_chunks(
    encode: Encode,
    trainable: paths.Parameters,
    frozen: paths.Parameters,
    inputs: Inputs,
    *,
    recompute: bool,
) -> Float[Array, "C R D"]:
    """Embeddings of all rows of a group; those of dead chunks are zero.

    The number of live chunks is a runtime value: a half-full group costs half, and nothing
    recompiles. With `recompute` the forward keeps only embeddings and the backward encodes each
    chunk again while it accumulates parameter gradients; without it, activations are kept, in room
    for all chunks.
    """
    live = live_chunks(inputs.live)
    chunks, rows = inputs.live.shape
    width = jax.eval_shape(encode, trainable, frozen, chunk_at(inputs, 0)).shape[-1]

    @jax.custom_vjp
    def encode_all(
        trainable: paths.Parameters, frozen: paths.Parameters, inputs: Inputs, live: Int[Array, ""]
    ) -> Float[Array, "C R D"]:
        def body(i: Int[Array, ""], out: Float[Array, "C R D"]) -> Float[Array, "C R D"]:
            return out.at[i].set(encode(trainable, frozen, chunk_at(inputs, i)))

        return jax.lax.fori_loop(0, live, body, jnp.zeros((chunks, rows, width), jnp.float32))

    def forward(trainable, frozen, inputs, live):
        return encode_all(trainable, frozen, inputs, live), (trainable, frozen, inputs, live)

    def backward(residual, cotangent):
        trainable, frozen, inputs, live = residual

        def pull(i):
            _, pullback = jax.vjp(lambda p: encode(p, frozen, chunk_at(inputs, i)), trainable)
            return pullback(cotangent[i])[0]

        return _sum_of_live(pull, trainable, live), None, None, None

    static: list[Any] = []  # what `keep` finds out of a pullback, beside its arrays

    def forward_and_keep(trainable, frozen, inputs, live):
        parameters = {id(x): n for n, x in enumerate(jax.tree.leaves((trainable, frozen)))}

        def keep(i):
            """A chunk's embeddings, and the arrays of its pullback that are no parameters."""
            out, pullback = jax.vjp(lambda p: encode(p, frozen, chunk_at(inputs, i)), trainable)
            leaves, tree = jax.tree.flatten(pullback)
            numbers = [parameters.get(id(leaf)) for leaf in leaves]
            static[:] = tree, numbers
            return out, [leaf for leaf, number in zip(leaves, numbers) if number is None]

        def body(i, found):
            return jax.tree.map(lambda all, one: all.at[i].set(one), found, keep(i))

        room = jax.tree.map(
            lambda x: jnp.zeros((chunks, *x.shape), x.dtype), jax.eval_shape(keep, 0)
        )
        out, kept = jax.lax.fori_loop(0, live, body, room)
        return out, (trainable, frozen, live, kept)

    def backward_of_kept(residual, cotangent):
        trainable, frozen, live, kept = residual
        parameters = jax.tree.leaves((trainable, frozen))
        tree, numbers = static

        def pull(i):
            own = iter(kept)
            leaves = [next(own)[i] if n is None else parameters[n] for n in numbers]
            return jax.tree.unflatten(tree, leaves)(cotangent[i])[0]

        return _sum_of_live(pull, trainable, live), None, None, None

    if recompute:
        encode_all.defvjp(forward, backward)
    else:
        encode_all.defvjp(forward_and_keep, backward_of_kept)
    return encode_all(trainable, frozen, inputs, live)


def _sum_of_live(
    gradient: Callable[[Int[Array, ""]], paths.Parameters],
    like: paths.Parameters,
    live: Int[Array, ""],
) -> paths.Parameters:
    def body(i: Int[Array, ""], total: paths.Parameters) -> paths.Parameters:
        return jax.tree.map(jnp.add, total, gradient(i))

    return jax.lax.fori_loop(0, live, body, jax.tree.map(jnp.zeros_like, like))


def live_chunks(live: Bool[Array, "C R"]) -> Int[Array, ""]:
    """Number of chunks up to the last that holds a live row."""
    used = jnp.any(live, axis=1)
    return jnp.max(jnp.where(used, jnp.arange(1, used.size + 1), 0))


def chunk_at(inputs: Inputs, i: int | Int[Array, ""]) -> Inputs:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), inputs)
