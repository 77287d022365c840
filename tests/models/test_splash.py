"""The TPU's attention kernel in interpret mode against dense attention, on one device and a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tables import for_each
from unime_jax import sharding
from unime_jax.models import attention, splash


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel as a program for CPUs."""
    monkeypatch.setattr(splash, "attend", functools.partial(splash.attend, interpret=True))


def arrays(rows, tokens, heads, kv_heads, head, seed=0):
    """Queries, keys, values and a cotangent."""
    keys = jax.random.split(jax.random.key(seed), 4)
    sizes = (heads, kv_heads, kv_heads, heads)
    return [jax.random.normal(key, (rows, tokens, n, head)) for key, n in zip(keys, sizes)]


def value_and_gradients(inputs, cotangent, real, **options):
    """Outputs of real tokens, and gradients of a product with them."""

    def run(q, k, v):
        y = jnp.where(real, attention.attend(q, k, v, **options), 0)
        return (y * cotangent).sum(), y

    (_, y), gradients = jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))(*inputs)
    return [y, *gradients]


def check(inputs, cotangent, real, **options):
    kernel = value_and_gradients(inputs, cotangent, real, **options, implementation="splash")
    dense = value_and_gradients(inputs, cotangent, real, **options, implementation="xla")
    for ours, theirs in zip(kernel, dense, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-4)


# (rows, tokens, heads, key heads, size of a head): of one block, padded or not, and of several.
SHAPES = [(2, 130, 4, 2, 24), (1, 1100, 2, 1, 16), (2, 128, 2, 2, 72)]


@for_each("shape", SHAPES)
def test_values_and_gradients_are_those_of_dense_attention(interpreted, shape):
    *inputs, cotangent = arrays(*shape)
    rows, tokens = shape[:2]
    everything = jnp.ones((rows, tokens, 1, 1), bool)
    for causal in (True, False):
        check(inputs, cotangent, everything, causal=causal)
    length = jnp.asarray([tokens - 40, 3][:rows])
    real = (jnp.arange(tokens) < length[:, None])[:, :, None, None]
    check(inputs, cotangent, real, causal=False, length=length)
    # Images of a row, and patches of none at its end, whose number is -1.
    segment = jnp.where(jnp.arange(tokens) < tokens - 5, jnp.arange(tokens) // 50, -1)
    segment = jnp.broadcast_to(segment, (rows, tokens))
    check(inputs, cotangent, everything, causal=False, segment=segment)
