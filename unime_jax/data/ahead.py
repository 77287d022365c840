"""Host work in threads, ahead of whoever takes its results."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

THREADS = min(16, os.cpu_count() or 1)


def map_ahead(call: Callable[[A], B], values: Iterable[A], *, ahead: int) -> Iterator[B]:
    """`call` of every value, in order; threads are at work on up to `ahead` of the next ones.

    An exception is raised where its result would have come, and ends the iteration.
    """
    started: collections.deque[concurrent.futures.Future[B]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        try:
            for value in values:
                started.append(pool.submit(call, value))
                if len(started) > ahead:
                    yield started.popleft().result()
            while started:
                yield started.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
