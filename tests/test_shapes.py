"""The checks of shapes and dtypes that hold while the tests run."""

import dataclasses
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from tests import shapes
from unime_jax import paths
from unime_jax.batch import Inputs
from unime_jax.models.pooling import last_token


def inputs() -> Inputs:
    """Two chunks of four rows of seven tokens."""
    return Inputs(
        tokens=np.zeros((2, 4, 7), np.int32),
        length=np.zeros((2, 4), np.int32),
        live=np.zeros((2, 4), bool),
        positions=np.zeros((2, 4, 7, 1), np.int32),
        slot=np.zeros((2, 4, 7, 1), np.int32),
        slot_weight=None,
        patches=None,
        patch_position=None,
    )


def test_a_wrong_shape_or_dtype_raises_in_calls_and_batches():
    # A call with a wrong shape raises.
    last_token(jnp.zeros((2, 3, 5)), jnp.ones(2, jnp.int32))
    with pytest.raises(jaxtyping.TypeCheckError, match="'length'"):
        last_token(jnp.zeros((2, 3, 5)), jnp.ones(3, jnp.int32))

    # A call with a wrong dtype raises.
    with pytest.raises(jaxtyping.TypeCheckError, match="'length'"):
        last_token(jnp.zeros((2, 3, 5)), jnp.ones(2))

    # Shapes are checked while a program is traced.
    with pytest.raises(jaxtyping.TypeCheckError, match="'length'"):
        jax.eval_shape(last_token, jnp.zeros((2, 3, 5)), jnp.ones(3, jnp.int32))

    # The fields of a batch agree.
    good = inputs()
    with pytest.raises(jaxtyping.TypeCheckError, match="'length'"):
        dataclasses.replace(good, length=np.zeros((2, 5), np.int32))
    with pytest.raises(jaxtyping.TypeCheckError, match="'tokens'"):
        dataclasses.replace(good, tokens=good.tokens.astype(np.int64))

    # A chunk of rows is a tree of the same form.
    chunk = jax.tree.map(lambda x: x[0], inputs())
    assert chunk.length.shape == (4,)
    assert pickle.loads(pickle.dumps(chunk)).length.shape == (4,)

    # What is no array and numpy are not checked
    # Checks can be left out.
    with shapes.unchecked():
        last_token(jnp.zeros((2, 3, 5)), jnp.ones((2, 1), jnp.int32)[:, 0].astype(jnp.int8))
    with pytest.raises(jaxtyping.TypeCheckError):
        last_token(jnp.zeros((2, 3)), jnp.ones(2, jnp.int32))

    # Functions without arrays stay as they are.
    assert hasattr(last_token, "__wrapped__")
    assert not hasattr(paths.assign, "__wrapped__")

    # NumPy stands for JAX.
    states = np.arange(30, dtype=np.float32).reshape(2, 3, 5)
    found = last_token(states, np.ones(2, np.int32))
    np.testing.assert_array_equal(found, last_token(jnp.asarray(states), jnp.ones(2, jnp.int32)))

    # Trees of other things than arrays are not checked
    for leaf in [object(), 1, None, jax.sharding.PartitionSpec("data")]:
        assert jax.tree.map(lambda x, leaf=leaf: leaf, inputs()).tokens is leaf

    # Users do not pay for the checks
    program = (
        "import sys, unime_jax.models.pooling as p; "
        "assert 'beartype' not in sys.modules; assert not hasattr(p.last_token, '__wrapped__')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
