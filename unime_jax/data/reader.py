"""Batches that are waited for without being at their mercy: a read that hangs can be left."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1
CLOSE_SECONDS = 5.0


class Reader(Generic[T]):
    """An iterator's values, fetched one by one, when asked, by a thread of its own.

    The main thread can so leave a read that never returns: of a pipe, or of a dead file server.

    Args:
      close: ends the iterator; with a read that hangs, it may hang as well.
    """

    def __init__(self, values: Iterator[T], close: Callable[[], None]):
        self._values, self._close = values, close
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._serve, name="reader", daemon=True)
        self._thread.start()
        self.hangs = False

    def next(self, leave: Callable[[], bool]) -> T | None:
        """The next value; None as soon as `leave()`, while it is still waited for.

        Raises:
          what the iterator raises.
        """
        self._asked.put(True)
        while True:
            try:
                value, error = self._answers.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if leave():
                    self.hangs = True
                    return None
                continue
            if error is not None:
                raise error
            return value

    def close(self) -> None:
        """Ends the iterator; what does not end within seconds is left, and `hangs` is set."""
        self._asked.put(False)
        closing = threading.Thread(target=self._end, name="reader closes", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        self.hangs = closing.is_alive()

    def _serve(self) -> None:
        while self._asked.get():
            try:
                answer: tuple[T | None, BaseException | None] = next(self._values), None
            except BaseException as error:  # raised again where it is asked for
                answer = None, error
            self._answers.put(answer)

    def _end(self) -> None:
        self._close()
        self._thread.join()
