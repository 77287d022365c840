"""Checkpoints that several files of tests read."""

import pathlib
import shutil

import pytest

from tests.training.states import make_state, open_checkpoints


@pytest.fixture(scope="session")
def three(tmp_path_factory):
    """Three checkpoints; read-only."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    with open_checkpoints(folder) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, make_state(step))
    return folder


@pytest.fixture
def folder(three, tmp_path):
    """Three checkpoints of a test's own."""
    return pathlib.Path(shutil.copytree(three, tmp_path / "checkpoints"))
