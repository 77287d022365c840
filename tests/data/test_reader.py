"""Values from an iterator that may hang: in order, with its errors, and left when told to."""

import threading
import time

import pytest

from unime_jax.data import reader
from unime_jax.data.reader import Reader


def never():
    return False


def test_values_and_errors_come_in_order_and_only_when_asked_for(monkeypatch):
    # Values come in order and only when asked for.
    taken = []

    def values():
        for number in range(3):
            taken.append(number)
            yield number

    closed = []
    read = Reader(values(), lambda: closed.append(True))
    assert [read.next(never) for _ in range(2)] == [0, 1] and taken == [0, 1]
    assert read.next(never) == 2
    with pytest.raises(StopIteration):
        read.next(never)
    read.close()
    assert closed == [True] and not read.hangs

    # Errors keep where they came from.
    def values():
        yield 1
        raise KeyError("bad row")

    read = Reader(values(), lambda: None)
    read.next(never)
    with pytest.raises(KeyError, match="bad row") as raised:
        read.next(never)
    assert raised.traceback[-1].name == "values"
    read.close()

    # A read that hangs is left
    monkeypatch.setattr(reader, "CLOSE_SECONDS", 0.3)
    end, told = threading.Event(), threading.Event()

    def values():
        yield 1
        end.wait()
        yield 2

    read = Reader(values(), end.wait)
    assert read.next(told.is_set) == 1  # told to leave or not: what is there is taken
    threading.Timer(0.3, told.set).start()
    began = time.monotonic()
    assert read.next(told.is_set) is None and 0.2 < time.monotonic() - began < 5
    read.close()
    assert read.hangs
    end.set()
