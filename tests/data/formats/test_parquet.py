"""Parquet: row groups are read once while they are kept, by one thread each."""

import concurrent.futures
import threading

import pyarrow
import pyarrow.parquet
import pytest

from tests.data.formats.writers import WRITERS, write_parquet
from unime_jax.data.formats import open_dataset, parquet
from unime_jax.data.quarantine import BadExample

ROWS = [{"query": f"q{i}", "positive": f"p{i}"} for i in range(20)]


def test_groups_are_read_once_kept_up_to_a_limit_and_tried_again(tmp_path, monkeypatch):
    # A group is read once by many threads.
    reads = []
    read = parquet._read
    monkeypatch.setattr(parquet, "_read", lambda *key: reads.append(key[1]) or read(*key))
    rows = open_dataset(write_parquet(tmp_path, ROWS))["pairs"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(rows.__getitem__, [*range(20)] * 8)) == ROWS * 8
    assert sorted(reads) == list(range(7))

    # Groups beyond the limit are dropped, the oldest first.
    table = pyarrow.table({"a": [1] * 100})
    groups = parquet.Groups(2 * table.nbytes)
    reads = []

    def get(number):
        groups.get((None, number, ()), lambda: reads.append(number) or table)

    for number in (0, 1, 0, 2, 0, 1):  # 1 makes room for 2
        get(number)
    assert reads == [0, 1, 2, 1]
    large = parquet.Groups(1)  # one is kept, however large
    reads.clear()
    for _ in range(3):
        large.get((None, 0, ()), lambda: reads.append(0) or table)
    assert reads == [0]

    # One that cannot be read is told to all who wait, and tried again.
    groups = parquet.Groups(2**20)
    begun, go_on = threading.Event(), threading.Event()

    def broken():
        begun.set()
        assert go_on.wait(10)
        raise OSError("corrupt")

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(groups.get, ("f", 0, ()), broken)
        assert begun.wait(10)
        second = pool.submit(groups.get, ("f", 0, ()), broken)
        go_on.set()
        for waiting in (first, second):
            with pytest.raises(OSError, match="corrupt"):
                waiting.result(10)
    assert groups.get(("f", 0, ()), lambda: pyarrow.table({"a": [1]})).num_rows == 1


def test_damaged_groups_leave_rows_out_and_large_ones_are_told(tmp_path, monkeypatch, caplog):
    # A damaged group leaves its rows out.
    table = pyarrow.table({"a": ["x" * 100 + str(i) for i in range(20)]})
    file = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(table, file, row_group_size=10, compression="zstd")
    metadata = pyarrow.parquet.read_metadata(file)
    column = metadata.row_group(0).column(0)
    content = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.write_bytes(content)
    rows = open_dataset(file)["pairs"]
    with pytest.raises(BadExample, match="example '3': row group 0 of pairs.parquet cannot be rea"):
        rows[3]
    assert rows[13]["a"].endswith("13")

    # Large groups are told.
    (tmp_path := tmp_path / "large").mkdir()
    monkeypatch.setattr(parquet, "SLOW_GROUP", 10)
    monkeypatch.setattr(parquet, "KEPT_BYTES", 20)
    open_dataset(write_parquet(tmp_path, ROWS))
    assert "rows are read a group at a time" in caplog.text and "row_group_size" in caplog.text


def test_rows_of_arrow_files_of_either_kind(tmp_path):
    table = pyarrow.table({"a": list(range(9))})
    for kind, new in (("stream", pyarrow.ipc.new_stream), ("file", pyarrow.ipc.new_file)):
        with new(str(tmp_path / f"{kind}.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    sources = open_dataset(tmp_path)
    for rows in sources.values():
        assert [rows[i]["a"] for i in range(-9, 9)] == [*range(9)] * 2
    assert len(sources) == 2
    (tmp_path / "stream.arrow").write_bytes((tmp_path / "stream.arrow").read_bytes()[:-60])
    with pytest.raises(ValueError, match="stream.arrow is no Arrow file"):
        open_dataset(tmp_path)
    assert len(open_dataset(WRITERS["parquet"](tmp_path, []))["pairs"]) == 0
