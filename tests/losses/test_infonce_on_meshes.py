"""contrastive over several devices: the same values, and where scores and candidates lie."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.losses.loops import (
    MORE_OPTIONS,
    OPTIONS,
    assert_reference,
    compiled,
    random_arguments,
    reference,
    unit,
)
from tests.tables import for_each
from unime_jax import sharding
from unime_jax.losses import contrastive, ring


def on_mesh(mesh, options, inputs):
    """Results over the mesh, and the text of the program."""
    placed = jax.device_put(inputs, NamedSharding(mesh, P(sharding.ROWS)))
    with jax.set_mesh(mesh):
        program = compiled(**options).lower(*placed).compile()
        return program(*placed), program.as_text()


def test_a_mesh_changes_nothing_and_scores_stay_split_by_rows():
    """Embeddings travel, scores do not: a device has its 2 of 16 rows, never 5 of 40 columns."""
    inputs = random_arguments(np.random.default_rng(5), 16, 40, width=8, ids=30)
    mesh = sharding.make_mesh(2, 4, 1)
    for name in ("hardness", "everything"):
        expected = reference(*inputs[:3], **inputs[3], **OPTIONS[name])
        assert expected.closest > 1e-5
        results, text = on_mesh(mesh, OPTIONS[name], inputs)
        assert_reference(results, expected, OPTIONS[name], name)
        assert "f32[2,40]" in text
        assert "f32[16,5]" not in text
        assert "f32[16,40]" not in text  # nor does top_k gather them
        assert "f32[16,16]" not in text

    # A symmetric loss without ids of targets, whose scores XLA would split by columns.
    rng = np.random.default_rng(7)
    inputs = unit(rng, 16, 8), unit(rng, 16, 8), None, {}
    _, text = on_mesh(sharding.make_mesh(2, 4, 1), OPTIONS["hardness"], inputs)
    assert "f32[2,16]" in text
    assert not re.search(r"f32\[16,(2|16)\]", text)


# The hardest of them are chosen below, and with everything else in training/test_step.py.
def test_blocks_that_pass_round_the_devices_change_nothing():
    inputs = random_arguments(np.random.default_rng(5), 16, 40, width=8, ids=30)
    expected = reference(*inputs[:3], **inputs[3], **OPTIONS["hardness"])
    options = OPTIONS["hardness"] | {"column_block": 3}
    results, _ = on_mesh(sharding.make_mesh(2, 4, 1), options, inputs)
    assert_reference(results, expected, OPTIONS["hardness"])


# Blocks of which no hardest are chosen pass round the devices above, and have terms on one device.
@for_each("block, hardest", [(None, 5), (3, 5), (3, None)], quick=[(None, 5), (3, 5)])
def test_masks_and_terms_are_those_of_one_device(block, hardest):
    inputs = random_arguments(np.random.default_rng(6), 16, 40, width=8, ids=60, facts=True)
    mesh = sharding.make_mesh(2, 2, 2)
    options = dict(MORE_OPTIONS["hardest_of_all"], pool=4)
    del options["temperature"]
    options["hard_negatives"] = hardest
    expected = reference(*inputs[:3], **inputs[3], **options)
    assert expected.closest > 1e-5
    results, text = on_mesh(mesh, options | {"column_block": block}, inputs)
    assert_reference(results, expected, options)
    assert not re.search(r"(f32|u8|pred)\[16,(16|40|96)\]", text)


def test_no_device_holds_all_of_anything():
    """16384 pairs over 8 devices: neither the scores nor all candidates are anywhere."""
    pairs, width, column_block = 16384, 64, 512
    mesh = sharding.make_mesh(2, 4, 1)
    rows = NamedSharding(mesh, P(sharding.ROWS))
    x = jax.ShapeDtypeStruct((pairs, width), jnp.float32, sharding=rows)
    for hard_negatives in (None, 8):
        options = dict(hard_negatives=hard_negatives, false_negative_margin=0.1, symmetric=True)
        options |= dict(column_block=column_block)

        def loss(queries, candidates, options=options):
            return contrastive(queries, candidates, **options)[0]

        with jax.set_mesh(mesh):
            program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, x).compile()
        text = program.as_text()
        kinds = "all-gather|all-to-all|all-reduce|reduce-scatter"
        shapes = re.findall(rf"= \(?\w+\[([\d,]*)\]\S* (?:{kinds})(?:-start)?\(", text)
        assert {len(shape.split(",")) for shape in shapes} <= {1}  # ids and sums, no vectors
        assert "collective-permute" in text
        scores = pairs // 8 * column_block * 4
        assert program.memory_analysis().temp_size_in_bytes < 2 * scores < pairs // 8 * pairs * 4


def test_rows_are_picked_from_all_devices_and_must_be_shared_out_evenly():
    mesh = sharding.make_mesh(2, 2, 2)
    rng = np.random.default_rng(0)
    table, index = unit(rng, 20, 3), rng.integers(0, 20, 8).astype(np.int32)

    @jax.jit
    def pick(table):
        picked, pullback = jax.vjp(lambda t: ring.blockwise(ring.pick, index, t), table)
        return picked, pullback(jnp.ones_like(picked))[0]

    with jax.set_mesh(mesh):
        picked, gradient = pick(table)
    np.testing.assert_array_equal(picked, table[index])
    np.testing.assert_array_equal(gradient[:, 0], np.bincount(index, minlength=20))

    # Rows that cannot be shared out are refused.
    x = np.eye(6, dtype=np.float32)
    with jax.set_mesh(sharding.make_mesh(4, 2, 1)):
        with pytest.raises(ValueError, match=r"\[6\] rows .* 8 row shards"):
            contrastive(x, x, column_block=2)
        with pytest.raises(ValueError, match=r"\[4, 8\] rows .* 8 row shards"):
            ring.beside([np.zeros((2, 8, 3)), np.zeros((2, 4, 3))])
