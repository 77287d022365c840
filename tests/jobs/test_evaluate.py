"""The evaluate job: a run's own scores again, whatever happens on the way."""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import evaluate as experiment
from tests import children
from tests.evaluation.encoding.test_cached_encoder import encode, texts, vector
from tests.multihost import launch
from tests.tables import for_each
from unime_jax.evaluation import scores, tasks
from unime_jax.evaluation.encoding import cached_encoder
from unime_jax.evaluation.stored import finished, results
from unime_jax.jobs import evaluate

KNOWN = re.compile(r"(\d+) of (\d+) items were known, (\d+) encoded")


def killed(config, workdir, results):
    """An evaluation in whose process SIGKILL comes when so many datasets are done."""
    save, numbers = finished.save, itertools.count(1)

    def dies(*arguments):
        save(*arguments)
        if next(numbers) == results:
            os.kill(os.getpid(), signal.SIGKILL)

    finished.save = dies
    evaluate.run(ConfigDict(config), workdir)


def killed_within_a_block(home):
    """SIGKILL in the middle of the third block of two."""
    cached_encoder.BLOCK = 2
    replace, numbers = pathlib.Path.replace, iter(range(100))

    def dies(path, target):
        if target.suffix == ".npy" and next(numbers) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    pathlib.Path.replace = dies
    encode(texts("abcdefgh"), home)


@pytest.fixture
def config(data, straight):
    """The datasets of the finished run, by its own export."""
    return make_config(data, straight)


def make_config(data, straight):
    config = experiment.get_config()
    config.backbone = str(straight)
    config.data.folder = str(data)
    config.data.prepare.module = ""  # done by the fixture
    config.evaluation.limit = 1
    config.evaluation.cache = ""
    config.batch_size = 32
    return config


@pytest.fixture(scope="module")
def whole(data, straight, tmp_path_factory):
    """The work directory of an evaluation that nothing disturbed. Read-only."""
    workdir = tmp_path_factory.mktemp("evaluated")
    evaluate.run(make_config(data, straight), workdir)
    return workdir


@pytest.fixture
def ran(monkeypatch):
    """Names of the tasks that are run."""
    names, run_all = [], tasks.run_all

    def spy(asked, *arguments):
        names.extend(task.name for task in asked)
        return run_all(asked, *arguments)

    monkeypatch.setattr(tasks, "run_all", spy)
    return names


def test_scores_are_those_of_the_run_after_training(whole, straight):
    found = json.loads((whole / "evaluation.json").read_text())
    expected = scores.read_scores(straight)["after"]
    del expected["views"], expected["dimension"]  # which were not asked for
    assert found == {"scores": expected}
    after = results.load_results(straight / "results_after.npz")
    assert len(after) == 16
    for name, expected in after.items():
        (result,) = results.load_results(whole / "results" / f"mmeb-{name}.npz").values()
        assert result.ids == expected.ids and result.items == expected.items
        np.testing.assert_array_equal(result.rank, expected.rank)
        np.testing.assert_allclose(result.gold_score, expected.gold_score, atol=2e-5)

    # The report speaks of one model and no training
    page = (whole / "report.html").read_text()
    assert "Evaluation of " in page and "16 datasets" in page
    assert "<tr><th>Score</th>" in page
    for word in ("Before", "before training", "After training", "Training should"):
        assert word not in page


def test_shorter_vectors_are_scored_like_those_of_the_run(config, straight, workdir):
    config.evaluation.dims, config.evaluation.precisions = (8,), ("binary",)
    evaluate.run(config, workdir)
    found = scores.read_scores(workdir)["scores"]
    assert tuple(found["views"]) == ("8", "8 binary", "binary") and found["dimension"] == 32
    assert found == scores.read_scores(straight)["after"]
    for page in (workdir / "report.html", straight / "report.html"):
        assert "Shorter vectors" in page.read_text()
    assert "8 binary" in (straight / "hf" / "README.md").read_text()
    config.evaluation.dims = (8, 32)
    with pytest.raises(ValueError, match="evaluation.dims=.8, 32.: embeddings .* have 32 numbers"):
        evaluate.run(config, workdir)


