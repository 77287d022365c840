"""Steps that add the same to each parameter, for tests of what is around them.

Nothing of the model is in them. Of a batch they say which texts and images its pairs are of: their
metric `gradient_norm` is a number that follows from those, in whatever rows and processes they are.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import PyTreeDef

from tests.training import numpy_checksums
from unime_jax import sharding
from unime_jax.batch import Batch
from unime_jax.training.setup import Setup

MOVE = 2.0**-10


def replace(patch: pytest.MonkeyPatch, move: float = MOVE) -> None:
    """A run takes these steps, and its checkpoints have checksums by NumPy.

    `move` is added to each trained parameter. A step is skipped where the first one is not finite.
    """

    def train_step(self, like, *, sources=()):
        placed, structure = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, like))
        return _plain_step(tuple(placed), structure, len(sources), move)

    patch.setattr(Setup, "train_step", train_step)
    numpy_checksums.replace(patch)


def replace_here() -> None:
    """For the rest of a process."""
    replace(pytest.MonkeyPatch())


def digest(batch: Batch) -> jax.Array:
    """A sum over pairs, below 2^16, so that float32 has it exactly; rows are of one text each."""
    parts = []
    for group in batch.groups:
        sums = group.tokens.sum(axis=-1)
        if group.patches is not None:
            sums += group.patches.sum(axis=(2, 3, 4), dtype=jnp.int32)
        parts.append(sums.reshape(-1))
    of_row = jnp.concatenate(parts)
    pairs = of_row[batch.query] * of_row[batch.positive]
    negatives = jnp.where(batch.negative < 0, 0, of_row[batch.negative])
    return ((pairs.sum() + negatives.sum()) % 2**16).astype(jnp.float32)


@functools.lru_cache(maxsize=4)
def _plain_step(
    placed: tuple[jax.sharding.NamedSharding, ...], structure: PyTreeDef, sources: int, move: float
):
    """One program for all runs of the same state."""

    def step(state, batch):
        ok = jnp.isfinite(jax.tree.leaves(state.trainable)[0].sum())
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            trainable=jax.tree.map(lambda x: x + move, state.trainable),
            skipped=state.skipped + ~ok,
            skipped_in_a_row=jnp.where(ok, 0, state.skipped_in_a_row + 1),
        )
        names = ("loss", "gradient_norm", "learning_rate", "mean_cosine", "chance_loss")
        counts = {"skipped_steps": new.skipped, "skipped_in_a_row": new.skipped_in_a_row}
        by_source = {name: jnp.ones(sources) for name in ("source_loss", "source_rows")}
        metrics = dict.fromkeys(names, jnp.where(ok, 0.5, jnp.nan)) | counts | by_source
        return new, metrics | {"gradient_norm": jnp.where(ok, digest(batch), jnp.nan)}

    replicated = sharding.replicated(placed[0].mesh)
    out_shardings = jax.tree.unflatten(structure, placed), replicated
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)
