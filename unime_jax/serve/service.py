"""The way of a request, without HTTP: a body to the parts of its answer; start and stop."""

import asyncio
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np
from absl import logging
from jaxtyping import Float32

from unime_jax.batch import Row
from unime_jax.data.image_urls import ImageUrls
from unime_jax.data.truncation import truncated
from unime_jax.data.user_inputs import UserInput
from unime_jax.serve import answer, request_form
from unime_jax.serve.batching import Batcher, Places
from unime_jax.serve.errors import RequestError
from unime_jax.serve.image_urls import reader
from unime_jax.serve.metrics import Metrics
from unime_jax.serve.request_form import EmbeddingRequest
from unime_jax.serve.settings import Batching, Limits

THREADS = min(8, os.cpu_count() or 1)  # that prepare items
READERS = 32  # that read bodies, and may wait for images by URL
PART = 16  # items that a thread prepares in turn


class Model(Protocol):
    """What of `served_model.ServedModel` a request needs."""

    max_length: int

    def prompt(self, text: str | None, name: str | None) -> str: ...
    def kept(self, dimensions: int | None) -> int: ...
    def row(self, item: UserInput, prompt: str, suffix: str) -> Row: ...
    def encode(self, rows: Sequence[Row]) -> Float32[np.ndarray, "n D"]: ...


@dataclasses.dataclass
class Start:
    """How far the start is: programs that are compiled, of all."""

    done: int = 0
    programs: int = 0


class Service:
    """A model that answers requests.

    Attributes:
      name: of the model.
      status: "starting" and "stopping" refuse requests.
      start: how far the start is.
    """

    def __init__(
        self, model: Model, name: str, limits: Limits, batching: Batching, urls: ImageUrls | None
    ):
        self.name, self.model, self.limits = name, model, limits
        self.status: Literal["starting", "ready", "stopping"] = "starting"
        self.start = Start()
        self.places = Places(limits.waiting)
        self.metrics = Metrics()
        self._batcher = Batcher(model.encode, batching, self.places)
        self._read_media = reader(limits, urls)
        self._readers = ThreadPoolExecutor(READERS, "reading")
        self._pool = ThreadPoolExecutor(THREADS, "preparing")

    def begin(self, warm_up: Callable[[Start], None], failed: Callable[[], None]) -> None:
        """Runs `warm_up` in a thread; then requests are accepted. `failed`: it raised."""

        def run() -> None:
            try:
                warm_up(self.start)
            except BaseException:
                logging.exception("the server could not start")
                failed()
                return
            if self.status == "starting":
                self.status = "ready"
                logging.info("ready: %s", self.name)

        threading.Thread(target=run, name="starting", daemon=True).start()

    def close(self) -> None:
        """Waits for all that is accepted."""
        self.status = "stopping"
        self._batcher.close()
        self._readers.shutdown()
        self._pool.shutdown()

    def check_open(self) -> None:
        """Raises RequestError, with status 503, where no request is accepted."""
        if self.status == "starting":
            raise RequestError(
                f"the server is starting: {self.start.done} of {self.start.programs} programs are"
                " compiled",
                status=503,
                code="starting",
                retry_after=5,
            )
        if self.status == "stopping":
            raise RequestError(
                "the server is stopping; send the request to another one",
                status=503,
                code="stopping",
                retry_after=1,
            )

    async def answer(self, body: bytes, take: Callable[[int], None]) -> bytes:
        """The body of the answer to a body.

        Args:
          take: takes places for items beyond the first, see `Places`.

        Raises:
          RequestError: the request is refused.
        """
        loop = asyncio.get_running_loop()
        form = await loop.run_in_executor(
            self._readers, request_form.read, body, self.name, self.limits, self._read_media
        )
        prompt, dimension = self._asked(form)
        take(len(form.items) - 1)
        parts = [range(start, start + PART) for start in range(0, len(form.items), PART)]
        prepared = await asyncio.gather(
            *(loop.run_in_executor(self._pool, self._rows, form, prompt, part) for part in parts)
        )
        rows = [row for part in prepared for row in part]
        vectors = await asyncio.wrap_future(self._batcher.submit(rows))
        return await loop.run_in_executor(self._pool, self._encoded, form, rows, vectors, dimension)

    def metrics_text(self) -> str:
        batcher = self._batcher
        return self.metrics.text(
            waiting=self.places.taken,
            queued=batcher.queued(),
            batches=batcher.batches,
            rows=batcher.rows,
        )

    def _asked(self, form: EmbeddingRequest) -> tuple[str, int]:
        """Prompt and dimension."""
        try:
            prompt = self.model.prompt(form.prompt, form.prompt_name)
        except ValueError as error:
            raise RequestError(str(error), param="prompt_name") from error
        try:
            return prompt, self.model.kept(form.dimensions)
        except ValueError as error:
            text = str(error).replace("truncate_dim", "dimensions")
            raise RequestError(text, param="dimensions") from error

    def _rows(self, form: EmbeddingRequest, prompt: str, numbers: range) -> list[Row]:
        rows = []
        for number in numbers[: len(form.items) - numbers.start]:
            field = form.fields[number]
            try:
                row = self.model.row(form.items[number], prompt, form.suffix)
            except (TypeError, ValueError) as error:
                raise RequestError(f"{field}: {error}", param=field) from error
            if row.truncated and not form.truncates:
                raise RequestError(
                    f"{field} is too long: {row.truncated} tokens or more are beyond"
                    f" max_length = {self.model.max_length}, which prompt and images are part of."
                    ' Shorten it, or send "truncate_prompt_tokens": -1 to have it cut',
                    param=field,
                    code="context_length_exceeded",
                )
            rows.append(row)
        return rows

    def _encoded(
        self, form: EmbeddingRequest, rows: list[Row], vectors: list[np.ndarray], dimension: int
    ) -> bytes:
        warnings = answer.warnings_of(form.fields, rows, self.model.max_length)
        kept = truncated(np.stack(vectors), dimension)
        tokens = sum(len(row.tokens) for row in rows)
        return answer.body(self.name, kept, tokens, warnings, base64=form.base64)


def health(service: Service) -> tuple[int, dict[str, Any]]:
    """Status and body of GET /health."""
    body: dict[str, Any] = {"status": service.status}
    if service.status == "starting":
        body |= {"compiled": service.start.done, "programs": service.start.programs}
    return 200 if service.status == "ready" else 503, body
