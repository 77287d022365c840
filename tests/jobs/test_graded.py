"""Training on graded pairs beside others, and on a teacher's vectors, from JSONL by command."""

import json

import numpy as np
import pytest

from experiments import own
from tests.backbones.tiny_texts import write_bert
from tests.jobs.tiny_run import metrics
from unime_jax.data.settings import Bucket
from unime_jax.jobs import train

WORDS = ("red", "blue", "green", "small", "large", "round")


def write_rows(folder):
    """Two sources, of which the graded one has negatives to leave out; returns their texts."""
    pairs = [{"query": f"a {word} thing", "positive": f"{word} it is"} for word in WORDS]
    graded = [
        {"query": f"{word} and {WORDS[n - 1]}", "positive": word, "negatives": ["no"], "score": n}
        for n, word in enumerate(WORDS)
    ]
    for name, rows in (("pairs", pairs), ("graded", graded)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [row[side] for row in pairs + graded for side in ("query", "positive")]


def test_graded_pairs_and_a_teacher_train_end_to_end(one_device, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("unime_jax.jobs.export.write", lambda *_: None)
    data, teacher = tmp_path / "data", tmp_path / "teacher"
    data.mkdir()
    teacher.mkdir()
    texts = sorted(set(write_rows(data)))
    vectors = np.random.default_rng(0).standard_normal((len(texts), 5)).astype(np.float32)
    np.save(teacher / "vectors.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    (teacher / "texts.txt").write_text("".join(text + "\n" for text in texts))

    config = own.get_config()
    config.backbone, config.data.train = str(write_bert(tmp_path / "bert")), str(data)
    config.batch_size = config.chunk_size = 8
    config.steps, config.log_every, config.optimizer.learning_rate = 3, 1, 1e-3
    config.data.buckets = (Bucket(tokens=16, tiles=0),)
    config.loss.graded_sources = ("graded",)
    config.loss.teacher_weight, config.data.teacher = 0.5, str(teacher)
    train.run(config, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert len(lines) == 3 and sum(line["dropped_negatives"] for line in lines) > 0
    for line in lines:
        share = line["graded_pairs"] / 8
        assert 0 < share < 1
        both = (1 - share) * line["contrastive_loss"] + share * line["graded_loss"]
        np.testing.assert_allclose(line["loss"], both + 0.5 * line["teacher_loss"], rtol=1e-5)
        assert line["source_loss/graded"] > 0 and line["source_loss/pairs"] > 0

    config.loss.teacher_weight, config.loss.teacher_matching_weight = 0.0, 1.0
    with pytest.raises(ValueError, match="have 5 numbers and the model's"):
        train.run(config, tmp_path / "refused")
    config.loss.teacher_matching_weight, config.data.teacher = 0.0, ""
    config.loss.graded_sources = ("pairs",)
    with pytest.raises(ValueError, match=r"graded_sources has 'pairs', but its first row has no"):
        train.run(config, tmp_path / "refused")
    assert "rows of source 'graded' have a score, which is not used" in caplog.text
    config.loss.graded_sources = ("grades",)
    with pytest.raises(ValueError, match=r"config.loss.graded_sources: .*did you mean graded"):
        train.run(config, tmp_path / "refused")
    config.loss.teacher_weight = 1.0
    with pytest.raises(ValueError, match="teacher_weight or teacher_matching_weight above 0"):
        train.run(config, tmp_path / "refused")
