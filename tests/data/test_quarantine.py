"""The quarantine file: every item once, across restarts and crashes; too many stop the run."""

import json
import pathlib

import pytest

from unime_jax.data.quarantine import BadItem, Quarantine, read_quarantine

A = BadItem("shapes", "1", "a.png", "image is missing")
B = BadItem("shapes", "2", "", "empty text and no image")


def test_written_once_under_any_name_and_across_restarts(tmp_path):
    # Written once and across restarts.
    path = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(path)
    quarantine.add([], read=8)
    assert not path.exists()
    quarantine.add([A, A], read=8)
    quarantine.add([A], read=8)
    again = Quarantine(path)
    again.add([A, B], read=8)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [A._asdict(), B._asdict()]
    assert lines[0].keys() == {"source", "id", "path", "reason"}
    assert len(again) == 2 and read_quarantine(path) == [A, B]

    # Half written line survives.
    path = tmp_path / "quarantine.jsonl"
    path.write_text(json.dumps(A._asdict()) + '\n{"source": "sha')
    Quarantine(path).add([A, B], read=4)
    assert read_quarantine(path) == [A, B]

    # Names of any characters are written and none is hidden
    (tmp_path := tmp_path / "next").mkdir()
    path = tmp_path / "quarantine.jsonl"
    strange = BadItem("größe", "a\ud800", "exe\u202egnp.jpg", "\x1b[2J")
    Quarantine(path).add([A, strange, BadItem("größe", "1", "", "empty")], read=3)
    lines = path.read_text().splitlines()
    assert all(line.isprintable() for line in lines) and "größe" in lines[2]
    assert read_quarantine(path)[1] == strange
    Quarantine(path).add([strange], read=1)
    assert len(path.read_text().splitlines()) == 3


def test_too_many_stop_the_run(tmp_path):
    # Too many stop the run.
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, max_share=0.1, min_read=100)
    quarantine.add([A] * 9, read=90)
    quarantine.add([A], read=10)  # exactly the limit
    with pytest.raises(ValueError, match=r"11 of 101 .* limit of 10.0%.*empty text.*quarantine"):
        quarantine.add([B], read=1)
    assert read_quarantine(path) == [A, B]  # written before the run stops

    # Few reads prove nothing.
    quarantine = Quarantine(tmp_path / "q.jsonl", max_share=0.1, min_read=100)
    quarantine.add([A] * 99, read=99)
    assert (quarantine.bad, quarantine.read) == (99, 99)
    with pytest.raises(ValueError, match="99 of 100"):
        quarantine.add([], read=1)

    # Limit zero stops at the first.
    with pytest.raises(ValueError, match="1 of 8"):
        Quarantine(tmp_path / "q.jsonl", max_share=0.0, min_read=1).add([A], read=8)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Quarantine(tmp_path / "q.jsonl", max_share=5)

    # All stop by what all have read. A process that itself saw nothing bad stops with the
    # others, and none is left waiting.
    (tmp_path := tmp_path / "next").mkdir()
    lists = [
        Quarantine(tmp_path / "quarantine.jsonl", 0.1, min_read=8, process_index=process)
        for process in range(2)
    ]
    lists[1].note([B])
    for own in lists:
        own.count(bad=0, read=10)
        with pytest.raises(ValueError, match="3 of 20 examples"):
            own.count(bad=3, read=10)
    assert read_quarantine(lists[0].path) == [B]


def test_processes_write_files_of_their_own_and_the_first_merges(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    lists = [Quarantine(path, process_index=process) for process in range(3)]
    for process, items in enumerate(([A], [A], [B])):
        lists[process].note(items)
    assert read_quarantine(path) == [A] and read_quarantine(tmp_path / "quarantine-2.jsonl") == [B]
    lists[1].merge()  # not its task
    assert read_quarantine(path) == read_quarantine(tmp_path / "quarantine-1.jsonl") == [A]
    lists[0].merge()
    assert read_quarantine(path) == [A, B]
    again = Quarantine(path)  # alone, after a restart
    again.merge()
    assert read_quarantine(path) == [A, B]


def test_a_full_disk_is_named(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    quarantine._own = pathlib.Path("/dev/full")
    with pytest.raises(RuntimeError, match="/dev/full cannot be written: No space left"):
        quarantine.note([A])
