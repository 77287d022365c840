"""Joining and ending together, by processes that train nothing: seconds each."""

import os
import pathlib
import signal
import time
from concurrent import futures

import pytest

from tests import children
from tests.multihost import member
from tests.multihost.launch import free_port
from tests.multihost.member import LATER
from tests.tables import for_each
from unime_jax.operations import processes

HEARTBEAT = 4  # seconds; LATER is longer


def members(
    logs: pathlib.Path,
    *whats: str,
    folders: tuple = (),
    join_seconds: int = 30,
    present: int | None = None,
):
    """(return code, output) of each process, and how long they took; `present` of them exist."""
    port, started = free_port(), time.monotonic()
    running = []
    for number, what in enumerate(whats[:present]):
        arguments = {
            "coordinator": f"localhost:{port}",
            "process_id": number,
            "num_processes": len(whats),
            "join_seconds": join_seconds,
            "heartbeat_seconds": HEARTBEAT,
        }
        given = (arguments, what, *folders[number : number + 1])
        running.append(children.start(member.run, *given, output=logs / f"{number}.log"))
    try:
        codes = [one.wait(timeout=120) for one in running]
    finally:
        for one in running:
            one.kill()
    seconds = time.monotonic() - started
    return [(code, last_word(one)) for code, one in zip(codes, running)], seconds


def last_word(ended: children.Child) -> str:
    """What it said; of one that was aborted, until its witness has spoken."""
    end = time.monotonic() + 10
    while ended.returncode == -signal.SIGABRT and time.monotonic() < end:
        if ended.said().rstrip().endswith(processes.RESUMES):
            break
        time.sleep(0.01)
    return ended.said()


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """By what process 1 of 3 does, how all end; both at once, as they wait most of the time."""
    with futures.ThreadPoolExecutor() as pool:
        ends = {
            what: pool.submit(members, tmp_path_factory.mktemp(what), "wait", what, "wait")
            for what in ("raise", "killed")
        }
    return {what: end.result() for what, end in ends.items()}


@pytest.mark.slow
def test_who_is_done_early_waits_for_the_others(tmp_path):
    """Longer than the heartbeat timeout, which is for processes that are silent."""
    assert LATER > HEARTBEAT
    found, seconds = members(tmp_path, "slow", "wait")
    assert [code for code, _ in found] == [0, 0], found
    assert all("left" in text for _, text in found) and seconds > LATER
    assert not any("ended from outside" in text for _, text in found)


@pytest.mark.parametrize("failing", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_error_in_one_process_ends_all_and_is_told_by_all(failing, ended, tmp_path):
    found, seconds = ended["raise"] if failing else members(tmp_path, "raise", "wait", "wait")
    assert [code for code, _ in found] == [1, 1, 1], found
    for number, (_, text) in enumerate(found):
        assert "error: this one has no data" in text and "The same command" in text
        other = f"process {failing} failed, so process {number} ends"
        assert (other in text) == (number != failing)
        assert "ended from outside" not in text
    assert seconds < 60


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_killed_ends_the_others(killed, ended, tmp_path):
    """They wait for it, and cannot be told; JAX notices its silence, and aborts them."""
    found, seconds = ended["killed"] if killed else members(tmp_path, "killed", "wait", "wait")
    assert found[killed][0] == -9
    for number, (code, text) in enumerate(found):
        if number == killed:
            continue
        assert code not in (0, None), text
        assert f"process {number} of 3 joined through localhost" in text
        assert "if one dies, all end within about 4 s; the same command then resumes" in text
        assert "This most likely indicates that another task died" in text
        # Aborted by JAX at once, or told by the failed wait what has happened.
        ended = f"error: process {number} of 3 was ended from outside: killed" in text
        assert ended or "another process failed first: see what it says" in text
        assert text.rstrip().endswith(processes.RESUMES)  # the last word, not JAX's
        if killed:  # by process 0, which all ask; without it, nobody can say which it is
            assert "stopped sending heartbeats):\n1\n" in text
    assert seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("present", [1, 2])
def test_processes_that_do_not_come_are_not_awaited_for_ever(present, tmp_path):
    found, seconds = members(tmp_path, "wait", "wait", "wait", join_seconds=3, present=present)
    assert [code for code, _ in found] == [1] * present and seconds < 60
    assert "error: process 0 of 3 waited for the others at localhost:" in found[0][1]
    assert "not all came within 3 s" in found[0][1]
    if present == 2:
        assert "process 1 of 3 was not joined with the others through process 0" in found[1][1]


def test_a_coordinator_that_does_not_answer_is_named(tmp_path):
    arguments = {"coordinator": f"localhost:{free_port()}", "process_id": 2, "num_processes": 4}
    done = children.start(
        member.run, arguments | {"join_seconds": 1}, "wait", output=tmp_path / "log"
    )
    assert done.wait(60) == 1
    assert "process 2 of 4 was not joined" in done.said()
    assert arguments["coordinator"] in done.said() and "within 1 s" in done.said()


@pytest.mark.slow
def test_without_a_cluster_the_flags_are_named(tmp_path):
    done = children.start(
        *(member.run, {}, "wait"),
        output=tmp_path / "log",
        environment={key: x for key, x in os.environ.items() if not key.startswith("SLURM")},
    )
    assert done.wait(60) == 1
    assert "alone: --distributed: JAX finds no cluster" in done.said()
    assert "--coordinator=host:port" in done.said()


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_noticed(tmp_path):
    found, _ = members(tmp_path, "wait", "wait", folders=(tmp_path / "a", tmp_path / "b"))
    assert [code for code, _ in found] == [1, 1]
    assert all(f"{tmp_path / 'b'} of process 1 is not process 0's" in text for _, text in found)


@pytest.mark.slow
def test_a_shared_folder_is_left_as_it_was(tmp_path):
    found, _ = members(tmp_path, "wait", "wait", folders=(tmp_path / "a", tmp_path / "a"))
    assert [code for code, _ in found] == [0, 0], found
    assert list((tmp_path / "a").iterdir()) == []


@for_each(
    ("given", "message"),
    [
        ({"coordinator": "a:1"}, "--process_id and --num_processes must be given as well"),
        ({"process_id": 0, "num_processes": 2}, "--coordinator must be given as well"),
        ({"coordinator": "a", "process_id": 0, "num_processes": 2}, "must be host:port"),
        ({"coordinator": "a:1", "process_id": 2, "num_processes": 2}, "--process_id=2 must be"),
        ({"coordinator": "a:1", "process_id": -1, "num_processes": 2}, "--process_id=-1 must be"),
    ],
)
def test_flags_that_make_no_sense_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        processes.join(**given)


def test_alone_there_is_nobody_to_tell(tmp_path):
    processes.check_shared(tmp_path / "never made")
    processes.fail("nothing happens", expected=True)
    processes.leave()
    assert list(tmp_path.iterdir()) == []
