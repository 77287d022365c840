"""The evaluate job on prepared sets, of which some are not there yet."""

import json

import numpy as np
import pytest

from experiments import evaluate as experiment
from tests.evaluation.benchmarks.test_sets import captioned
from unime_jax.embedder import Embedder
from unime_jax.evaluation import scores, tasks
from unime_jax.jobs import evaluate


def test_sets_that_are_not_there_are_named_and_may_be_prepared_later(
    straight, workdir, tmp_path, monkeypatch, caplog
):
    config = experiment.get_config()
    config.backbone, config.batch_size = str(straight), 32
    config.data.folder, config.data.prepare.module = str(tmp_path), ""
    config.evaluation.mmeb = config.evaluation.composition = config.evaluation.images = ""
    config.evaluation.benchmarks, config.evaluation.sets = "sets", ("one", "two")
    config.evaluation.image_prompt = "<|image_1|> here"
    config.evaluation.caption_prompt = "{caption} there"
    with pytest.raises(ValueError, match="config.evaluation.benchmarks: there is no folder"):
        evaluate.run(config, workdir)

    one = captioned(tmp_path / "sets", "one", [10, 120, 250])
    with caplog.at_level("INFO"):
        evaluate.run(config, workdir)
    found = scores.read_scores(workdir)["scores"]
    assert list(found["captions"]) == ["one"] and "no set.json" in found["not_run"]["two"]
    assert "benchmark sets that were not run:\n- two: " in caplog.records[-1].getMessage()
    page = (workdir / "report.html").read_text()
    assert "one (t2i)" in page and "no set.json" in page
    embedder = Embedder.from_pretrained(str(straight / "hf"), dtype="float32")
    images = [
        {"text": "<|image_1|> here", "image": (one / "pictures" / f"{n}.png").read_bytes()}
        for n in range(3)
    ]
    texts = [{"text": f"red {red} there"} for red in (10, 120, 250)]
    cosines = embedder.encode(texts, prompt="") @ embedder.encode(images, prompt="").T
    ranks = np.sum(cosines > np.diag(cosines)[:, None], axis=1)
    assert found["captions"]["one"]["t2i"]["R@1"] == pytest.approx(100 * np.mean(ranks == 0))

    # The second set is prepared, and only it is run.
    captioned(tmp_path / "sets", "two", [1, 200])
    ran, run_all = [], tasks.run_all

    def spy(asked, *arguments):
        ran.extend(task.name for task in asked)
        return run_all(asked, *arguments)

    monkeypatch.setattr(tasks, "run_all", spy)
    evaluate.run(config, workdir)
    both = scores.read_scores(workdir)["scores"]
    assert ran == ["two"] and "not_run" not in both
    assert both["captions"]["one"] == found["captions"]["one"] and len(both["captions"]) == 2

    # Another content under the same name is refused.
    rows = one / "rows" / "one.jsonl"
    rows.write_text(rows.read_text().replace("red 10", "red 11"))
    with pytest.raises(ValueError, match="Changed since:\n  benchmark set one: "):
        evaluate.run(config, workdir)
    config.evaluation.sets, config.evaluation.caption_prompt = ("two",), "{caption}"
    with pytest.raises(ValueError, match="Changed since:\n  caption_prompt: {caption} there -> N"):
        evaluate.run(config, workdir)
    assert json.loads((workdir / "evaluation.json").read_text()) == {"scores": both}
