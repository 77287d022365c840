"""Evaluation tasks: each names the items it needs, and scores their vectors.

A task knows where its data are and nothing of models or training. It is opened when it runs, and
what it has read is dropped with the result, so that one dataset at a time is in memory.
"""

from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from unime_jax.evaluation.item_table import Encode, Images

Kind = Literal["mmeb", "composition", "distillation"]


@runtime_checkable
class OpenTask(Protocol):
    """A task whose rows were read."""

    def encode(self, encode: Encode) -> Float32[np.ndarray, "n D"]:
        """Vectors of the items that the task needs, each encoded once."""

    def score(self, vectors: Float32[np.ndarray, "n D"]) -> Any:
        """The result, which holds neither vectors nor images."""


@runtime_checkable
class Task(Protocol):
    """A dataset to be evaluated on; `kind` and `name` together are unique in an evaluation."""

    @property
    def kind(self) -> Kind: ...

    @property
    def name(self) -> str: ...

    def open(self, images: Images) -> OpenTask:
        """Reads the rows; images are read while they are encoded.

        Raises:
          ValueError: no rows, or a malformed one; the message names dataset and row.
        """


def run(task: Task, images: Images, encode: Encode) -> Any:
    """The result of one task."""
    opened = task.open(images)
    return opened.score(opened.encode(encode))
