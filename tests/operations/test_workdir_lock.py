"""Locks on folders: one owner, whoever died is no obstacle, and nobody who lives loses his."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.tables import for_each
from unime_jax.operations import lock_owner, workdir_lock
from unime_jax.operations.workdir_lock import LockedError, owned

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(folder, *lines):
    """A process that holds the lock, and then does `lines`."""
    code = "\n".join(
        [
            "import os, pathlib, signal, sys, threading, time",
            "from unime_jax.operations import exits, workdir_lock",
            "workdir_lock.TOUCH_SECONDS = 0.2",
            f"folder = pathlib.Path({str(folder)!r})",
            "with workdir_lock.owned(folder, 'run.lock', what='trains in', wait=True):",
            "  print('held', flush=True)",
            *(f"  {line}" for line in lines),
        ]
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def left_behind(folder, age=0.0, **changes):
    """A lock of somebody else, who touched it so many seconds ago."""
    owner = dataclasses.replace(lock_owner.myself(), **changes)
    (folder / "run.lock").write_text(json.dumps(dataclasses.asdict(owner)))
    now = time.time()
    os.utime(folder / "run.lock", (now - age, now - age))


def hold(folder, **options):
    return owned(folder, "run.lock", what="trains in", **options)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(workdir_lock, "TOUCH_SECONDS", 0.2)
    monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(workdir_lock, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(workdir_lock, "SETTLE_SECONDS", 0.05)


def test_one_owner_at_a_time_and_the_other_is_told_who_it_is(tmp_path):
    process = start(tmp_path, "time.sleep(60)")
    try:
        with (
            pytest.raises(LockedError, match="is in use: process .* since 2.*trains in") as raised,
            hold(tmp_path),
        ):
            pass
        assert f"process {process.pid} on {os.uname().nodename}" in str(raised.value)
    finally:
        process.kill()
        process.wait()
    with hold(tmp_path):  # it was killed: at once
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []

    # A zombie owns nothing
    process = start(tmp_path, "time.sleep(60)")
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # nobody asks how it ended
    with hold(tmp_path):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    assert process.wait() == -signal.SIGKILL


@for_each(
    "changes",
    [
        {"pid": 2**22 + 1},  # no such process
        {"pid": 1, "began": "17"},  # another one's id
        {"began": "17"},  # this one's id
    ],
)
def test_a_dead_owner_on_this_host_is_no_obstacle(tmp_path, quick, changes):
    left_behind(tmp_path, **changes)
    with hold(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@for_each("name", ["host", "boot", "namespace"])
def test_an_owner_elsewhere_is_dead_when_silent(tmp_path, quick, monkeypatch, name):
    """Its process id means nothing here, be it that of a process that lives."""
    left_behind(tmp_path, age=60.0, **{name: "elsewhere"})
    began = time.monotonic()
    with hold(tmp_path):
        assert time.monotonic() - began < 0.9  # of one long silent nothing is awaited
    monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 0.4)
    left_behind(tmp_path, **{name: "elsewhere"}, pid=2**22 + 1)
    began = time.monotonic()
    with hold(tmp_path):
        assert time.monotonic() - began > 0.35


def test_an_owner_elsewhere_who_is_heard_of_keeps_it(tmp_path, quick):
    left_behind(tmp_path, host="elsewhere")
    end = threading.Event()

    def touch():
        while not end.wait(0.2):
            os.utime(tmp_path / "run.lock")

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(LockedError, match="on elsewhere"), hold(tmp_path):
            pass
    finally:
        end.set()
        thread.join()


@for_each("content", [b"", b"[]", b'{"host": 1}', b"\xff\xfe", b"[" * 5000])
def test_a_lock_that_cannot_be_read_is_stale_when_nobody_touches_it(
    tmp_path, quick, monkeypatch, content
):
    monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 0.2)
    (tmp_path / "run.lock").write_bytes(content)
    with hold(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_the_owner_touches_it_and_who_waits_gets_it_then(tmp_path, quick):
    with hold(tmp_path):
        os.utime(tmp_path / "run.lock", (0, 0))
        time.sleep(0.6)
        assert time.time() - (tmp_path / "run.lock").stat().st_mtime < 5

    # What was left by lookers is tidied
    for name in ("run.lock.abc", "run.lock.abc.now"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    with hold(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]

    # Who waits gets it when the other is done.
    process = start(tmp_path, "time.sleep(1)", "(folder / 'result').write_text('done')")
    with hold(tmp_path, wait=True):
        assert (tmp_path / "result").read_text() == "done"
    process.wait()


def test_an_end_without_finally_releases_it(tmp_path):
    process = start(
        tmp_path, "threading.Thread(target=exits.exit_now, args=[143]).start()", "time.sleep(60)"
    )
    assert process.wait(timeout=30) == 143
    assert list(tmp_path.iterdir()) == []

    # One that lost it ends. As of a host that was suspended for minutes.
    process = start(tmp_path, "time.sleep(60)")
    process.send_signal(signal.SIGSTOP)
    left_behind(tmp_path, token="another")
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=40) == workdir_lock.LOST
    assert json.loads((tmp_path / "run.lock").read_text())["token"] == "another"


@for_each("links", [True, False])
def test_of_many_who_take_over_one_gets_it(tmp_path, quick, monkeypatch, links):
    # A busy machine may hold up a thread for longer than `quick` lets it.
    monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 60.0)
    monkeypatch.setattr(workdir_lock, "SETTLE_SECONDS", 0.5)
    lost = []
    monkeypatch.setattr(workdir_lock.exits, "exit_now", lost.append)  # not the test's process
    if not links:

        def link(*_):
            raise PermissionError("no links on this file system")

        monkeypatch.setattr(os, "link", link)
    for _ in range(2):
        left_behind(tmp_path, pid=2**22 + 1)
        inside, most, got = [], [], []
        together = threading.Barrier(8)

        def contend(inside=inside, most=most, got=got, together=together):
            together.wait()
            try:
                with hold(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.3)
                    inside.pop()
                    got.append(1)
            except LockedError:
                pass

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == 1 and got and not lost
        assert list(tmp_path.iterdir()) == []
