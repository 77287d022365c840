"""One tiny dataset and one finished run for all tests of the training job."""

import pathlib
import shutil

import jax
import pytest
from ml_collections import ConfigDict

from tests.jobs import tiny_run
from unime_jax.jobs import train


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """Runs of one config compile once, in this process and in those that tests start."""
    cache = tmp_path_factory.mktemp("compiled")
    settings = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data")
    tiny_run.build_data(folder)
    return folder


@pytest.fixture
def config(data) -> ConfigDict:
    """A run without evaluation."""
    return tiny_run.make_config(data)


@pytest.fixture(scope="session")
def straight(data, tmp_path_factory) -> pathlib.Path:
    """The work directory of a run that nothing disturbed, all that there is included. Read-only."""
    workdir = tmp_path_factory.mktemp("straight")
    config = tiny_run.with_evaluation(tiny_run.make_config(data))
    config.export.verify = True
    train.run(config, workdir)
    return workdir


@pytest.fixture
def workdir(tmp_path):
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
