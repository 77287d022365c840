"""The window of a trace: which steps, and that it is written however a loop ends."""

import contextlib

import jax
import pytest

from unime_jax.operations.profiling import ProfileWindow


@pytest.fixture
def calls(monkeypatch):
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: found.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


def loop(folder, calls, window, steps, error=None):
    first, count = window
    with contextlib.suppress(KeyError), ProfileWindow(folder, first_step=first, steps=count) as p:
        for step in steps:
            p.before(step)
            calls.append(step)
            if step == error:
                raise KeyError
            p.after(step, {"loss": 0.5})
    return calls


def test_windows(tmp_path, calls):
    assert loop(tmp_path, calls, (2, 2), range(1, 6)) == [1, "start", 2, 3, "stop", 4, 5]


def test_none(tmp_path, calls):
    assert loop(tmp_path, calls, (2, 0), range(1, 4)) == [1, 2, 3]


def test_a_resumed_run_traces_what_is_left(tmp_path, calls):
    assert loop(tmp_path, calls, (2, 3), range(4, 6)) == ["start", 4, "stop", 5]


def test_the_loop_may_end_first(tmp_path, calls):
    assert loop(tmp_path, calls, (2, 9), range(1, 3)) == [1, "start", 2, "stop"]
    calls.clear()
    assert loop(tmp_path, calls, (1, 9), range(1, 3), error=2) == ["start", 1, 2, "stop"]


def test_process_0_only(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert loop(tmp_path, calls, (1, 1), [1]) == [1]
