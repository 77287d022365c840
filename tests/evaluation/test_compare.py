"""The command that sets runs side by side."""

import types

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
    scores.write_scores(tmp_path / "one", "before", found)
    return tmp_path


def test_the_command_groups_runs_by_name_or_pattern(runs, capsys, monkeypatch):
    def command(*folders, **flags):
        values = {"runs": [], "column": [], "output": str(runs / "out" / "table")} | flags
        for name, value in values.items():
            flag = types.SimpleNamespace(value=value)
            monkeypatch.setattr(compare, f"_{name.upper()}", flag)
        compare.main(["compare", *map(str, folders)])
        return capsys.readouterr().out.splitlines()

    defaults = {"baseline": "", "published": [], "before": False, "title": "Title"}
    given = [f"both:{runs}/[ot][nw]*", f"{runs}/one"]
    # Means and spread.
    head, _, both, one = command(runs=given, column=["short:a,b"], **defaults)
    assert head == "|  | runs | All | short | composition |"
    assert both == "| both | 2 | 40.0 ± 14.1 | 25.0 ± 14.1 | 35.0 ± 7.1 |"
    assert one == f"| {runs}/one | 1 | 30.0 | 15.0 | 30.0 |"
    written = sorted(path.name for path in (runs / "out").iterdir())
    assert written == ["table.csv", "table.html", "table.md", "table.tex"]

    # Folders are lines, training runs also as they were before; a change needs no results by row.
    changes = defaults | {"baseline": "one", "before": True}
    _, _, before, one, two = command(runs / "one", f"{runs}/two/", **changes)
    assert before.startswith("| one (before) | 1 | 50.0 +20.0 | 80.0 +20.0 | 35.0 +20.0 |")
    assert one.startswith("| one | 1 | 30.0 | 60.0 |") and two.startswith("| two | 1 | 50.0 +20.0")

    # What is missing is named.
    for folders, flags, message in (
        ([], {"runs": [f"x:{runs}/one"], "column": ["short:a,d"]}, "has no d; it has a, b, c"),
        ([runs / "three"], {}, "no evaluation.json, so no scores after training yet"),
        ([], {"runs": ["x:nothing*"]}, "'x': no such work directory"),
        ([], {}, "name work directories, or --runs=name:pattern"),
        ([runs / "one"], {"runs": [f"one:{runs}/two"]}, "two lines are called one; name them by"),
    ):
        with pytest.raises(app.UsageError, match=message):
            command(*folders, **(defaults | flags))
