"""The window of a trace: which steps, and that it is written however a loop ends."""

import contextlib

import jax
import pytest

from tests.tables import for_each
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


@for_each(
    ("window", "steps", "error", "expected"),
    [
        ((2, 2), range(1, 6), None, [1, "start", 2, 3, "stop", 4, 5]),
        ((2, 0), range(1, 4), None, [1, 2, 3]),
        ((2, 3), range(4, 6), None, ["start", 4, "stop", 5]),  # resumed: what is left
        ((2, 9), range(1, 3), None, [1, "start", 2, "stop"]),  # the loop may end first
        ((1, 9), range(1, 3), 2, ["start", 1, 2, "stop"]),
    ],
)
def test_windows(tmp_path, calls, window, steps, error, expected):
    calls.clear()
    assert loop(tmp_path, calls, window, steps, error) == expected


def test_process_0_only(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert loop(tmp_path, calls, (1, 1), [1]) == [1]
