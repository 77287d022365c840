"""The table of several runs."""

import json
import types

import numpy as np
import pytest
from absl import app

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
    assert compare.table(found).splitlines() == [
        "| | runs | All | short | composition |",
        "|---|---|---|---|---|",
        "| both | 2 | 40.0 ± 14.1 | 25.0 ± 14.1 | 35.0 ± 7.1 |",
    ]


def test_the_command_groups_runs_by_name_or_pattern(runs, capsys, monkeypatch):
    given = [f"both:{runs}/*", f"{runs}/one"]
    monkeypatch.setattr(compare, "_RUNS", types.SimpleNamespace(value=given))
    monkeypatch.setattr(compare, "_COLUMN", types.SimpleNamespace(value=["short:a,b"]))
    compare.main(["compare"])
    *_, both, one = capsys.readouterr().out.splitlines()
    assert both == "| both | 2 | 40.0 ± 14.1 | 25.0 ± 14.1 | 35.0 ± 7.1 |"
    assert one == f"| {runs}/one | 1 | 30.0 | 15.0 | 30.0 |"
    with pytest.raises(app.UsageError, match="unexpected arguments: x y"):
        compare.main(["compare", "x", "y"])

    # An evaluation has no other side.
    sides = scores.read_scores(runs / "one")
    (runs / "scored").mkdir()
    (runs / "scored" / "evaluation.json").write_text(json.dumps({"scores": sides["after"]}))
    assert compare.compare({"x": [runs / "scored"]}, {})["x"]["All"] == 30

    # What is missing is named.
    with pytest.raises(ValueError, match="has no d; it has a, b, c"):
        compare.compare({"x": [runs / "one"]}, {"short": ["a", "d"]})
    with pytest.raises(ValueError, match="no scores after training"):
        compare.compare({"x": [runs / "three"]}, {})
    with pytest.raises(ValueError, match="'x': no such work directory"):
        compare.compare({"x": []}, {})
