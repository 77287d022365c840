"""Work ahead in threads: in order, bounded, and errors where they belong."""

import threading
import time

import pytest

from tests.tables import for_each
from unime_jax.data.ahead import map_ahead


@for_each("ahead", [0, 1, 7, 100])
def test_order(ahead):
    def slow_at_first(n):
        time.sleep(0.01 if n < 3 else 0)
        return n * n

    assert list(map_ahead(slow_at_first, range(20), ahead=ahead)) == [n * n for n in range(20)]
    assert list(map_ahead(slow_at_first, [], ahead=ahead)) == []


def test_threads_work_ahead_as_far_as_told():
    # No further ahead than told.
    taken = []

    def values():
        for n in range(100):
            taken.append(n)
            yield n

    found = map_ahead(lambda n: n, values(), ahead=5)
    assert next(found) == 0
    assert len(taken) == 6
    found.close()
    assert len(taken) == 6

    # Threads are at work meanwhile.
    started = threading.Event()

    def call(n):
        if n == 1:
            started.set()
        return n

    found = map_ahead(call, range(3), ahead=2)
    assert next(found) == 0
    assert started.wait(10)
    assert list(found) == [1, 2]

    # An error comes in its place.
    def call(n):
        if n == 3:
            raise ValueError("three")
        return n

    found = map_ahead(call, range(10), ahead=8)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(found)
    assert list(found) == []
