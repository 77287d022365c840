"""Where time goes: each second counts once, also over restarts."""

import json

import pytest

from unime_jax.operations import goodput
from unime_jax.operations.goodput import PHASES, Goodput


@pytest.fixture
def pass_time(monkeypatch):
    """A clock that moves only when it is told to."""
    now = [100.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def read(tmp_path):
    return json.loads((tmp_path / "goodput.json").read_text())


def test_every_second_counts_once(tmp_path, pass_time):
    clock = Goodput(tmp_path, writes=True)
    pass_time(1)
    with clock.spend("compute"):
        pass_time(2)
        with clock.spend("input"):
            pass_time(4)
        with pytest.raises(KeyError), clock.spend("checkpoint"):
            pass_time(8)
            raise KeyError
        pass_time(16)
    pass_time(32)
    clock.write()
    found = read(tmp_path)
    assert found["seconds"].keys() == found["shares"].keys() == set(PHASES)
    spent = {name: seconds for name, seconds in found["seconds"].items() if seconds}
    assert spent == {"other": 33, "compute": 18, "input": 4, "checkpoint": 8}
    assert found["shares"]["compute"] == pytest.approx(18 / 63, abs=1e-4)
    assert sum(found["shares"].values()) == pytest.approx(1, abs=1e-3)


def run(tmp_path, pass_time, first, until, dies=False):
    """Steps of a second each, with a checkpoint after every fourth; the restart takes one, too."""
    clock = Goodput(tmp_path, writes=True)
    pass_time(1)
    clock.resumed(first)
    with clock.spend("compute"):
        for step in range(first + 1, until + 1):
            pass_time(1)
            clock.stepped(step)
            if step % 4 == 0:
                clock.saved(step)
        clock.write()  # as every ten seconds
    return clock


def test_restarts_lose_steps_and_the_file_is_written_now_and_then(tmp_path, pass_time):
    # Steps after the last checkpoint are lost.
    run(tmp_path, pass_time, 0, 7)
    run(tmp_path, pass_time, 4, 9)  # 5, 6 and 7 once more
    run(tmp_path, pass_time, 4, 12)  # the checkpoint of step 8 was not good
    found = read(tmp_path)
    assert found["starts"] == 3 and found["steps"] == 12
    assert found["seconds"]["compute"] == 12
    assert found["seconds"]["lost"] == 3 + 5
    assert found["seconds"]["other"] == 3

    # It is written every ten seconds.
    (tmp_path := tmp_path / "another").mkdir()
    clock = Goodput(tmp_path, writes=True)
    for step in range(1, 26):
        pass_time(1)
        clock.stepped(step)
        assert (tmp_path / "goodput.json").exists() == (step >= 10)
    assert read(tmp_path)["steps"] == 20


def test_a_file_that_was_not_finished_is_no_obstacle(tmp_path, pass_time):
    (tmp_path / "goodput.json").write_text('{"seconds"')
    run(tmp_path, pass_time, 0, 4)
    assert read(tmp_path)["starts"] == 1

    # One process writes
    run(tmp_path, pass_time, 0, 4)
    before = read(tmp_path)
    clock = Goodput(tmp_path, writes=False)
    pass_time(20)
    clock.stepped(5)
    clock.saved(8)
    assert read(tmp_path) == before
