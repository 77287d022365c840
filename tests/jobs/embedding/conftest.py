"""The corpus, a model, and a run that nothing disturbed."""

import copy

import jax
import pytest

from tests.backbones.tiny_folders import write_folder
from tests.jobs.embedding import corpus
from tests.models.oracle import TEXT, VISION, Pair, pair_of
from unime_jax.data import formats
from unime_jax.jobs import embed


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("model")
    return pair_of(write_folder(folder, vision=VISION, text=TEXT))


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Most tests run on one device, on rows that are not on disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        patch.setattr(formats, "open_dataset", lambda folder: corpus.DATA)
        yield


@pytest.fixture
def splits(monkeypatch):
    """The rows, for tests that change them."""
    found = copy.deepcopy(corpus.DATA)
    monkeypatch.setattr(formats, "open_dataset", lambda folder: found)
    return found


@pytest.fixture
def given(pair):
    """In blocks of four items, of three shapes."""
    return corpus.make_config(pair)


@pytest.fixture(scope="module")
def straight(pair, one_device, tmp_path_factory):
    """A run that nothing disturbed. Read-only."""
    workdir = tmp_path_factory.mktemp("straight")
    embed.run(corpus.make_config(pair), workdir)
    return workdir


@pytest.fixture
def lines(given, tmp_path):
    """The config on a text file."""
    return corpus.with_lines(given, tmp_path)
