"""InfoNCE in tiles: the dense values and gradients, on any mesh, without a [B, M] array."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from unime_jax import sharding
from unime_jax.losses import contrastive, ring

PAIRS, COLUMNS, WIDTH = 8, 24, 6


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def labels(rng):
    """Positives, repeated targets, padding and labelled negatives."""
    return dict(
        positive=rng.integers(0, COLUMNS, PAIRS).astype(np.int32),
        target_id=rng.integers(0, 15, COLUMNS).astype(np.int32),
        candidate_mask=rng.random(COLUMNS) < 0.8,
        explicit_negatives=rng.integers(-1, COLUMNS, (PAIRS, 2)).astype(np.int32),
    )


def run(queries, candidates, arrays, options):
    def loss(queries, candidates):
        return contrastive(queries, candidates, **arrays, **options)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(queries, candidates)


def assert_same(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0)


OPTIONS = strategies.fixed_dictionaries(
    dict(
        temperature=strategies.sampled_from([0.02, 0.5]),
        hard_negatives=strategies.sampled_from([None, 1, 4, 40]),
        false_negative_margin=strategies.sampled_from([None, -0.3, 0.1, -3.0]),  # -3: drops all
        hardness=strategies.sampled_from([0.0, 9.0]),
        symmetric=strategies.booleans(),
    )
)


@settings(max_examples=12)
@given(
    options=OPTIONS,
    column_block=strategies.sampled_from([1, 5, 24, 100]),
    seed=strategies.integers(0),
)
def test_tiles_change_nothing(options, column_block, seed):
    rng = np.random.default_rng(seed)
    queries, candidates, arrays = unit(rng, PAIRS, WIDTH), unit(rng, COLUMNS, WIDTH), labels(rng)
    whole = run(queries, candidates, arrays, options)
    assert np.isfinite(whole[0][0]) and all(np.isfinite(g).all() for g in whole[1])
    assert_same(run(queries, candidates, arrays, options | {"column_block": column_block}), whole)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 1), (2, 2, 2), (1, 8, 1)])
@pytest.mark.parametrize("hard_negatives", [None, 4])
def test_meshes_change_nothing(shape, hard_negatives):
    options = dict(hard_negatives=hard_negatives, false_negative_margin=0.1, hardness=2.0)
    options |= dict(temperature=0.05, symmetric=True)
    rng = np.random.default_rng(0)
    queries, candidates, arrays = unit(rng, PAIRS, WIDTH), unit(rng, COLUMNS, WIDTH), labels(rng)
    whole = run(queries, candidates, arrays, options)
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P(sharding.ROWS))
        queries, candidates = jax.device_put((queries, candidates), rows)
        assert_same(run(queries, candidates, arrays, options | {"column_block": 2}), whole)


@pytest.mark.parametrize("hard_negatives", [None, 8])
def test_no_device_holds_all_of_anything(hard_negatives):
    """16384 pairs over 8 devices: neither the scores nor all candidates are anywhere."""
    pairs, width, column_block = 16384, 64, 512
    mesh = sharding.make_mesh(2, 4, 1)
    rows = NamedSharding(mesh, P(sharding.ROWS))
    x = jax.ShapeDtypeStruct((pairs, width), jnp.float32, sharding=rows)

    def loss(queries, candidates):
        options = dict(hard_negatives=hard_negatives, false_negative_margin=0.1, symmetric=True)
        return contrastive(queries, candidates, column_block=column_block, **options)[0]

    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, x).compile()
    text = compiled.as_text()
    kinds = "all-gather|all-to-all|all-reduce|reduce-scatter"
    shapes = re.findall(rf"= \(?\w+\[([\d,]*)\]\S* (?:{kinds})(?:-start)?\(", text)
    assert {len(shape.split(",")) for shape in shapes} <= {1}  # ids and sums, no vectors
    assert "collective-permute" in text
    scores = pairs // 8 * column_block * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 12 * scores < pairs // 8 * pairs * 4


def test_rows_are_picked_from_all_devices():
    mesh = sharding.make_mesh(2, 2, 2)
    rng = np.random.default_rng(0)
    table, index = unit(rng, 20, 3), rng.integers(0, 20, 8).astype(np.int32)
    with jax.set_mesh(mesh):
        picked, pullback = jax.vjp(lambda t: ring.blockwise(ring.pick, index, t), table)
        (gradient,) = pullback(jnp.ones_like(picked))
    np.testing.assert_array_equal(picked, table[index])
    np.testing.assert_array_equal(gradient[:, 0], np.bincount(index, minlength=20))


def test_what_cannot_be_meant():
    x = np.eye(6, dtype=np.float32)
    with pytest.raises(ValueError, match="column_block is 0"):
        contrastive(x, x, column_block=0)
    with jax.set_mesh(sharding.make_mesh(4, 2, 1)), pytest.raises(ValueError, match="8 row shards"):
        contrastive(x, x, column_block=2)
