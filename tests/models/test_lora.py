"""Adapters: nothing changes at the start, gradients are PEFT's, merging is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tables import for_each
from unime_jax import paths
from unime_jax.models import lora, scan
from unime_jax.models.decoder import Decoder, DecoderConfig
from unime_jax.models.layers import Linear

CONFIG = DecoderConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    rope_axes=(0, 0),
    qkv_bias=True,
    hidden_act="silu",
)
EVERYWHERE = ((".*", True),)


def adapters(*, dora, rank=2, targets=EVERYWHERE):
    return lora.LoraConfig(rank=rank, alpha=3.0 * rank, dora=dora, targets=targets)


def decoder():
    """Of random weights; drawing them here compiles nothing."""
    graph, shapes = paths.split(jax.eval_shape(lambda: Decoder(CONFIG, key=jax.random.key(0))))
    rng = np.random.default_rng(0)
    weights = {p: rng.normal(size=x.shape).astype(np.float32) for p, x in shapes.items()}
    return paths.merge(graph, {p: jax.device_put(0.4 * x) for p, x in weights.items()})


@jax.jit
def run(model):
    x = np.random.default_rng(1).standard_normal((2, 5, 8), np.float32)
    positions = jnp.arange(5)[None, :, None].repeat(2, axis=0)
    return model(x, positions, remat="none", implementation="xla")


def random_like(leaf, seed):
    return np.random.default_rng(seed).normal(size=leaf.shape).astype(leaf.dtype)


@functools.partial(jax.jit, static_argnums=1)
def merged(model, dtype):
    lora.merge(model, dtype)
    return model


def shaken(model):
    """The model with adapters as after some training."""
    graph, parameters = paths.split(model)
    for i, (path, leaf) in enumerate(parameters.items()):
        if path.endswith("lora_b"):
            parameters[path] = jax.device_put(random_like(leaf, i) * 0.2)
        if path.endswith("lora_magnitude"):
            parameters[path] = jax.device_put(np.asarray(leaf) * (1 + 0.3 * random_like(leaf, i)))
    return paths.merge(graph, parameters)


def with_adapters(**kwargs):
    return adapted(decoder(), adapters(**kwargs))


@functools.partial(jax.jit, static_argnums=1)
def adapted(model, config):
    lora.add(model, config, key=jax.random.key(2))
    return model


@for_each("dora", [False, True])
def test_adapters_change_nothing_at_the_start(dora):
    np.testing.assert_allclose(run(with_adapters(dora=dora)), run(decoder()), atol=1e-5)


@for_each("dora", [False, True])
def test_merged_kernels_compute_what_side_paths_did(dora):
    """On stacked layers, too, each with its own adapter."""
    model = shaken(with_adapters(dora=dora))
    trained = run(model)
    assert np.abs(np.asarray(trained) - np.asarray(run(decoder()))).max() > 0.1
    model = merged(model, jnp.float32)
    _, parameters = paths.split(model)
    assert parameters.keys() == paths.split(decoder())[1].keys()
    np.testing.assert_allclose(run(model), trained, atol=2e-5)


def test_merging_into_float32_keeps_updates_that_bfloat16_would_round_away():
    graph, parameters = paths.split(shaken(with_adapters(dora=True)))
    half = {
        p: jax.device_put(np.asarray(x).astype(jnp.bfloat16)) if p.endswith("kernel") else x
        for p, x in parameters.items()
    }
    kernels = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = merged(paths.merge(graph, half), dtype)
        kernels[dtype] = np.asarray(model.layers.mlp.up_proj.kernel[...])
        assert kernels[dtype].dtype == dtype
    exact, rounded = kernels[jnp.float32], kernels[jnp.bfloat16].astype(np.float32)
    assert np.abs(exact - rounded).max() > 0
    np.testing.assert_allclose(exact, rounded, rtol=1e-2)


@for_each("dora", [False, True])
def test_shapes_and_dtypes(dora):
    _, parameters = paths.split(with_adapters(dora=dora, rank=2))
    assert parameters["layers.self_attn.k_proj.lora_a"].shape == (3, 8, 2)
    assert parameters["layers.self_attn.k_proj.lora_b"].shape == (3, 2, 4)
    assert ("layers.self_attn.k_proj.lora_magnitude" in parameters) == dora
    added = {p: np.asarray(x) for p, x in parameters.items() if ".lora_" in p}
    assert len(added) == 7 * (3 if dora else 2)
    assert all(x.dtype == jnp.float32 for x in added.values())
    for path, leaf in added.items():
        assert np.any(leaf) == (not path.endswith("lora_b"))
    # A's layers differ, with PEFT's gaussian scale of 1 / rank.
    a = np.concatenate([np.ravel(x) for p, x in added.items() if p.endswith("lora_a")])
    assert abs(a.std() - 1 / 2) < 0.05 and np.unique(a).size == a.size


def peft_dora(x, weight, bias, a, b, magnitude, scale):
    """peft/tuners/lora/dora.py in its layout: weight [out, in], A [R, in], B [out, R], float64.

    Returns the output, and its gradients given the output's: the norm is detached.
    """
    norm = np.linalg.norm(weight + scale * b @ a, axis=1)
    factor = magnitude / norm
    base = x @ weight.T
    low = (x @ a.T) @ b.T
    y = base + bias + (factor - 1) * base + factor * low * scale

    def gradients(g):
        gf = g * factor * scale
        return {
            "lora_a": b.T @ gf.T @ x,
            "lora_b": gf.T @ (x @ a.T),
            "lora_magnitude": (g * (base + low * scale) / norm).sum(axis=0),
            "x": (g * factor) @ (weight + scale * b @ a),
        }

    return y, gradients


def test_dora_is_pefts_formula_and_gradient():
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(5, 6)), rng.normal(size=(5, 4))
    weight, bias = rng.normal(size=(4, 6)), rng.normal(size=4)
    a, b, magnitude = rng.normal(size=(3, 6)), rng.normal(size=(4, 3)), rng.normal(size=4)
    linear = Linear(6, 4, bias=True, key=jax.random.key(0))
    lora.add(linear, lora.LoraConfig(3, 1.5, True, EVERYWHERE), key=jax.random.key(1))
    graph, parameters = paths.split(linear)
    assert set(parameters) == {"kernel", "bias", "lora_a", "lora_b", "lora_magnitude"}
    ours = {
        "kernel": weight.T,
        "bias": bias,
        "lora_a": a.T,
        "lora_b": b.T,
        "lora_magnitude": magnitude,
    }
    ours = {path: leaf.astype(np.float32) for path, leaf in ours.items()}

    @jax.jit
    def run(p, x, g):
        y, pullback = jax.vjp(lambda p, x: paths.merge(graph, p)(x), p, x)
        return y, *pullback(g)

    y, found, found_x = run(ours, *(part.astype(np.float32) for part in (x, g)))
    expected, gradients = peft_dora(x, weight, bias, a, b, magnitude, 1.5 / 3)
    expected_gradient = gradients(g)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found_x, expected_gradient["x"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["lora_a"].T, expected_gradient["lora_a"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["lora_b"].T, expected_gradient["lora_b"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found["lora_magnitude"], expected_gradient["lora_magnitude"], rtol=1e-4, atol=1e-5
    )

    # A dead column stays finite. Its norm is zero: zero output, finite gradients, before and
    # after merging.
    linear = Linear(6, 4, bias=False, key=jax.random.key(0))
    linear.kernel[...] = linear.kernel[...].at[:, 1].set(0)
    lora.add(linear, adapters(dora=True), key=jax.random.key(1))
    graph, parameters = paths.split(linear)
    x = jnp.ones((3, 6))
    call = jax.jit(lambda layer: layer(x))
    assert np.all(np.asarray(call(linear))[:, 1] == 0)
    run = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(paths.merge(graph, p)(x)))))
    gradient = run(parameters)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient.values())
    lora.merge(linear, jnp.float32)
    y = np.asarray(call(linear))
    assert np.all(y[:, 1] == 0) and np.all(np.isfinite(y))


@for_each("dora", [False, True])
def test_no_weight_gradient_is_computed_for_frozen_kernels(dora):
    """No product of the gradient's program has a kernel's shape."""

    def make():
        linear = Linear(64, 48, bias=True, key=jax.random.key(0))
        lora.add(linear, adapters(dora=dora), key=jax.random.key(1))
        return linear

    graph, parameters = paths.split(jax.eval_shape(make))
    trainable = {p: x for p, x in parameters.items() if "lora" in p}
    frozen = {p: x for p, x in parameters.items() if "lora" not in p}
    x = np.ones((5, 64), np.float32)

    def loss(trainable, frozen):
        return jnp.sum(paths.merge(graph, trainable, frozen)(x) ** 2)

    gradient = jax.eval_shape(jax.grad(loss), trainable, frozen)
    assert gradient.keys() == trainable.keys()

    def products(argnums):
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=argnums))(trainable, frozen)
        dots = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
        return {tuple(sorted(e.outvars[0].aval.shape)) for e in dots}

    assert (48, 64) not in products(0)
    assert (48, 64) in products((0, 1))


def test_rules_choose_layers():
    # Rules choose layers.
    targets = ((r"layers\.self_attn\.(q|v)_proj", True), (".*", False))
    _, parameters = paths.split(with_adapters(dora=False, targets=targets))
    chosen = {path.rsplit(".", 1)[0] for path in parameters if "lora" in path}
    assert chosen == {"layers.self_attn.q_proj", "layers.self_attn.v_proj"}

    # Rules that choose nothing or leave a layer out are errors.
    with pytest.raises(ValueError, match="lora.targets chooses no layer"):
        with_adapters(dora=False, targets=((".*", False),))
    with pytest.raises(ValueError, match=r"lora\.targets(.|\n)*down_proj(.|\n)*k_proj"):
        with_adapters(dora=False, targets=((r".*\.q_proj", True),))

    # An adapter does not depend on the others.
    one = ((r".*\.up_proj", True), (".*", False))
    _, alone = paths.split(with_adapters(dora=True, targets=one))
    _, among = paths.split(with_adapters(dora=True))
    for path in alone:
        np.testing.assert_array_equal(alone[path], among[path])
    first, second = (among[f"layers.mlp.{p}_proj.lora_a"] for p in ("up", "gate"))
    assert np.all(first != second)

    # Magnitude of stacked layers is each layers own
    def make(key):
        return Linear(6, 4, bias=False, key=key)

    stack = scan.stack(make, 3, jax.random.key(0))
    assert isinstance(stack, nnx.Module)
    lora.add(stack, adapters(dora=True), key=jax.random.key(1))
    expected = np.linalg.norm(np.asarray(stack.kernel[...]), axis=1)
    np.testing.assert_allclose(stack.lora_magnitude[...], expected, rtol=1e-6)
