"""SIGTERM and Ctrl-C, with something to save and without; in processes of their own, which end."""

import hashlib
import signal
import time

import pytest

from tests import children
from tests.tables import for_each
from unime_jax.operations.stop import STATUS, StopSignal


@pytest.fixture
def start(tmp_path):
    """Starts `call(*arguments)`; returns the process when it is in the midst of it."""
    started = []

    def run(call, *arguments):
        child = children.start(call, *arguments, output=tmp_path / f"{len(started)}.log")
        started.append(child)
        until_said(child, "ready")
        return child

    yield run
    for child in started:
        child.kill()


def until_said(child, word):
    end = time.monotonic() + 60
    while word not in child.said():
        assert child.poll() is None and time.monotonic() < end, child.said()
        time.sleep(0.01)


def computes(sleeps: bool) -> None:
    with StopSignal():
        print("ready", flush=True)
        if sleeps:
            time.sleep(60)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # compiled, as a compilation by XLA is


def saves(seconds: float) -> None:
    with StopSignal() as stop:
        stop.unsaved = True
        print("ready", flush=True)
        while not stop.told:
            time.sleep(0.01)
        print("told", flush=True)
        time.sleep(seconds)
        print("saved", flush=True)
    raise SystemExit(stop.status)


@for_each("number", [signal.SIGTERM, signal.SIGINT])
def test_without_anything_to_save_it_ends_at_once(start, number):
    """In compiled code, which no signal interrupts, as in Python's."""
    for sleeps in (False, True):
        process = start(computes, sleeps)
        time.sleep(0.2)
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number, sleeps
        assert time.monotonic() - began < 5, sleeps


def test_with_something_to_save_the_caller_ends_it(start):
    """A second Ctrl-C ends it at once; other signals that come again change nothing."""
    process = start(saves, 0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == STATUS == 143
    assert process.said().split() == ["ready", "told", "saved"]

    process = start(saves, 0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.said().split() == ["ready", "told", "saved"]
    process = start(saves, 60)
    process.send_signal(signal.SIGTERM)
    until_said(process, "told")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.said().split() == ["ready", "told"]

    # Everything is as before afterwards.
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(3):
        with StopSignal() as stop:
            assert signal.getsignal(signal.SIGTERM) != before and not stop.told
        assert signal.getsignal(signal.SIGTERM) == before
        assert signal.set_wakeup_fd(-1) == -1
