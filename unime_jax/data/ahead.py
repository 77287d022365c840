"""Host work in threads, ahead of its consumer."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

THREADS = min(16, os.cpu_count() or 1)


def map_ahead(
    call: Callable[[A], B], values: Iterable[A], *, ahead: int
) -> Generator[B, None, None]:
    """`call` of every value, in order; threads are at work on up to `ahead` of the next ones.

    An exception is raised where its result would have come, and ends the iteration. Closing the
    generator waits for the calls that have begun, and drops the others.
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
