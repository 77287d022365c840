"""Retrieval sets on disk: which layout is what, and what is missing."""

import json

import pytest

from tests.tables import for_each
from unime_jax.evaluation.retrieval import files as retrieval_files
from unime_jax.evaluation.retrieval.data import Judged, Pairs
from unime_jax.evaluation.tasks import retrieval

QUERIES = [{"_id": "1", "text": "first"}, {"_id": "2", "text": "sec\u2028ond"}]
CORPUS = [{"_id": "a", "title": "A", "text": "x, y"}, {"_id": "b", "title": "", "text": "z"}]


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(folder, **files):
    """Files by name, with "_" for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def judged(folder, qrels="query-id\tcorpus-id\tscore\n1\tb\t2\n2\ta\t0\n2\tb\t1\n"):
    return write(
        folder, queries_jsonl=jsonl(*QUERIES), corpus_jsonl=jsonl(*CORPUS), qrels_tsv=qrels
    )


def test_folders_of_queries_corpus_and_qrels_and_of_pairs(tmp_path, monkeypatch):
    # A folder in BEIR's layout is a set, a folder of folders several.
    for name in ("one", "two"):
        judged(tmp_path / name)
    write(tmp_path / "images", a_txt="")
    (alone,) = retrieval_files.open_sets(tmp_path / "one", {})
    assert isinstance(alone, Judged) and alone.name == "one"
    task = retrieval.Task(alone).open(lambda path: b"")
    assert task.ids == ["1", "2"] and task.judged.grade.tolist() == [2, 1]
    assert [key[0] for key in task.items.keys] == ["first", "sec\u2028ond", "A x, y", "z"]
    assert [data.name for data in retrieval_files.open_sets(tmp_path, {})] == ["one", "two"]

    # Qrels may be a folder, whose test file counts; parts may be CSV.
    (tmp_path := tmp_path / "parts").mkdir()
    folder = judged(tmp_path / "own")
    (folder / "qrels.tsv").unlink()
    write(
        folder / "qrels",
        train_tsv="query-id\tcorpus-id\tscore\nunknown\tb\t1\n",
        test_csv="query-id,corpus-id\n1,a\n",
    )
    (folder / "corpus.jsonl").unlink()
    write(folder, corpus_csv='id,text\na,"x, y"\nb,z\n')
    (data,) = retrieval_files.open_sets(folder, {})
    task = retrieval.Task(data).open(lambda path: b"")
    assert task.ids == ["1"] and [key[0] for key in task.items.keys] == ["first", "x, y", "z"]

    # Everything else is pairs, by split.
    (tmp_path := tmp_path / "pairs").mkdir()
    splits = {"train": [{}], "test": [{}]}
    monkeypatch.setattr(retrieval_files, "open_pairs", lambda path, columns: splits)
    (tmp_path / "rows.jsonl").write_text("")
    for path in (tmp_path, tmp_path / "rows.jsonl"):
        found = retrieval_files.open_sets(path, {})
        assert found == [Pairs(name, rows, tmp_path) for name, rows in splits.items()]


@for_each(
    ("files", "message"),
    [
        ({"queries_jsonl": ""}, r"has no corpus: one of corpus.jsonl, corpus.parquet, .* is exp"),
        ({"queries_jsonl": "", "corpus_csv": "id,text\n"}, "has no qrels: one of qrels.jsonl"),
        ({"queries_jsonl": "", "queries_csv": ""}, "has queries.jsonl and queries.csv: remove"),
        ({"notes_txt": ""}, "no data in .*own: expected a folder that TFDS"),
    ],
)
def test_what_is_missing_is_named(tmp_path, files, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        retrieval_files.open_sets(write(tmp_path / "own", **files), {})
