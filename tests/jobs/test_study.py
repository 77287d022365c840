"""The study of negatives: its command goes on after a kill, and its figures are what they say."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments import study
from tests.study import __main__ as command
from tests.study import masks, runs, table
from unime_jax.config import TrainConfig
from unime_jax.config_reader import read


@pytest.mark.slow
def test_a_killed_study_goes_on_with_the_runs_that_are_missing(
    data, straight, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    trained = {}

    def train(values, workdir):  # what a run leaves; runs themselves have their own tests
        settings = read(TrainConfig, values.to_dict())
        if len(trained) == 2 and not (workdir / "killed").exists():
            (workdir / "killed").touch()
            raise KeyboardInterrupt
        trained[workdir.name] = settings
        shutil.copytree(straight, workdir, dirs_exist_ok=True)

    monkeypatch.setattr(runs.train, "run", train)
    flags = [f"--folder={tmp_path}", f"--data={data}", "--seeds=3", "--start_steps=5"]
    flags += ["--variants=default,negatives:judged", "--config.steps=2"]
    flags += ["--config.data.first_rows=6", "--config.optimizer.warmup_steps=1"]
    with pytest.raises(KeyboardInterrupt):
        command.main(flags)
    command.main(flags)

    # Each run is trained once, from the start's model, on the rows that were judged.
    judged = "negatives_judged-3"
    assert list(trained) == ["start", "default-3", judged]
    assert [settings.steps for settings in trained.values()] == [5, 2, 2]
    assert [settings.seed for settings in trained.values()] == [0, 3, 3]
    assert trained[judged].init_from == str(tmp_path / "start")
    assert trained[judged].data.train == str(tmp_path / "judged" / "rows")
    results = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("results/*.json")}
    assert results.keys() == {"start", "default-3", judged, "masks-start", "masks-default-3"}
    assert results[judged]["scores"]["All"] == results["start"]["scores"]["All"]
    page = (tmp_path / command.PAGE).read_text()
    assert "| negatives | judged | 1 |" in page and "| k | 8 (default) | 1 |" in page

    # Judged rows have no negative that means what the positive means.
    rows = [
        json.loads(line)
        for file in (tmp_path / "judged" / "rows").glob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert len(rows) == 11 * 6 and sum(len(row["negatives"]) for row in rows) > len(rows)
    assert all(row["scores"][0] == 1 and max(row["scores"][1:], default=0) < 1 for row in rows)


def test_figures_of_the_study():
    # Precision and recall of masks: rows 0 and 2 are one meaning, and so are 1 and 3, by one text.
    queries = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    targets = np.array([[0.6, 0.8], [0, 1], [0.8, 0.6], [0, 1]], np.float32)
    alike = np.array([[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]], bool)
    counts = masks.counts(queries, targets, np.array(["a", "b", "c", "b"]), alike)
    assert counts["same target"].tolist() == [2, 2, 4, 12]
    assert counts["margin 0.1"].tolist() == [1, 1, 2, 10]  # 0.8 beside 0.6
    assert counts["duplicate queries 0.9"].tolist() == [2, 2, 2, 10]
    assert counts["duplicate targets 0.95"].tolist() == [2, 2, 2, 10]  # 0.96

    # Changes are by seed, and beyond the spread only where their interval says so.
    assert table.spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert table.change([1.0, 1.1, 0.9]) == ["+1.0 ± 0.2", "better"]
    assert table.change([1.0]) == ["+1.0", ""]
    assert table.change([1.0, -2.0, 0.5]) == ["-0.2 ± 4.0", "within"]

    # Every variant is a config, and changes what it says.
    changed = {name: study.get_config(name) for name in study.variants()}
    assert changed["margin:off"].loss.false_negative_margin is None
    assert changed["hardness:27"].loss.hardness == 27 and changed["k:4"].loss.hard_negatives == 4
    for config in changed.values():
        read(TrainConfig, config.to_dict())
