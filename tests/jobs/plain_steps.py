"""Steps that add the same to each parameter, for tests of what is around them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import PyTreeDef

from unime_jax.training.setup import Setup

MOVE = 2.0**-10


def replace(patch: pytest.MonkeyPatch, move: float = MOVE) -> None:
    """Puts them in the place of a run's steps: nothing of the model is traced or compiled.

    `move` is added to each trained parameter. A step is skipped where a parameter is not finite.
    """

    def train_step(self, like, *, sources=()):
        placed, structure = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, like))
        return _plain_step(tuple(placed), structure, len(sources), move)

    patch.setattr(Setup, "train_step", train_step)


@functools.lru_cache(maxsize=4)
def _plain_step(
    placed: tuple[jax.sharding.Sharding, ...], structure: PyTreeDef, sources: int, move: float
):
    """One program for all runs of the same state."""

    def step(state, batch):
        ok = jnp.isfinite(jnp.stack([x.sum() for x in jax.tree.leaves(state.trainable)])).all()
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
        return new, dict.fromkeys(names, jnp.where(ok, 0.5, jnp.nan)) | counts | by_source

    out_shardings = jax.tree.unflatten(structure, placed), None
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)
