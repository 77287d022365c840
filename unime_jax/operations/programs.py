"""Programs that compile once each, several at a time in threads where they are known ahead."""

import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any

THREADS = min(8, os.cpu_count() or 1)  # programs that compile at a time

Compile = Callable[[], Any]
_Future = concurrent.futures.Future[Any]


class Programs:
    """Compiled programs by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: dict[Hashable, _Future] = {}

    def compiled(self, key: Hashable, compile_it: Compile) -> Any:
        """The program of a key: waits for it, or compiles it in this thread if it is new.

        What `compile_it` raises is raised here, and the key is new again.
        """
        future, is_new = self._future(key)
        if is_new:
            self._run(key, compile_it, future)
        return future.result()

    @contextlib.contextmanager
    def ahead(self) -> Iterator[Callable[[Hashable, Compile], None]]:
        """A function that lets a thread compile the program of a key, if it is new.

        The end waits for programs that are being compiled, and drops those that are not begun.
        """
        begun: dict[Hashable, _Future] = {}
        with concurrent.futures.ThreadPoolExecutor(THREADS, "compiling") as pool:

            def start(key: Hashable, compile_it: Compile) -> None:
                if key in self._futures:
                    return
                future, is_new = self._future(key)
                if is_new:
                    begun[key] = future
                    pool.submit(self._run, key, compile_it, future)

            try:
                yield start
            finally:
                pool.shutdown(cancel_futures=True)
                for key, future in begun.items():
                    if not future.done():
                        self._forget(key)
                        future.cancel()  # another thread may wait for it

    def _future(self, key: Hashable) -> tuple[_Future, bool]:
        """The future of a key's program, and whether it is new: whoever gets it so compiles."""
        with self._lock:
            is_new = key not in self._futures
            return self._futures.setdefault(key, concurrent.futures.Future()), is_new

    def _run(self, key: Hashable, compile_it: Compile, future: _Future) -> None:
        try:
            future.set_result(compile_it())
        except BaseException as error:
            self._forget(key)
            future.set_exception(error)

    def _forget(self, key: Hashable) -> None:
        with self._lock:
            self._futures.pop(key, None)
