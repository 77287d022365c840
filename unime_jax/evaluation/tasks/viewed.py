"""A task that is scored by its vectors, and by views of them, after one encoding."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from unime_jax.batch import Item
from unime_jax.evaluation import tasks
from unime_jax.evaluation.encoding.item_table import Encode, Images
from unime_jax.evaluation.views import Views

WHOLE = ""  # in the place of a view's name: the vectors themselves


@dataclasses.dataclass(frozen=True)
class Task:
    """Another task, whose result is one by view; the first is of the vectors themselves."""

    task: tasks.Task
    views: Views

    @property
    def kind(self) -> tasks.Kind:
        return self.task.kind

    @property
    def name(self) -> str:
        return self.task.name

    def open(self, images: Images) -> "OpenTask":
        """Reads the other task's rows; see `tasks.Task`."""
        return OpenTask(self.task.open(images), self.views)

    def __str__(self) -> str:
        return str(self.task)


@dataclasses.dataclass(frozen=True, eq=False)
class OpenTask:
    """The other task, opened."""

    opened: tasks.OpenTask
    views: Views

    @property
    def items(self) -> Sequence[Item]:
        return self.opened.items

    def encode(self, encode: Encode) -> Float32[np.ndarray, "n D"]:
        """The other task's vectors."""
        return self.opened.encode(encode)

    def score(self, vectors: Float32[np.ndarray, "n D"]) -> dict[str, Any]:
        """Results by name of the view."""
        results = {WHOLE: self.opened.score(vectors)}
        for name, view in self.views.of(vectors):
            results[name] = self.opened.score(view)
        return results
