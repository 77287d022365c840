"""Which files of a folder are which source, and what is said where there are none."""

import json
import os

import pytest

from tests.data.formats.writers import WRITERS, write_csv, write_jsonl, write_parquet, write_tar
from tests.tables import for_each
from unime_jax.data.formats import fingerprint, open_dataset
from unime_jax.data.formats.rows import Shards
from unime_jax.data.quarantine import BadExample


def numbered(start, count):
    return [{"query": f"q{i}", "positive": f"p{i}"} for i in range(start, start + count)]


@for_each("write, ending", [(write_jsonl, "jsonl"), (write_csv, "csv"), (write_parquet, "parquet")])
def test_shards_are_one_source_in_their_order(tmp_path, write, ending):
    for shard, (start, count) in enumerate([(0, 3), (3, 1), (4, 5)]):
        write(tmp_path, numbered(start, count), f"pairs-{shard:05d}-of-00003.{ending}")
    write(tmp_path, numbered(0, 2), f"other.{ending}")
    sources = open_dataset(tmp_path)
    assert {name: len(rows) for name, rows in sources.items()} == {"other": 2, "pairs": 9}
    assert [dict(sources["pairs"][i]) for i in range(9)] == numbered(0, 9)
    assert sources["pairs"][-1] == sources["pairs"][8]
    for beyond in (9, -10):
        with pytest.raises(IndexError):
            sources["pairs"][beyond]
    only = open_dataset(tmp_path / f"pairs-*.{ending}")
    assert {name: len(rows) for name, rows in only.items()} == {"pairs": 9}


def test_sources_and_rows_are_named_by_files_and_folders(tmp_path):
    # A row of a shard is named by its file.
    for shard in range(2):
        name = f"pairs-0000{shard}-of-00002.jsonl"
        (tmp_path / name).write_text('{"query": "q", "positive": "p"}\n{"query"\n')
    rows = open_dataset(tmp_path)["pairs"]
    assert isinstance(rows, Shards)
    with pytest.raises(BadExample, match="example 'line 2': no JSON"):
        rows[3]
    assert rows.row_id(3) == "pairs-00001-of-00002.jsonl line 2"

    # Folders below come before the name.
    (tmp_path := tmp_path / "folders").mkdir()
    for folder in ("one", "two", ".hidden", "images"):
        (tmp_path / folder).mkdir()
    write_jsonl(tmp_path, numbered(0, 1), "top.jsonl")
    write_jsonl(tmp_path / "one", numbered(0, 2), "a.jsonl")
    write_jsonl(tmp_path / "two", numbered(0, 3), "a.jsonl")
    write_jsonl(tmp_path / ".hidden", numbered(0, 3), "a.jsonl")
    (tmp_path / "images" / "a.png").write_bytes(b"")
    sources = open_dataset(tmp_path)
    assert {name: len(rows) for name, rows in sources.items()} == {"top": 1, "one/a": 2, "two/a": 3}
    assert sorted(open_dataset(tmp_path / "*" / "a.jsonl")) == ["one/a", "two/a"]

    # Two formats of one name are told apart by a pattern.
    (tmp_path := tmp_path / "formats").mkdir()
    write_jsonl(tmp_path, numbered(0, 1))
    write_csv(tmp_path, numbered(0, 1))
    with pytest.raises(ValueError, match="would be source 'pairs': pairs.csv, pairs.jsonl"):
        open_dataset(tmp_path)
    assert list(open_dataset(tmp_path / "*.csv")) == ["pairs"]


@for_each(
    "names, reason",
    [
        (
            ["a-00000-of-00003", "a-00002-of-00003"],
            "should have 3 shards, but shards 1 are missing",
        ),
        (["a-00000-of-00001", "a-00000-of-00002"], "should have 2 shards"),
        (["a-00000-of-00001", "a"], "there are too many"),
    ],
)
def test_shards_that_do_not_belong_together(tmp_path, names, reason):
    for name in names:
        write_jsonl(tmp_path, numbered(0, 1), f"{name}.jsonl")
    with pytest.raises(ValueError, match=reason):
        open_dataset(tmp_path)


def test_saved_datasets(tmp_path):
    saved = WRITERS["saved"](tmp_path, numbered(0, 7))
    for path, name in ((saved, "pairs"), (saved / "pairs", "pairs"), (tmp_path, "saved/pairs")):
        sources = open_dataset(path)
        assert list(sources) == [name]
        assert [sources[name][i] for i in range(7)] == numbered(0, 7)
    state = saved / "pairs" / "state.json"
    (data, *_) = sorted((saved / "pairs").glob("*.arrow"))
    os.rename(data, data.with_suffix(".elsewhere"))
    with pytest.raises(FileNotFoundError, match=f"lacks {data.name}, which its state.json names"):
        open_dataset(saved)
    state.write_text(json.dumps({"_data_files": [], "_indices_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(ValueError, match="save it again"):
        open_dataset(saved)
    state.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        open_dataset(saved)


def test_what_is_no_data_and_compressed_files_beside_others(tmp_path, caplog):
    # What is no data is an error.
    with pytest.raises(FileNotFoundError, match="no data in .*expected a folder that TFDS"):
        open_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is nothing of that name"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no file matches"):
        open_dataset(tmp_path / "absent-*.jsonl")
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match="There is rows.json: .* an object a line"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="rows.json is of no known format"):
        open_dataset(tmp_path / "rows.json")
    for ending in ("parquet", "arrow", "tar"):
        (tmp_path / f"broken.{ending}").write_bytes(b"broken" * 200)
        with pytest.raises(ValueError, match=f"broken.{ending} is no "):
            open_dataset(tmp_path / f"broken.{ending}")

    # Compressed files beside others are told.
    (tmp_path := tmp_path / "compressed").mkdir()
    write_jsonl(tmp_path, numbered(0, 1))
    (tmp_path / "more.jsonl.gz").write_bytes(b"")
    assert list(open_dataset(tmp_path)) == ["pairs"]
    assert "['more.jsonl.gz'] cannot be read at any place" in caplog.text


def test_a_fingerprint_changes_with_the_data(tmp_path):
    assert fingerprint(tmp_path) == "" == fingerprint(tmp_path / "absent")
    write_jsonl(tmp_path, numbered(0, 3))
    before = fingerprint(tmp_path)
    assert before == fingerprint(tmp_path) and before
    assert fingerprint(tmp_path / "*.jsonl") == fingerprint(tmp_path / "pairs.jsonl") == before
    write_jsonl(tmp_path, [*numbered(0, 2), *numbered(5, 1)])
    assert fingerprint(tmp_path) != before
    write_tar(tmp_path, numbered(0, 1))
    assert fingerprint(tmp_path) not in (before, "")
