"""One thread that gathers what requests wait for into batches, and a bound on what may wait."""

import collections
import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np
from absl import logging
from jaxtyping import Float32

from unime_jax.batch import Row
from unime_jax.inference.encode import NonFiniteError
from unime_jax.serve.errors import RequestError
from unime_jax.serve.settings import Batching

EncodeRows = Callable[[Sequence[Row]], Float32[np.ndarray, "n D"]]
LONGEST_RETRY = 60  # seconds that a client is told to wait, at most


class Places:
    """How many items are accepted and not answered yet; more than `most` are refused."""

    def __init__(self, most: int):
        self.most = most
        self.taken = 0
        self.rate = 0.0  # items a second of late
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """A function that takes so many places more, all of which are given back at the end.

        It raises RequestError, with status 429, if there are not as many.
        """
        own = 0

        def take(count: int) -> None:
            nonlocal own
            with self._lock:
                if self.taken + count > self.most:
                    raise RequestError(
                        f"{self.taken} items wait for their embeddings, and {self.most} may; send"
                        " the request again later",
                        status=429,
                        code="queue_full",
                        retry_after=self._seconds(),
                    )
                self.taken += count
                own += count

        try:
            yield take
        finally:
            with self._lock:
                self.taken -= own

    def _seconds(self) -> int:
        """After how long half of what waits now is answered."""
        seconds = self.taken / (2 * self.rate) if self.rate else 1
        return min(max(1, math.ceil(seconds)), LONGEST_RETRY)


@dataclasses.dataclass
class _Job:
    """Rows of one request.

    Attributes:
      begun: how many rows are in a batch or done.
      vectors: those that are done, by row.
    """

    rows: Sequence[Row]
    future: "Future[list[np.ndarray]]"
    arrived: float
    begun: int = 0
    vectors: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


class Batcher:
    """A queue of rows, and the thread that encodes them.

    Requests take turns, row by row: a large one does not hold up a small one that comes after it.

    Attributes:
      batches, rows: how many there were.
    """

    def __init__(self, encode: EncodeRows, batching: Batching, places: Places):
        self.batches = self.rows = 0
        self._encode, self._batching, self._places = encode, batching, places
        self._jobs: collections.deque[_Job] = collections.deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> "Future[list[np.ndarray]]":
        """A future of the rows' embeddings, float32 [D] each; a cancelled one is left out.

        Its error is RequestError if an embedding is not finite, or what the encoder raises.
        """
        job = _Job(rows, Future(), time.monotonic())
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def queued(self) -> int:
        """How many rows are in no batch yet."""
        with self._changed:
            return self._queued()

    def close(self) -> None:
        """Ends the thread when all that was submitted is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            started = time.monotonic()
            self._finish(batch)
            speed = len(batch) / max(time.monotonic() - started, 1e-6)
            old = self._places.rate
            self._places.rate = 0.9 * old + 0.1 * speed if old else speed

    def _next(self) -> list[tuple[_Job, int]]:
        """Waits for rows, and takes some of every job in turn; none at the end."""
        largest = self._batching.sizes[-1]
        with self._changed:
            while True:  # clients of all that waited may have left
                while not self._jobs and not self._closing:
                    self._changed.wait()
                if self._jobs:
                    due = min(job.arrived for job in self._jobs) + self._batching.wait_seconds
                while (
                    self._jobs
                    and not self._closing
                    and self._queued() < min(largest, self._places.taken)  # others are on their way
                    and (left := due - time.monotonic()) > 0
                ):
                    self._changed.wait(left)
                batch: list[tuple[_Job, int]] = []
                while self._jobs and len(batch) < largest:
                    job = self._jobs.popleft()
                    if job.future.done():  # the client has left, or another row of it has failed
                        continue
                    batch.append((job, job.begun))
                    job.begun += 1
                    if job.begun < len(job.rows):
                        self._jobs.append(job)
                if batch or self._closing:
                    return batch

    def _queued(self) -> int:
        return sum(len(job.rows) - job.begun for job in self._jobs)

    def _finish(self, batch: list[tuple[_Job, int]]) -> None:
        """Encodes a batch; rows without a finite embedding fail their jobs alone."""
        try:
            vectors = self._encode([job.rows[number] for job, number in batch])
        except NonFiniteError as error:
            logging.error("%s", error)
            bad = {batch[place][0].future for place in error.rows}
            for future in bad:
                _fail(
                    future, RequestError(f"an embedding is not finite: {error.cause}", status=500)
                )
            if others := [pair for pair in batch if pair[0].future not in bad]:
                self._finish(others)
            return
        except Exception as error:
            logging.exception("a batch of %d rows failed", len(batch))
            for job, _ in batch:
                _fail(job.future, error)
            return
        self.batches += 1
        self.rows += len(batch)
        for (job, number), vector in zip(batch, vectors, strict=True):
            job.vectors[number] = vector
            if len(job.vectors) == len(job.rows) and job.future.set_running_or_notify_cancel():
                job.future.set_result([job.vectors[n] for n in range(len(job.rows))])


def _fail(future: "Future[list[np.ndarray]]", error: Exception) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
