"""Retrieval from own data in the jobs: a model's scores, and those of a run while it trains."""

import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from experiments import evaluate as experiment
from tests.jobs import tiny_run
from tests.multihost import launch
from unime_jax.embedder import Embedder
from unime_jax.evaluation import scores, tasks
from unime_jax.evaluation.stored import results
from unime_jax.jobs import evaluate, export, train
from unime_jax.training import evaluations

QUERIES = {f"q{n}": f"a {word} shape" for n, word in enumerate(("red", "blue", "green"))}
TEXTS = ("a red circle", "a blue square", "a green cross", "no shape at all", "a red shape")
GRADES = [("q0", "d0", 1), ("q0", "d4", 2), ("q1", "d1", 1), ("q1", "image", 1), ("q2", "d2", 3)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> pathlib.Path:
    """A judged corpus of a few texts and an image. Read-only."""
    folder = tmp_path_factory.mktemp("own") / "shapes"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), (0, 0, 255)).save(buffer, "PNG")
    (folder / "blue.png").write_bytes(buffer.getvalue())
    corpus = [{"_id": f"d{n}", "text": text} for n, text in enumerate(TEXTS)]
    corpus.append({"_id": "image", "text": "<|image_1|>", "image": "blue.png"})
    (folder / "queries.jsonl").write_text(jsonl({"_id": i, "text": t} for i, t in QUERIES.items()))
    (folder / "corpus.jsonl").write_text(jsonl(corpus))
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in GRADES)]
    (folder / "qrels.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def config(straight, own):
    config = experiment.get_config()
    config.backbone = str(straight)
    config.data.folder, config.data.eval = str(own.parent), own.name
    config.data.prepare.module = ""
    config.evaluation.mmeb = config.evaluation.composition = config.evaluation.images = ""
    config.evaluation.cache = ""
    config.batch_size = 32
    return config


def test_the_scores_are_those_of_the_embedder(config, straight, own, workdir, monkeypatch, caplog):
    with caplog.at_level("INFO"):
        evaluate.run(config, workdir)
    found = scores.read_scores(workdir)["scores"]
    retrieval = found["retrieval"]
    assert found["datasets"] == {} and found["All"] is None
    assert retrieval["queries"] == 3 and retrieval["candidates"] == 6
    embedder = Embedder.from_pretrained(str(straight / "hf"), dtype="float32")
    documents = [{"text": text} for text in TEXTS]
    documents.append({"text": "<|image_1|>", "image": (own / "blue.png").read_bytes()})
    queries = [{"text": text} for text in QUERIES.values()]
    cosines = embedder.encode(queries, prompt="") @ embedder.encode(documents, prompt="").T
    best = {0: [0, 4], 1: [1, 5], 2: [2]}
    ranks = [
        int(np.sum(np.delete(row, best[n]) > row[best[n]].max())) for n, row in enumerate(cosines)
    ]
    (result,) = results.load_sets(workdir / "results" / "retrieval-shapes.npz").values()
    assert result.rank.tolist() == ranks
    assert retrieval["R@1"] == pytest.approx(100 * np.mean(np.array(ranks) == 0))
    assert "retrieval: 3 queries, 6 candidates" in caplog.text
    page = (workdir / "report.html").read_text()
    assert "Retrieval from own data" in page and page.count('class="candidate gold"') >= 3

    monkeypatch.setattr(tasks, "run_all", lambda *_: pytest.fail("nothing is missing"))
    evaluate.run(config, workdir)
    assert scores.read_scores(workdir) == {"scores": found}


def test_results_of_other_data_at_the_same_place_are_refused(config, own, workdir, tmp_path):
    config.data.folder = str(tmp_path)
    folder = tmp_path / "shapes"
    folder.mkdir()
    for file in own.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    evaluate.run(config, workdir)
    config.data.folder = str(own.parent)  # the same elsewhere
    evaluate.run(config, workdir)
    config.data.folder = str(tmp_path)
    image = (folder / "blue.png").read_bytes()
    Image.new("RGB", (24, 24), (0, 0, 250)).save(folder / "blue.png")
    assert (folder / "blue.png").stat().st_size == len(image), "neither name nor size tell"
    with pytest.raises(ValueError, match=r"Changed since:\n  eval_images: \w+ -> \w+\nUse"):
        evaluate.run(config, workdir)
    (folder / "blue.png").write_bytes(image)
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    with pytest.raises(ValueError, match=r"Changed since:\n  eval: \['shapes', '"):
        evaluate.run(config, workdir)
    config.data.eval = ""
    with pytest.raises(ValueError, match="config.data.eval, .* name nothing to evaluate on"):
        evaluate.run(config, workdir)
    config.data.eval = "nowhere"
    with pytest.raises(ValueError, match="config.data.eval: no data in"):
        evaluate.run(config, workdir)


@pytest.mark.slow
def test_two_processes_rank_as_one_does(config, workdir, tmp_path):
    """Each encodes its own part of queries and corpus; a result that is gone is made by both."""
    evaluate.run(config, tmp_path / "one")
    config.backbone = str(config.backbone)
    for _ in range(2):
        launch.finish(config, workdir, 2, experiment="experiments/evaluate.py")
        assert scores.read_scores(workdir) == scores.read_scores(tmp_path / "one")
        (workdir / "results" / "retrieval-shapes.npz").unlink()


@pytest.fixture
def train_config(data, own):
    config = tiny_run.make_config(data)
    config.data.eval = str(own)
    config.evaluation.every = 2
    return config


def test_a_run_is_evaluated_and_keeps_the_best_by_it(
    train_config, workdir, plain_step, one_device, monkeypatch
):
    monkeypatch.setattr(export, "write", lambda *_: None)
    train_config.checkpoint.keep_best = True
    train.run(train_config, workdir)
    sides = scores.read_scores(workdir)
    by_step = evaluations.read(workdir)
    assert list(by_step) == [2, 4, 6] and by_step[6] == sides["after"]
    for side in (*sides.values(), *by_step.values()):
        assert side["retrieval"]["candidates"] == 6 and side["datasets"] == {}
        assert evaluations.overall(side) == side["retrieval"]["R@1"]
    (events,) = (workdir / "tensorboard" / "evaluation").iterdir()
    written = events.read_bytes()
    assert written.count(b"evaluation/retrieval/mAP") == 4 and b"intervals" not in written
    page = (workdir / "report.html").read_text()
    assert "Retrieval from own data" in page and "before training: place" in page
    for when in ("before", "after"):
        assert results.load_sets(workdir / f"results_{when}.npz").keys() == {"shapes"}

    # Without the key the run goes on, and forgets scores that later ones are not compared with.
    train_config.data.eval, train_config.evaluation.every = "", 0
    train_config.checkpoint.keep_best = False
    train.run(train_config, workdir)
    assert scores.read_scores(workdir) == {}
