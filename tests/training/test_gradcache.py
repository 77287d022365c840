"""Chunked encoding: the gradient of all rows at once, for live chunks only, in little memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.tiny_batch import WIDTH, assert_close, encode, group, parameters
from unime_jax.batch import Batch
from unime_jax.training import objectives
from unime_jax.training.gradcache import encode_in_chunks


def test_chunked_gradient_equals_unchunked():
    """With activations of all chunks, some or none kept, and several chunks at once or not.

    However many rows are live: nothing recompiles.
    """
    trainable, frozen = parameters()
    weight = np.random.default_rng(5).standard_normal((32, WIDTH), np.float32)

    @jax.jit
    def unchunked(p, inputs, weight):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)
        return jax.value_and_grad(lambda p: jnp.sum(encode(p, frozen, flat) * weight))(p)

    # By three of four at once, the fourth goes alone; more than there are is all there are.
    cases = ((4, True, 0, 3), (4, False, 0, 1), (4, True, 1, 2), (1, True, 0, 1), (1, True, 2, 2))
    for chunks, recompute, kept, merged in cases:

        def chunked(p, inputs, weight, recompute=recompute, kept=kept, merged=merged):
            out = encode_in_chunks(
                encode, p, frozen, inputs, recompute=recompute, kept=kept, merged=merged
            )
            return jnp.sum(out.reshape(-1, WIDTH) * weight)

        run = jax.jit(jax.value_and_grad(chunked))
        for live in (0, 1, 9, 24, 32):
            inputs = group(chunks, 32 // chunks, live, seed=live)
            seen = jnp.where(jnp.arange(32)[:, None] < live, weight, 0)
            what = f"{chunks} chunks, {live} live rows, {recompute}, {kept} kept, {merged} at once"
            assert_close(
                run(trainable, inputs, seen), unchunked(trainable, inputs, seen), what=what
            )
        assert run._cache_size() == 1


def test_what_is_kept_of_chunks():
    # What is kept of chunks are no parameters. Activations alone: nothing that the backward loop
    # reads is a parameter for every chunk.
    trainable, frozen = parameters()
    inputs = group(4, 8, 32, seed=0)

    def value(p):
        return jnp.sum(encode_in_chunks(encode, p, frozen, inputs, recompute=False))

    loops = [e for e in jax.make_jaxpr(jax.grad(value))(trainable).eqns if "while" in str(e)]
    shapes = {x.aval.shape for loop in loops for x in loop.outvars}
    assert (4, 8, WIDTH) in shapes  # the embeddings, or what tanh needs
    assert not shapes & {(4, *x.shape) for x in jax.tree.leaves((trainable, frozen))}

    # What is kept of chunks follows the layers' remat. With "full" the input of every layer is
    # kept and nothing from inside it.
    inner, depth = 5, 3  # the width inside a layer
    wide = {"up": jnp.ones((depth, WIDTH, inner)), "down": jnp.ones((depth, inner, WIDTH))}
    inputs = group(4, 8, 32, seed=0)
    for remat in ("none", "full"):

        def layers(trainable, frozen, inputs, remat=remat):
            def layer(x, weights):
                return x + jnp.tanh(x @ weights["up"]) @ weights["down"], None

            if remat == "full":
                layer = jax.checkpoint(layer, prevent_cse=False)
            x = frozen["table"][inputs.tokens].mean(axis=1)
            return jax.lax.scan(layer, x, trainable)[0]

        def value(p, layers=layers):
            frozen = {"table": jax.device_put(parameters()[0]["table"])}
            return jnp.sum(encode_in_chunks(layers, p, frozen, inputs, recompute=False))

        forward, _ = [e for e in jax.make_jaxpr(jax.grad(value))(wide).eqns if "while" in str(e)]
        shapes = {x.aval.shape for x in forward.outvars}
        assert (4, depth, 8, WIDTH) in shapes, remat
        assert ((4, depth, 8, inner) in shapes) == (remat == "none"), remat

    # Chunks without a live row are not encoded. They leave zeros. Liveness is said, not read
    # off the tokens: images' rows have none.
    trainable, frozen = parameters()
    none = jnp.zeros((4, 8), jnp.int32)
    for recompute in (True, False):
        run = jax.jit(
            lambda i, r=recompute: encode_in_chunks(encode, trainable, frozen, i, recompute=r)
        )
        for live, without_tokens in ((0, False), (3, False), (24, False), (11, True), (8, True)):
            inputs = jax.device_put(group(4, 8, live, seed=1))
            if without_tokens:
                inputs = dataclasses.replace(inputs, length=none)
            out, used = run(inputs), -(-live // 8)
            assert not np.any(out[used:]), live
            np.testing.assert_allclose(np.linalg.norm(out[:used], axis=-1), 1, rtol=1e-5)
        holes = dataclasses.replace(inputs, live=jnp.arange(32).reshape(4, 8) == 17)
        out = run(holes)  # a later chunk has the only live row: those before it are encoded
        assert np.all(np.any(out[:3], axis=-1)) and not np.any(out[3])
        assert run._cache_size() == 1
    nobody = jnp.zeros(0, jnp.int32)
    empty = Batch((inputs,), nobody, nobody, jnp.zeros((0, 0), jnp.int32), (), nobody)
    np.testing.assert_allclose(objectives.mean_cosine([run(inputs)], empty), 1, rtol=1e-5)
