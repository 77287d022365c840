"""The bounds see faults that are small, and no rounding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.float32 import (
    ROUNDING,
    assert_same_gradients,
    assert_same_rows,
)
from tests.models.oracle import EXACT, make_next_pair, packed, picture, torch_hidden
from tests.tables import for_each
from unime_jax.batch import Item, Media


def test_the_bound_is_that_of_a_sum_in_any_order_of_what_is_finite(case):
    # The bound is of the row's norm.
    row = np.array([3.0, 4.0])
    assert_same_rows(row + [5.0 * ROUNDING * 0.99, 0.0], row)
    assert_same_rows([row * 1000, row], [row * 1000 + 5000 * ROUNDING * 0.7, row])
    with pytest.raises(AssertionError, match="1 of 2 rows .* row \\(1,\\)"):
        assert_same_rows([row * 1000, row + 5.0 * ROUNDING], [row * 1000, row])

    # A dot product in any order is within the bound. The longest sums of the tests' models, in
    # float32 as they come and in float64.
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 2048)).astype(np.float32), random.normal(size=(2048, 64))
    exact = x.astype(np.float64) @ y
    y = y.astype(np.float32)
    one_by_one = np.zeros((2, 64), np.float32)
    for i in range(2048):
        one_by_one += x[:, i : i + 1] * y[i]
    assert_same_rows(one_by_one, exact)
    with pytest.raises(AssertionError):
        assert_same_rows(x.astype(jnp.bfloat16).astype(np.float64) @ y, exact)

    # Gradients of nothing are measured by the others.
    theirs = {"kernel": np.array([3.0, 4.0]), "bias": np.array([1e-12])}
    assert_same_gradients(theirs | {"bias": np.array([5e-3 * ROUNDING])}, theirs)
    for path, value in (("bias", [6e-3 * ROUNDING]), ("kernel", [3.0, 4.0 + 6.0 * ROUNDING])):
        for wrong in (value, np.multiply(value, np.nan)):
            with pytest.raises(AssertionError, match=path):
                assert_same_gradients(theirs | {path: np.asarray(wrong)}, theirs)

    # What is not finite is off
    for value in [np.nan, np.inf]:
        row = np.array([3.0, 4.0])
        with pytest.raises(AssertionError, match="rows differ"):
            assert_same_rows(np.array([value, 4.0]), row)

    # The model itself is within the bound
    pair, inputs, expected = case
    assert_same_rows(states(pair, inputs, len(expected)), expected)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A LLaVA-NeXT, an item of image and text as one row, and transformers' states of it."""
    pair = make_next_pair(tmp_path_factory.mktemp("pair") / "folder", "llama")
    item = Item(
        "<|image_1|>\nWhat is left of the circle?", (Media("a.png", picture(56, 28, seed=0)),)
    )
    inputs, _ = packed(pair, [item], 80, 4)
    return pair, inputs, torch_hidden(pair, item)


def states(pair, inputs, length):
    return np.asarray(jax.jit(lambda i: pair.model.hidden_states(i, EXACT))(inputs))[0, :length]


MUTANTS = {
    "rotary base, 1 % off": lambda m: _set(m.language_model, "rope_theta", 1.01),
    "epsilon of the final norm, ten times": lambda m: _set(m.language_model.norm, "epsilon", 10),
    "a tower's layer norm, 0.1 % off": lambda m: _scale(m.vision_tower.pre_layrnorm.weight),
    "one projection, 0.1 % off": lambda m: _scale(m.multi_modal_projector.linear_1.kernel),
    "values of attention, 0.1 % off": lambda m: _scale(
        m.language_model.layers.self_attn.v_proj.kernel
    ),
}


def _set(module, name, factor):
    setattr(module, name, getattr(module, name) * factor)


def _scale(variable):
    variable[...] = variable[...] * 1.001


@for_each("mutant", MUTANTS)
def test_a_small_fault_of_an_operation_is_seen(case, mutant):
    pair, inputs, expected = case
    copy = jax.tree.map(jnp.copy, pair.model)
    pair = dataclasses.replace(pair, model=copy)
    MUTANTS[mutant](pair.model)
    with pytest.raises(AssertionError, match="rows differ by more than rounding"):
        assert_same_rows(states(pair, inputs, len(expected)), expected)


def test_one_token_in_another_place_is_seen(case):
    pair, inputs, expected = case
    moved = dataclasses.replace(inputs, positions=inputs.positions.at[:, 3:].add(1))
    with pytest.raises(AssertionError, match="rows differ by more than rounding"):
        assert_same_rows(states(pair, moved, len(expected)), expected)