def test_a_kill_costs_no_dataset_that_is_finished_and_no_item_that_is_encoded(
    config, whole, workdir, ran, tmp_path, caplog
):
    config.evaluation.cache = str(tmp_path / "vectors")
    process = children.start(killed, config.to_dict(), workdir, 3, output=tmp_path / "log")
    assert process.wait(timeout=300) == -signal.SIGKILL, process.said()
    done = sorted(path.stem.partition("-")[2] for path in workdir.glob("results/*.npz"))
    assert len(done) == 3 and not (workdir / "evaluation.json").exists()
    (workdir / "results" / "mmeb-Crops.npz.tmp").write_bytes(b"half")  # of a kill while writing

    caplog.set_level("INFO")
    evaluate.run(config, workdir)
    assert len(ran) == 19 - 3 and not set(ran) & set(done)
    known, items, encoded = KNOWN.search(caplog.text).groups()
    assert known == items != "0" and encoded == "0"
    assert scores.read_scores(workdir) == scores.read_scores(whole)
    ran.clear()
    evaluate.run(config, workdir)
    assert not ran, "nothing is missing"


def test_a_kill_within_a_block_of_vectors_costs_that_block(tmp_path):
    process = children.start(
        killed_within_a_block, str(tmp_path / "cache"), output=tmp_path / "log"
    )
    assert process.wait(timeout=300) == -signal.SIGKILL, process.said()
    (half,) = (tmp_path / "cache").glob("*/*.npy.*.tmp")
    vectors, encoded = encode(texts("abcdefgh"), tmp_path / "cache")
    assert encoded == ["e", "f", "g", "h"] and half.exists(), "of a run that may be alive"
    np.testing.assert_array_equal(vectors, [vector(item) for item in texts("abcdefgh")])
    os.utime(half, (0, 0))
    assert encode(texts("abcdefgh"), tmp_path / "cache")[1] == [] and not half.exists()


def test_a_damaged_result_is_set_aside_and_made_again(config, whole, workdir, ran):
    shutil.copytree(whole, workdir)
    (workdir / "results" / "mmeb-Crops.npz").write_bytes(b"PK damaged")
    evaluate.run(config, workdir)
    assert ran == ["Crops"] and list(workdir.glob("results/mmeb-Crops.npz.damaged-*"))
    assert scores.read_scores(workdir) == scores.read_scores(whole)


@for_each(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype: float32 -> bfloat16"),
        ({"evaluation.limit": 2}, "limit: 1 -> 2"),
        ({"max_length": 48}, "max_length: 56 -> 48"),
        ({"evaluation.composition": ""}, r"composition: \['mini_mmeb/composition'"),
    ],
)
def test_results_of_two_settings_are_never_mixed(config, whole, change, message):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(change)
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with pytest.raises(ValueError, match=f"another evaluation. Changed since:\n  {message}"):
        evaluate.run(config, whole)
    left = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert all(before[path] == time for path, time in left.items() if path in before)


def test_another_model_at_the_same_place_is_noticed(config, whole, straight, tmp_path):
    folder = shutil.copytree(straight / "hf", tmp_path / "hf")
    card = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(card | {"note": "changed"}))
    config.backbone = str(folder)
    with pytest.raises(ValueError, match="Changed since:\n  model: "):
        evaluate.run(config, whole)


def test_what_is_wrong_is_said_before_anything_is_read(config, straight, tmp_path, workdir):
    with pytest.raises(ValueError, match="holds a run of job 'train'. An evaluation has a work"):
        evaluate.run(config, straight)
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    config.backbone = str(tmp_path / "unfinished")
    config.evaluation.mmeb = "nowhere"
    with pytest.raises(ValueError) as error:
        evaluate.run(config, workdir)
    assert "this work directory has no exported model in hf/" in str(error.value)
    config.backbone = str(straight)
    config.evaluation.images = "nowhere_either"
    with pytest.raises(ValueError) as error:
        evaluate.run(config, workdir)
    assert "config.evaluation.mmeb: no data in" in str(error.value)
    assert "config.evaluation.images: there is no folder" in str(error.value)
    config.evaluation.mmeb = config.evaluation.composition = ""
    with pytest.raises(ValueError, match="name nothing to evaluate on"):
        evaluate.run(config, workdir)


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(config, whole, workdir, data, tmp_path):
    """The second run finds one result missing: all agree on which, and that its items are known."""
    config.data.folder, config.backbone = str(data), str(config.backbone)
    config.evaluation.cache = str(tmp_path / "vectors")
    for number in range(2):
        run = launch.finish(config, workdir, 2, experiment="experiments/evaluate.py")
        assert scores.read_scores(workdir) == scores.read_scores(whole)
        counts = {KNOWN.search(run.said(process)).groups() for process in range(2)}
        ((known, items, encoded),) = counts
        assert items == (known if number else encoded) != "0", "in both processes"
        (workdir / "results" / "mmeb-Crops.npz").unlink()
