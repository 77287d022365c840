"""Fingerprints of image files: what changes them, and what does not."""

import json
import shutil

from unime_jax import files
from unime_jax.evaluation.retrieval import files as retrieval_files
from unime_jax.evaluation.stored import image_files

NAMES = ("a/1.jpg", "a/2.PNG", "3.webp")


def write(folder, **contents):
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents.get(name, name.encode()))


def test_plain_files_are_told_by_path_size_and_ends(tmp_path):
    folder = tmp_path / "images"
    write(folder)
    before = image_files.of_folder(folder)
    write(tmp_path / "copy")
    (tmp_path / "copy" / "run.log").write_text("no image")
    assert image_files.of_folder(tmp_path / "copy") == before
    (folder / "a" / "2.PNG").write_bytes(b"a/2.JPG")
    changed = image_files.of_folder(folder)
    (folder / "a" / "2.PNG").unlink()
    assert len({before, changed, image_files.of_folder(folder)}) == 3


def test_images_of_a_bucket_are_listed_and_those_of_sets_looked_at(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = files.as_path("gs://bucket/images")
    rows = {"corpus.jsonl": '{"id": "d", "image": "a/1.jpg"}', "queries.jsonl": '{"id": "q"}'}
    rows["qrels.tsv"] = "query-id\tcorpus-id\nq\td"
    contents = dict.fromkeys(NAMES, "image") | rows
    for name, text in contents.items():
        files.write_whole(folder / name, text)

    sets = retrieval_files.open_sets(folder, {})

    def seen():
        return image_files.of_folder(folder), image_files.of_sets(sets, 0)

    before = seen()
    files.write_whole(folder / "readme.txt", "no image")
    assert seen() == before
    for name, same_set in (("a/2.PNG", True), ("a/1.jpg", False)):
        files.write_whole(folder / name, "other")
        after = seen()
        assert after[0] != before[0] and (after[1] == before[1]) == same_set
        before = after


def test_sets_are_told_by_the_images_that_rows_name(tmp_path):
    pairs, folder = tmp_path / "pairs", tmp_path / "set"
    write(pairs)
    write(folder)
    rows = [
        {"query": "one", "positive": {"image": "a/1.jpg"}, "negatives": [{"image": "3.webp"}]},
        {"query": "two", "positive": {"image": "a/2.PNG"}},
    ]
    documents = [{"id": "d", "text": "both", "image": ["a/1.jpg", "3.webp"]}, {"id": "e"}]
    (pairs / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (folder / "queries.jsonl").write_text('{"id": "q", "text": "query"}\n')
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\nq\td\n")

    def seen(path, limit=0):
        return image_files.of_sets(retrieval_files.open_sets(path, {}), limit)

    of_pairs, of_set = seen(pairs / "test.jsonl", 1), seen(folder, 1)
    shutil.copytree(pairs, tmp_path / "moved")
    assert seen(tmp_path / "moved" / "test.jsonl", 1) == of_pairs
    (pairs / "a" / "2.PNG").write_bytes(b"beyond the limit")
    assert seen(pairs / "test.jsonl", 1) == of_pairs != seen(pairs / "test.jsonl")
    for root in (pairs, folder):
        (root / "3.webp").write_bytes(b"another")
    assert seen(pairs / "test.jsonl", 1) != of_pairs and seen(folder, 1) != of_set
