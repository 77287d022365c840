"""DeepStack: features of image tokens, added to the decoder's states after its first layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.models.noise import drawn
from tests.models.oracle import EXACT
from tests.tables import for_each
from unime_jax import paths, sharding
from unime_jax.batch import Inputs
from unime_jax.models import scan
from unime_jax.models.decoder import Decoder, DecoderConfig
from unime_jax.models.vlm import VisionFeatures, Vlm, merge_image_tokens

ROWS, TOKENS, WIDTH, LAYERS = 2, 5, 8, 3
CONFIG = DecoderConfig(
    vocab_size=11,
    hidden_size=WIDTH,
    intermediate_size=12,
    num_layers=LAYERS,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    rope_axes=(0, 0),
    qkv_bias=True,
    hidden_act="silu",
)


class Toy(Vlm):
    """Image features are bytes times a matrix each: one table, and some levels."""

    def __init__(self, levels: int):
        self.language_model = Decoder(CONFIG, key=jax.random.key(0))
        self.levels = levels

    def vision_features(self, patches, position, execution):
        rows, tiles, count, values = patches.shape
        x = patches.reshape(rows, tiles * count, values).astype(execution.dtype) / 255
        maps = np.random.default_rng(1).standard_normal((1 + self.levels, values, WIDTH))
        table, *deepstack = jnp.einsum("rgv,kvd->krgd", x, maps.astype(execution.dtype))
        return VisionFeatures(table, tuple(deepstack))


def toy(levels: int) -> Toy:
    """One of noise."""
    graph, shapes = paths.split(jax.eval_shape(lambda: Toy(levels)))
    return paths.merge(graph, drawn(shapes))


SLOT = np.array([[-1, 2, 0, 1, -1], [3, -1, -1, -1, -1]])


def inputs():
    rng = np.random.default_rng(0)
    return Inputs(
        tokens=jax.device_put(rng.integers(0, 11, (ROWS, TOKENS))),
        length=jnp.array([TOKENS, 3]),
        live=jnp.ones(ROWS, bool),
        positions=jnp.arange(TOKENS)[None, :, None].repeat(ROWS, axis=0),
        slot=jax.device_put(SLOT[..., None]),
        slot_weight=None,
        patches=jax.device_put(rng.integers(0, 256, (ROWS, 1, 4, 6), np.uint8)),
        patch_position=None,
    )


def layer_by_layer(model, inputs):
    """The same in plain Python: one layer after the other, features put in token by token."""
    decoder = model.language_model
    x = decoder.embed_tokens(inputs.tokens, EXACT.dtype)
    vision = model.vision_features(inputs.patches, None, EXACT)
    x = merge_image_tokens(x, vision.table, inputs.slot, None)
    for number in range(LAYERS):
        one = dataclasses.replace(CONFIG, num_layers=1)
        alone = jax.eval_shape(lambda one=one: Decoder(one, key=jax.random.key(0)))
        alone.layers = jax.tree.map(lambda leaf, n=number: leaf[n : n + 1], decoder.layers)
        alone.norm = lambda x: x
        x = alone(x, inputs.positions, remat="none", implementation="xla")
        if number < len(vision.deepstack):
            row, token = np.nonzero(SLOT >= 0)
            x = x.at[row, token].add(vision.deepstack[number][row, SLOT[row, token]])
    return decoder.norm(x)


def values(parameters, graph, remat, reference=False):
    model = paths.merge(graph, parameters)
    if reference:
        states = layer_by_layer(model, inputs())
    else:
        states = model.hidden_states(inputs(), dataclasses.replace(EXACT, remat=remat))
    return jnp.sum(states * np.random.default_rng(2).standard_normal(states.shape)), states


@for_each("levels, remat, differentiated", [(1, "none", False), (LAYERS, "dots", True)])
def test_levels_are_added_after_the_first_layers(levels, remat, differentiated):
    graph, parameters = paths.split(toy(levels))

    def run(reference: bool):
        def value(parameters):
            return values(parameters, graph, remat, reference)

        if not differentiated:
            return jax.jit(value)(parameters), {}
        return jax.jit(jax.value_and_grad(value, has_aux=True))(parameters)

    (_, theirs), gradient = run(reference=True)
    (_, ours), own = run(reference=False)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert own.keys() == gradient.keys()
    for path, leaf in gradient.items():
        np.testing.assert_allclose(own[path], leaf, atol=1e-4, err_msg=path)


def test_levels_have_a_gradient_and_are_kept_once():
    """Of a loop over layers: no array of the levels for every layer is kept for the backward."""
    rng = np.random.default_rng(3)
    model = toy(0)
    levels = rng.standard_normal((2, ROWS, TOKENS, WIDTH), np.float32)
    x, positions = jnp.ones((ROWS, TOKENS, WIDTH)), inputs().positions

    @functools.partial(jax.jit, static_argnums=1)
    def value(levels, remat):
        decoder = model.language_model
        y = decoder(x, positions, remat=remat, implementation="xla", deepstack=list(levels))
        return jnp.sum(y * jnp.arange(y.size).reshape(y.shape))

    step = 1e-2 * rng.standard_normal(levels.shape, np.float32)
    slope = (value(levels + step, "none") - value(levels - step, "none")) / 2  # of any remat
    for remat in ("none", "dots", "full"):
        program = jax.jit(jax.grad(lambda v, r=remat: value(v, r))).trace(levels)
        found = np.asarray(program.lower().compile()(levels))
        np.testing.assert_allclose(np.sum(found * step), slope, rtol=2e-2)
        jaxpr = str(program.jaxpr)
        assert f"f32[2,{ROWS},{TOKENS},{WIDTH}]" in jaxpr
        assert f"f32[{LAYERS},2,{ROWS},{TOKENS}" not in jaxpr

    # States after some layers, as of a tower: those of a plain loop, and kept once.
    kernels = rng.standard_normal((7, WIDTH, WIDTH), np.float32) / 3
    x = rng.standard_normal((ROWS, TOKENS, WIDTH), np.float32)

    def looped(kernels):
        every = [x]
        for kernel in kernels:
            every.append(jnp.tanh(every[-1] @ kernel))
        return jnp.stack([every[2], every[3], every[6], every[7]])

    def weighted(states):
        return jnp.sum(states * jnp.arange(states.size).reshape(states.shape)), states

    plain = jax.jit(jax.value_and_grad(lambda k: weighted(looped(k)), has_aux=True))
    (_, expected), slope = plain(kernels)
    for remat in ("none", "full"):

        def levelled(kernels, remat=remat):
            states = scan.run_levels(
                kernels, lambda k, x: jnp.tanh(x @ k), x, remat=remat, levels=(1, 2, 5)
            )
            return weighted(states)

        gradient = jax.jit(jax.value_and_grad(levelled, has_aux=True)).trace(kernels)
        (_, states), found = gradient.lower().compile()(kernels)
        np.testing.assert_allclose(states, expected, atol=1e-6)
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-2)
        jaxpr = str(gradient.jaxpr)
        assert f"f32[4,{ROWS},{TOKENS},{WIDTH}]" in jaxpr and f"f32[7,4,{ROWS}" not in jaxpr
    for levels in ((2, 1), (7,)):
        with pytest.raises(ValueError, match="must ascend and lie within 0 to 6"):
            scan.run_levels(kernels, lambda k, x: x, x, remat="none", levels=levels)


@pytest.mark.slow
def test_on_a_mesh_the_states_are_the_same():
    graph, parameters = paths.split(toy(3))
    mesh = sharding.make_mesh(1, 2, 1, devices=jax.devices()[:2])
    rows = jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, P(sharding.ROWS))), inputs()
    )
    run = jax.jit(lambda p, i: paths.merge(graph, p).hidden_states(i, EXACT))
    with jax.set_mesh(mesh):
        spread = run(parameters, rows)
    np.testing.assert_allclose(spread, run(parameters, inputs()), atol=2e-5)


def test_no_levels_are_no_branch_and_too_many_are_refused():
    # Without levels the program has no branch.
    model = toy(0)
    jaxpr = jax.make_jaxpr(lambda i: model.hidden_states(i, EXACT))(inputs())
    assert "cond" not in str(jaxpr)
    with_levels = toy(1)
    assert "cond" in str(jax.make_jaxpr(lambda i: with_levels.hidden_states(i, EXACT))(inputs()))

    # More levels than layers are refused.
    with pytest.raises(ValueError, match="5 arrays are to be added after layers, and there are 3"):
        scan.run(
            toy(0).language_model.layers,
            lambda layer, x: x,
            jnp.zeros((1, 2)),
            remat="none",
            added=[jnp.zeros((1, 2))] * 5,
        )
