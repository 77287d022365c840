"""Rankings before and after a training that never was."""

import pytest

from tests.evaluation import tiny_report
from unime_jax.training import curves


@pytest.fixture(scope="session")
def results():
    """Of random embeddings, and of such that know a little. Read-only."""
    return tiny_report.evaluation(0.0), tiny_report.evaluation(1.0)


@pytest.fixture
def one_curve(monkeypatch):
    """Reports draw the loss alone, where what they say is tested: most of their time is figures."""
    loss = next(iter(curves.CURVES))
    monkeypatch.setattr(curves, "CURVES", {loss: curves.CURVES[loss]})
