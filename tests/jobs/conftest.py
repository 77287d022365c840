"""One tiny dataset and one finished run for all tests of the training job."""

import functools
import os
import pathlib
import shutil
from collections.abc import Callable

import filelock
import jax
import pytest
from ml_collections import ConfigDict

from tests.jobs import plain_steps, tiny_run
from tests.training import numpy_checksums
from unime_jax.jobs import train


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
    config.checkpoint.every = 2
    made = made_once("straight", lambda workdir: train.run(config, workdir))
    own = tmp_path_factory.mktemp("straight")  # jobs that are refused write into it for a moment
    return shutil.copytree(made, own, dirs_exist_ok=True)


@pytest.fixture
def workdir(tmp_path):
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.fixture
def one_device(monkeypatch):
    """Runs on one device: a step compiles sooner than for eight, and arrays are in one part.

    Their checkpoints have checksums by NumPy.
    """
    make_mesh = functools.partial(train.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(train, "make_mesh", make_mesh)
    numpy_checksums.replace(monkeypatch)


@pytest.fixture
def plain_step(monkeypatch):
    """Steps without a model, for tests of what is around them."""
    plain_steps.replace(monkeypatch)
