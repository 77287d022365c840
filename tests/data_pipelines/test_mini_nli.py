"""MiniNLI's sentences, and its teacher: recorded or run, the same vectors."""

import importlib.util

import numpy as np
import pytest

from data_pipelines.mini_nli import prepare as package
from data_pipelines.mini_nli.content import triples
from unime_jax.data.embedding_store import open_embeddings
from unime_jax.data.formats import open_dataset
from unime_jax.data.schema import to_example

prepare = importlib.import_module("data_pipelines.mini_nli.prepare")


def test_triples_follow_from_the_seed(monkeypatch):
    rows = triples(3, "train", 40)
    assert rows == triples(3, "train", 40) != triples(4, "train", 40)
    assert len({row.sent0 for row in rows}) == 40
    assert all(len({row.sent0, row.sent1, row.hard_neg}) == 3 for row in rows), rows
    held_out = {row.sent0 for row in triples(0, "test", prepare.TEST)}
    trained = {row.sent0 for row in triples(0, "train", prepare.TRAIN)}
    assert len(held_out - trained) > 0.8 * len(held_out)  # digits and labels are few

    # The recorded teacher is the one that is installed
    if importlib.util.find_spec(prepare.TEACHER) is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed")
    some = prepare.sentences(0)[::97]
    run, _ = prepare.teach(some)
    monkeypatch.setattr(prepare, "TEACHER", "no_such_package")
    recorded, provenance = prepare.teach(prepare.sentences(0))
    assert "recorded" in provenance["model"] and recorded.dtype == np.float16
    np.testing.assert_allclose(recorded[::97], run, atol=1e-3)


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr(prepare, "TEACHER", "no_such_package")


def test_other_sentences_need_the_teacher(not_installed, tmp_path):
    with pytest.raises(ValueError, match="pip install"):
        prepare.teach(prepare.sentences(1))

    # What a run finds. The folders of the default config, and nothing is built twice.
    package(tmp_path, seed=0, train_rows=2, eval_rows=1)
    teacher = open_embeddings(tmp_path / "mini_nli" / "teacher")
    splits = open_dataset(tmp_path / "mini_nli" / "texts")
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": prepare.TRAIN,
        "test": prepare.TEST,
    }
    example = to_example("train", splits["train"][7], "7")
    for item in (example.query, example.positive, *example.negatives):
        assert teacher.vector_of(item).shape == (384,)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    package(tmp_path, seed=0, train_rows=2, eval_rows=1)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
