"""A batch of pairs over two groups, and an encoder of word vectors that any chunk goes through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from unime_jax.batch import Batch, Inputs
from unime_jax.training import objectives

WIDTH, VOCABULARY = 12, 50
LOSS = objectives.Contrastive(
    objective="contrastive",
    temperature=0.05,
    hard_negatives=4,
    false_negative_margin=0.2,
    hardness=3.0,
    symmetric=True,
    column_block=None,
    mask_same_target=True,
)


def encode(trainable, frozen, inputs: Inputs):
    """A stand-in encoder that any chunk of tokens goes through: mean of vectors, then a matrix."""
    real = jnp.arange(inputs.tokens.shape[1]) < inputs.length[:, None]
    x = jnp.where(real[..., None], jnp.asarray(trainable["table"])[inputs.tokens], 0)
    x = jnp.tanh(x.sum(axis=1) / jnp.maximum(inputs.length, 1)[:, None] @ trainable["matrix"])
    x = x + frozen["bias"]
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def parameters(seed=0):
    """Trainable and frozen ones, NumPy's, in dictionaries of the caller's own."""
    table, matrix, bias = _draw(seed)
    return {"table": table, "matrix": matrix}, {"bias": bias}


@functools.cache
def _draw(seed):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((WIDTH, WIDTH), np.float32)
    table = rng.standard_normal((VOCABULARY, WIDTH), np.float32)
    return table, matrix, np.full(WIDTH, 0.1, np.float32)


def group(chunks, rows, live, seed, tokens=7):
    """`live` rows in the first places of [chunks, rows]."""
    rng = np.random.default_rng(seed)
    length = np.zeros(chunks * rows, np.int32)
    length[:live] = rng.integers(1, tokens + 1, live)
    ids = rng.integers(0, VOCABULARY, (chunks * rows, tokens)).astype(np.int32)
    return regroup(ids, length, chunks)


def regroup(ids, length, chunks):
    grid = (chunks, length.size // chunks)
    tokens = ids.shape[-1]
    return Inputs(
        tokens=ids.reshape(*grid, tokens),
        length=length.reshape(grid),
        live=length.reshape(grid) > 0,
        positions=np.zeros((*grid, tokens, 1), np.int32),
        slot=np.full((*grid, tokens, 1), -1, np.int32),
        slot_weight=None,
        patches=None,
        patch_position=None,
    )


def make_batch() -> Batch:
    """16 pairs over two groups; a duplicate target, a ragged explicit negative, dead chunks."""
    first, second = group(2, 16, 24, 0), group(4, 8, 16, 1)
    query = np.concatenate([np.arange(0, 12), 32 + np.arange(0, 4)]).astype(np.int32)
    positive = np.concatenate([np.arange(12, 24), 32 + np.arange(4, 8)]).astype(np.int32)
    positive[5] = positive[4]
    negative = np.full((16, 2), -1, np.int32)
    negative[2, 0], negative[3] = 40, (41, 42)
    target_id = np.zeros(64, np.uint32)
    for row in {*positive.tolist(), 40, 41, 42}:
        target_id[row] = 1000 + row
    return Batch(
        groups=(first, second),
        query=query,
        positive=positive,
        negative=negative,
        target_id=(target_id[:32].reshape(2, 16), target_id[32:].reshape(4, 8)),
        source=np.zeros(16, np.int32),
    )


def assert_close(ours, theirs, tolerance=1e-5, what=""):
    """Equality but for the order of float32 sums, by the largest value of each array."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0, err_msg=what)
