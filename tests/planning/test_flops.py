"""FLOPs in jaxprs against closed forms, and against XLA where it counts right: without loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unime_jax.planning import flops


def count(function, *arguments, known=None):
    jaxpr = flops.live(jax.make_jaxpr(function)(*arguments))
    return flops.executed(jaxpr, known or [None] * len(jaxpr.in_avals))


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_products_and_convolutions():
    assert count(jnp.matmul, shaped(3, 5), shaped(5, 7)) == 2 * 3 * 5 * 7
    batched = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)  # noqa: E731
    assert count(batched, shaped(4, 3, 5), shaped(4, 5, 7)) == 4 * 2 * 3 * 5 * 7
    convolve = lambda x, w: jax.lax.conv(x, w, (2, 2), "VALID")  # noqa: E731
    assert count(convolve, shaped(1, 3, 8, 8), shaped(6, 3, 2, 2)) == 2 * 6 * 16 * 3 * 4
    assert count(lambda x: x + 1, shaped(100)) == 0


def test_what_no_result_needs_is_not_counted():
    def function(a, b):
        jnp.matmul(a, b)
        return a + 1

    assert count(function, shaped(5, 5), shaped(5, 5)) == 0


@pytest.mark.parametrize("remat", [False, True])
def test_a_scan_and_its_gradient(remat):
    """Forward, input's gradient and weights' gradient are a product each, remat is one more."""

    def loss(weights, x):
        def body(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(jax.checkpoint(body) if remat else body, x, weights)[0].sum()

    one = 2 * 4 * 8 * 8
    assert count(loss, shaped(6, 8, 8), shaped(4, 8)) == 6 * one
    assert count(jax.grad(loss), shaped(6, 8, 8), shaped(4, 8)) == 6 * one * (4 if remat else 3)


def test_xla_counts_the_same_without_loops():
    def loss(weights, x):
        for w in weights:
            x = jnp.maximum(x @ w, 0)
        return (x * x).sum()

    weights = [shaped(256, 256)] * 3
    ours = count(jax.grad(loss), weights, shaped(128, 256))
    compiled = jax.jit(jax.grad(loss)).lower(weights, shaped(128, 256)).compile()
    assert ours == pytest.approx(compiled.cost_analysis()["flops"], rel=0.02)


def chunked(length, x, w):
    """As `gradcache.encode_in_chunks`: as many chunks as there are live ones."""
    used = jnp.any(length > 0, axis=1)
    live = jnp.max(jnp.where(used, jnp.arange(1, used.size + 1), 0))
    return jax.lax.fori_loop(0, live, lambda i, y: y.at[i].set(x[i] @ w), jnp.zeros_like(x))


@pytest.mark.parametrize("live", [0, 1, 3])
def test_loops_end_where_the_known_lengths_say(live):
    length = np.zeros((4, 2), np.int32)
    length.reshape(-1)[: 2 * live] = 9
    arguments = (shaped(4, 2, dtype=jnp.int32), shaped(4, 2, 8), shaped(8, 8))
    assert count(chunked, *arguments, known=[length, None, None]) == live * 2 * 2 * 8 * 8


def test_a_loop_of_unknown_end_is_refused():
    with pytest.raises(ValueError, match="cannot be counted"):
        count(chunked, shaped(4, 2, dtype=jnp.int32), shaped(4, 2, 8), shaped(8, 8))


def test_branches_by_what_is_known():
    def kept(length, x, w):
        """As chunks whose activations are kept."""

        def body(_, i):
            return None, jax.lax.cond(i < length, lambda: x @ w, lambda: x)

        return jax.lax.scan(body, None, jnp.arange(5))[1]

    arguments = (shaped(dtype=jnp.int32), shaped(2, 8), shaped(8, 8))
    one = 2 * 2 * 8 * 8
    assert count(kept, *arguments, known=[np.int32(3), None, None]) == 3 * one
    assert count(kept, *arguments) == 5 * one  # the dearest branch, where nothing is known

    def loss(length, x, w):
        return kept(length, x, w).sum()

    gradient = jax.grad(loss, argnums=2)
    assert count(gradient, *arguments, known=[np.int32(3), None, None]) == 3 * one
