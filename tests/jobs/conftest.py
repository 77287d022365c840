"""One tiny dataset and one finished run for all tests of the training job."""

import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Callable

import filelock
import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import PyTreeDef
from ml_collections import ConfigDict

from tests.jobs import tiny_run
from unime_jax.jobs import train
from unime_jax.training.setup import Setup


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[pathlib.Path], None]], pathlib.Path]:
    """Folders by name, each made by the first of xdist's workers that wants it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def made(name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
        folder, done = base / name, base / f"{name}.done"
        with filelock.FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def data(made_once) -> pathlib.Path:
    return made_once("data", tiny_run.build_data)


@pytest.fixture
def config(data) -> ConfigDict:
    """A run without evaluation."""
    return tiny_run.make_config(data)


@pytest.fixture(scope="session")
def straight(data, made_once, tmp_path_factory) -> pathlib.Path:
    """The work directory of a run that nothing disturbed, all that there is included. Read-only."""
    config = tiny_run.with_evaluation(tiny_run.make_config(data))
    config.export.verify = True
    made = made_once("straight", lambda workdir: train.run(config, workdir))
    own = tmp_path_factory.mktemp("straight")  # jobs that are refused write into it for a moment
    return shutil.copytree(made, own, dirs_exist_ok=True)


@pytest.fixture
def workdir(tmp_path):
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.fixture
def plain_step(monkeypatch):
    """Steps that add `tiny_run.PLAIN_STEP` to each parameter, for tests of what is around them.

    Nothing of the model is traced or compiled. A step is skipped where a parameter is not finite.
    """

    def train_step(self, like, *, sources=()):
        placed, structure = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, like))
        return _plain_step(tuple(placed), structure, len(sources))

    monkeypatch.setattr(Setup, "train_step", train_step)


@functools.lru_cache(maxsize=4)
def _plain_step(placed: tuple[jax.sharding.Sharding, ...], structure: PyTreeDef, sources: int):
    """One program for all runs of the same state."""

    def step(state, batch):
        ok = jnp.isfinite(jnp.stack([x.sum() for x in jax.tree.leaves(state.trainable)])).all()
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            trainable=jax.tree.map(lambda x: x + tiny_run.PLAIN_STEP, state.trainable),
            skipped=state.skipped + ~ok,
            skipped_in_a_row=jnp.where(ok, 0, state.skipped_in_a_row + 1),
        )
        names = ("loss", "gradient_norm", "learning_rate", "mean_cosine", "chance_loss")
        counts = {"skipped_steps": new.skipped, "skipped_in_a_row": new.skipped_in_a_row}
        by_source = {name: jnp.ones(sources) for name in ("source_loss", "source_rows")}
        return new, dict.fromkeys(names, jnp.where(ok, 0.5, jnp.nan)) | counts | by_source

    out_shardings = jax.tree.unflatten(structure, placed), None
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)
