"""Indexes of large files: kept, made anew where stale or damaged, and never trusted blindly."""

import os
import pathlib
import pickle

import numpy as np
import pytest

from tests.data.formats.writers import WRITERS, write_jsonl
from tests.tables import for_each
from unime_jax.data.formats import file_reads, index_cache, jsonl, open_dataset
from unime_jax.data.formats.file_reads import ChangedFileError, stamp

ROWS = [{"query": f"q{i}", "positive": f"p{i}"} for i in range(20)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The indexes, kept of files of any size."""
    monkeypatch.setattr(index_cache, "MIN_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unime_jax" / "indexes"


def fail(*_):
    raise AssertionError("the file is read again")


@for_each("format, module", [("jsonl", "jsonl"), ("csv", "csv"), ("tar", "webdataset")])
def test_an_index_is_made_once(tmp_path, monkeypatch, format, module):
    file = WRITERS[format](tmp_path, ROWS)
    first = open_dataset(file)["pairs"]
    monkeypatch.setattr(f"unime_jax.data.formats.{module}._index", fail)
    again = open_dataset(file)["pairs"]
    assert len(again) == len(first) == 20
    assert [again[i] for i in range(20)] == [first[i] for i in range(20)] == ROWS


def damage(file: pathlib.Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@for_each(
    "spoil",
    [
        damage,
        lambda file: file.write_bytes(file.read_bytes()[:100]),
        lambda file: file.write_bytes(b""),
        lambda file: np.savez(file, other=np.zeros(1)),
    ],
)
def test_a_damaged_index_is_made_anew(tmp_path, spoil):
    file = write_jsonl(tmp_path, ROWS)
    open_dataset(file)
    place = index_cache.cache_file(stamp(file), "jsonl")
    good = place.read_bytes()
    spoil(place)
    rows = open_dataset(file)["pairs"]
    assert [rows[i] for i in range(20)] == ROWS
    with np.load(place) as repaired:
        assert len(repaired["starts"]) == 20
    assert len(place.read_bytes()) == len(good)


def test_a_stale_index_is_made_anew_and_a_file_that_changes_meanwhile_refused(
    tmp_path, monkeypatch
):
    # An index of an earlier file is made anew.
    file = write_jsonl(tmp_path, ROWS)
    open_dataset(file)
    other = [row | {"query": row["query"][::-1]} for row in ROWS[::-1]]
    write_jsonl(tmp_path, other)
    os.utime(file, ns=(1, 1))  # of another time, though as long
    rows = open_dataset(file)["pairs"]
    assert [rows[i] for i in range(20)] == other
    assert len(list(index_cache.cache_file(stamp(file), "jsonl").parent.iterdir())) == 1

    # A file must not change while it is indexed.
    file = write_jsonl(tmp_path, ROWS)
    index = jsonl._index

    def index_late(stamped):
        result = index(stamped)
        os.utime(file, ns=(1, 1))
        return result

    monkeypatch.setattr(jsonl, "_index", index_late)
    with pytest.raises(ChangedFileError):
        open_dataset(file)


def test_what_has_no_place_and_what_is_small_is_read_without_an_index(
    tmp_path, monkeypatch, caplog, cache
):
    # Without a folder to write to, rows are read all the same.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    rows = open_dataset(write_jsonl(tmp_path, ROWS))["pairs"]
    assert [rows[i] for i in range(20)] == ROWS
    assert "cannot be kept" in caplog.text and "Set XDG_CACHE_HOME" in caplog.text

    # Indexes of small files are not kept.
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_dataset(write_jsonl(tmp_path, ROWS))
    assert not cache.exists()


@for_each("format", ["jsonl", "csv", "tar", "parquet"])
def test_a_file_that_changes_while_it_is_used_ends_the_run(tmp_path, format):
    file = WRITERS[format](tmp_path, ROWS)
    rows = open_dataset(file)["pairs"]
    before = pickle.dumps(rows)
    with file.open("ab") as content:
        content.write(b"more")
    with pytest.raises(ChangedFileError, match="has changed since it was opened"):
        rows[0]
    with pytest.raises(ChangedFileError):
        pickle.loads(before)[0]


def test_no_more_files_are_open_than_allowed(tmp_path):
    count = 2 * file_reads.OPEN_FILES
    for i in range(count):
        write_jsonl(tmp_path, [ROWS[i % 20]], f"s{i}.jsonl")
    before = len(os.listdir("/proc/self/fd"))
    for i, rows in enumerate(map(open_dataset(tmp_path).get, [f"s{i}" for i in range(count)])):
        assert rows[0] == ROWS[i % 20]
    assert len(os.listdir("/proc/self/fd")) - before <= file_reads.OPEN_FILES
