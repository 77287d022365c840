"""Rankings before and after a training that never was."""

import pytest

from tests.evaluation import tiny_report


@pytest.fixture(scope="session")
def results():
    """Of random embeddings, and of such that know a little. Read-only."""
    return tiny_report.evaluation(0.0), tiny_report.evaluation(1.0)
