"""Kernels as int8 codes: how exact, what layers and adapters compute with them, what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.tables import for_each
from unime_jax import paths
from unime_jax.models import layers, lora, quantization, scan
from unime_jax.models.layers import Linear

TINY = quantization.SMALLEST
KERNELS = arrays(
    np.float32,
    (6, 4),
    elements=st.one_of(
        st.floats(-10, 10, width=32),
        st.sampled_from([0.0, 1e-37, 1e-30, 3e38, 0.5, 1.5, 2.5, 127.0, -127.0]),
    ),
)


def normal(shape, seed=0):
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@jax.jit
def called(layer, x):
    return layer(x)


@settings(max_examples=60, deadline=None)
@given(KERNELS)
def test_every_element_is_within_half_a_scale(kernel):
    codes, scale = map(np.asarray, quantization.quantize(jax.device_put(kernel)))
    assert codes.dtype == np.int8 and scale.dtype == np.float32
    assert codes.shape == kernel.shape and scale.shape == kernel.shape[1:]
    error = np.abs(codes.astype(np.float64) * scale - kernel.astype(np.float64))
    largest = np.abs(kernel).max(axis=0)
    assert np.all(error <= scale.astype(np.float64) * 0.5 * (1 + 1e-4) + TINY)
    # All codes are used, and none but those that have a sign to change.
    assert np.all(np.abs(codes).max(axis=0) == np.where(largest < TINY, 0, 127))


@settings(max_examples=60, deadline=None)
@given(KERNELS)
def test_the_host_and_the_device_give_the_same_codes(kernel):
    codes, scale = quantization.quantize(jax.device_put(kernel))
    own_codes, own_scale = quantization.quantize_rows(kernel.T)
    np.testing.assert_array_equal(scale, own_scale)
    np.testing.assert_array_equal(codes, own_codes.T)


@settings(max_examples=30, deadline=None)
@given(KERNELS)
def test_what_is_quantised_again_stays(kernel):
    """An export of an int8 model, opened in int8, has the same codes where nothing was trained."""
    codes, scale = quantization.quantize(jax.device_put(kernel))
    again, second = quantization.quantize(quantization.dequantize(codes, scale))
    np.testing.assert_array_equal(codes, again)
    np.testing.assert_allclose(scale, second, rtol=1e-6)


def test_values_at_the_edges():
    # Channels of zeros stay zero.
    kernel = np.array(normal((5, 3)))
    kernel[:, 1] = 0
    codes, scale = map(np.asarray, jax.jit(quantization.quantize)(kernel))
    assert scale[1] == 0 and not np.any(codes[:, 1])
    assert np.all(np.isfinite(jax.jit(quantization.dequantize)(codes, scale)))

    # Squares are summed exactly. Beyond what float32 can count: 20,000 rows of 127 squared.
    codes = np.full((20_001, 1), 127, np.int8)
    found = jax.jit(quantization.square_sum)(codes, np.ones(1, np.float32))
    assert found[0] == np.float32(20_001 * 127**2)


@for_each("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    kernel = np.array(normal((5, 3)))
    kernel[2, 1] = bad
    for codes, scale in (
        quantization.quantize(jax.device_put(kernel)),
        (lambda codes, scale: (codes.T, scale))(*quantization.quantize_rows(kernel.T)),
    ):
        y = quantization.matmul(normal((4, 5)), jax.device_put(codes), jax.device_put(scale))
        assert not np.any(np.isfinite(y[:, 1]))
        assert np.all(np.isfinite(y[:, [0, 2]]))


def adapted(*, dora, trained=True, bias=True, kernel=None):
    """A linear layer in int8 with an adapter, and the float layer of the same values."""
    linear = Linear(24, 16, bias=bias, key=jax.random.key(0))
    if kernel is not None:
        linear.kernel = nnx.Param(kernel)
    if bias:
        linear.bias = nnx.Param(normal(16, 5))
    layers.quantize(linear, {".kernel"})
    config = lora.LoraConfig(rank=3, alpha=6.0, dora=dora, targets=((".*", True),))
    lora.add(linear, config, key=jax.random.key(1))
    if trained:
        linear.lora_b = nnx.Param(normal((3, 16), 2) * 0.1)
        if dora:
            linear.lora_magnitude = nnx.Param(linear.lora_magnitude[...] * (1 + 0.1 * normal(16)))
    graph, parameters = paths.split(linear)
    dense = Linear(24, 16, bias=bias, key=jax.random.key(0))
    lora.add(dense, config, key=jax.random.key(1))
    own = {path: leaf for path, leaf in parameters.items() if path != "kernel_scale"}
    own["kernel"] = quantization.dequantize(parameters["kernel"], parameters["kernel_scale"])
    return linear, paths.merge(paths.split(dense)[0], own)


def close(found, expected, tolerance=1e-6):
    scale = np.abs(np.asarray(expected, np.float32)).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@for_each("dora", [False, True])
def test_a_layer_is_the_dense_layer_of_its_values_and_starts_as_without_adapter(dora):
    # What a layer computes is what the dense layer of its values does.
    linear, dense = adapted(dora=dora)
    assert linear.kernel[...].dtype == jnp.int8
    x = normal((2, 7, 24), 3)
    expected = called(dense, x)
    close(called(linear, x), expected)
    half = called(linear, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    close(half.astype(jnp.float32), expected, 2e-2)

    # An adapter starts as identity to the last bit: DoRA's magnitude is the norm that it is divided
    # by.
    linear, _ = adapted(dora=dora, trained=False)
    plain = Linear(24, 16, bias=True, key=jax.random.key(0))
    plain.bias = linear.bias
    layers.quantize(plain, {".kernel"})
    x = normal((9, 24), 3)
    np.testing.assert_array_equal(linear(x), plain(x))

    # Merging gives what the layer computes.
    linear, dense = adapted(dora=dora)
    x = normal((9, 24), 3)
    expected = called(linear, x)
    lora.merge(dense, jnp.float32)
    lora.merge(linear, jnp.float32)
    assert paths.split(linear)[1].keys() == {"kernel", "bias"}
    close(called(linear, x), expected, 2e-6)
    np.testing.assert_array_equal(linear.kernel[...], dense.kernel[...])


@for_each("dora", [False, True])
def test_gradients_are_those_of_the_dense_layer(dora):
    """Of the input and of the adapter."""
    found = []
    for linear in adapted(dora=dora):
        graph, parameters = paths.split(linear)
        trained = {p: x for p, x in parameters.items() if p.startswith("lora_")}
        frozen = {p: x for p, x in parameters.items() if p not in trained}

        def loss(trained, x, graph=graph, frozen=frozen):
            return jnp.sum(jnp.sin(paths.merge(graph, trained, frozen)(x)))

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
        found.append(gradient(trained, normal((6, 24), 3)))
    jax.tree.map(close, *found)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_kernels_that_are_named_dead_or_merged_without_an_adapter():
    # Only those that are named are quantised.
    class Two(nnx.Module):
        def __init__(self):
            self.one = Linear(3, 4, bias=True, key=jax.random.key(0))
            self.two = Linear(3, 4, bias=True, key=jax.random.key(1))

    model = Two()
    layers.quantize(model, {"two.kernel"})
    _, parameters = paths.split(model)
    assert parameters["one.kernel"].dtype == jnp.float32
    assert parameters["two.kernel"].dtype == jnp.int8 and "two.kernel_scale" in parameters
    assert "one.kernel_scale" not in parameters

    # A dead channel stays dead.
    linear, _ = adapted(
        dora=True, trained=False, bias=False, kernel=normal((24, 16)).at[:, 4].set(0)
    )
    y = np.asarray(called(linear, normal((9, 24), 3)))
    assert np.all(np.isfinite(y)) and not np.any(y[:, 4]) and np.all(np.any(y[:, 5:], axis=0))

    # Merging without an adapter is dequantising, of a stack, too.
    stack = scan.stack(lambda key: Linear(6, 5, bias=False, key=key), 3, jax.random.key(0))
    exact = stack.kernel[...]
    layers.quantize(stack, {".kernel"})
    assert stack.kernel_scale[...].shape == (3, 5)
    expected = quantization.dequantize(*quantization.quantize(exact))
    lora.merge(stack, jnp.bfloat16)
    assert stack.kernel_scale is None
    np.testing.assert_array_equal(stack.kernel[...], expected.astype(jnp.bfloat16))


@for_each("remat", ["none", "dots", "full"])
def test_no_float_copy_of_the_kernels_is_kept_for_the_gradient(remat):
    """Whatever is recomputed; only the codes wait for the backward pass."""

    def make(key):
        linear = Linear(32, 32, bias=False, key=key)
        config = lora.LoraConfig(rank=2, alpha=2.0, dora=False, targets=((".*", True),))
        lora.add(linear, config, key=key)
        return linear

    def stacked(quantised):
        stack = scan.stack(make, 4, jax.random.key(0))
        if quantised:
            layers.quantize(stack, {".kernel"})
        return stack

    def residuals(quantised):
        graph, parameters = paths.split(jax.eval_shape(lambda: stacked(quantised)))
        trained = {p: x for p, x in parameters.items() if p.startswith("lora_")}
        frozen = {p: x for p, x in parameters.items() if p not in trained}

        def pullback(trained, frozen, x):
            def run(trained, x):
                model = paths.merge(graph, trained, frozen)
                return scan.run(model, lambda layer, x: layer(x), x, remat=remat)

            return jax.tree.leaves(jax.vjp(run, trained, x)[1])

        x = jax.ShapeDtypeStruct((2, 32), jnp.bfloat16)
        leaves = jax.eval_shape(pullback, trained, frozen, x)
        return [leaf for leaf in leaves if leaf.shape[-2:] == (32, 32)]

    kept = residuals(quantised=True)
    assert kept and all(leaf.dtype == jnp.int8 for leaf in kept), [leaf.dtype for leaf in kept]
    if remat == "none":  # the test would notice
        assert any(leaf.dtype == jnp.bfloat16 for leaf in residuals(quantised=False))
    if remat == "dots":  # sees the product of codes as one, whose output the tanh needs
        codes, scale = quantization.quantize(normal((3, 5)))

        def tanh(x):
            return jnp.tanh(quantization.matmul(x, codes, scale))

        kept = jax.checkpoint(tanh, policy=scan._POLICIES["dots"])
        _, pullback = jax.vjp(kept, normal((7, 3)))
        assert (7, 5) in [leaf.shape for leaf in jax.tree.leaves(pullback)]
