"""Tar shards: members of one name are a row, as webdataset has it."""

import gzip
import io
import json
import tarfile

import pytest

from tests.tables import for_each
from unime_jax.data.formats import open_dataset
from unime_jax.data.quarantine import BadExample


def write(file, members):
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def test_rows_are_members_of_a_name_and_shards_those_of_a_last_number(tmp_path):
    # Members of a name are a row.
    long = "d" * 120  # a name that takes a header of its own
    members = [
        ("a/001.jpg", b"one"),
        ("a/001.TXT", "größe".encode()),
        ("a/._001.jpg", b"of a Mac"),
        (f"{long}/x.y.json", b'{"k": 1, "txt": "other"}'),
        (f"{long}/x.y.left.png", b"left"),
        ("no ending", b""),
        ("b.json", json.dumps({"key": "v", "jpg": "no"}).encode()),
        ("b.jpg", b"pixels"),
    ]
    rows = open_dataset(write(tmp_path / "pairs.tar", members))["pairs"]
    assert [rows[i] for i in range(len(rows))] == [
        {"jpg": b"one", "txt": "größe", "image": b"one"},
        {"y.json": b'{"k": 1, "txt": "other"}', "y.left.png": b"left"},
        {"key": "v", "jpg": b"pixels", "image": b"pixels"},
    ]
    assert [rows.row_id(i) for i in range(3)] == ["a/001", f"{long}/x", "b"]
    assert set(rows.columns) == {"jpg", "txt", "image", "y.json", "y.left.png", "key"}

    # Shards differ in their last number alone.
    (tmp_path := tmp_path / "shards").mkdir()
    for name in ("cc3m-000", "cc3m-001", "00000", "00001"):
        write(tmp_path / f"{name}.tar", [("a.txt", name.encode())])
    sources = open_dataset(tmp_path)
    assert {name: len(rows) for name, rows in sources.items()} == {tmp_path.name: 2, "cc3m": 2}
    assert [sources["cc3m"][i]["txt"] for i in range(2)] == ["cc3m-000", "cc3m-001"]


@for_each(
    "member, reason",
    [
        (("a.json", b"{"), "its member .json cannot be read"),
        (("a.json", b"[]"), "it is no JSON object, but \\[\\]"),
        (("a.txt", b"\xff"), "its member .txt cannot be read: 'utf-8'"),
    ],
)
def test_a_bad_member_is_a_bad_row(tmp_path, member, reason):
    rows = open_dataset(write(tmp_path / "pairs.tar", [member, ("b.txt", b"good")]))["pairs"]
    with pytest.raises(BadExample, match=f"source 'pairs', example 'a': .*{reason}"):
        rows[0]
    assert rows[1] == {"txt": "good"}


def test_what_is_no_shard(tmp_path):
    file = write(tmp_path / "pairs.tar", [("a.txt", b"x" * 2000), ("a.txt", b"")])
    with pytest.raises(ValueError, match="a has two members .txt"):
        open_dataset(file)
    file = write(tmp_path / "pairs.tar", [("a.txt", b"x" * 2000), ("b.txt", b"x" * 9000)])
    whole = file.read_bytes()
    for content in (gzip.compress(whole), whole[:4000], whole[:100], b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="no tar file that can be read at any place"):
            open_dataset(file)
