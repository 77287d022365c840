"""The table of several runs."""

import numpy as np
import pytest

from unime_jax.evaluation import compare, scores


@pytest.fixture
def runs(tmp_path):
    table = {"a": ("RET", "IND"), "b": ("RET", "IND"), "c": ("CLS", "OOD")}
    for name, values in {"one": (10, 20, 60), "two": (30, 40, 80)}.items():
        found = scores.summary(
            dict(zip(table, values, strict=True)), table, {"swap": 50.0, "add": values[0]}
        )
        scores.write_scores(tmp_path / name, "after", found)
    return tmp_path


def test_means_and_spread_of_runs_that_are_whole(runs):
    # Means and spread.
    found = compare.compare({"both": [runs / "one", runs / "two"]}, {"short": ["a", "b"]})
    np.testing.assert_allclose(found["both"]["All"], [30, 50])
    np.testing.assert_allclose(found["both"]["short"], [15, 35])
    np.testing.assert_allclose(found["both"]["composition"], [30, 40])
    last = compare.table(found).splitlines()[-1]
    assert last == "| both | 2 | 40.0 ± 14.1 | 25.0 ± 14.1 | 35.0 ± 7.1 |"

    # What is missing is named.
    with pytest.raises(ValueError, match="has no d; it has a, b, c"):
        compare.compare({"x": [runs / "one"]}, {"short": ["a", "d"]})
    with pytest.raises(ValueError, match="no scores after training"):
        compare.compare({"x": [runs / "three"]}, {})
    with pytest.raises(ValueError, match="'x': no such work directory"):
        compare.compare({"x": []}, {})
