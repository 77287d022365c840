"""Evaluation tasks: each names the items it needs, and scores their vectors.

A task knows where its data are and nothing of models or training. It is opened when it runs, and
what it has read is dropped with its result, so that a few datasets at a time are in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from unime_jax.batch import Item
from unime_jax.evaluation.encoding.item_table import Encode, Images, ItemTable, blamed
from unime_jax.evaluation.encoding.shared_encoder import SharedEncoder

GROUP = 2048  # items, from which on tasks are not encoded together with the next one

Kind = Literal["mmeb", "composition", "distillation", "retrieval", "captions", "clustering"]


@runtime_checkable
class OpenTask(Protocol):
    """A task whose rows were read."""

    @property
    def items(self) -> Sequence[Item]:
        """The distinct items that the task needs."""

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


def run_all(
    tasks: Iterable[Task], images: Images, encode: SharedEncoder
) -> Iterator[tuple[Task, Any]]:
    """Each task with its result, in order; small ones are encoded together.

    Raises:
      ValueError: see `Task.open` and `item_table.encode_table`.
    """
    for group in _groups(tasks, images):
        try:
            # One alone is encoded as it is scored: a corpus's vectors are not copied.
            encode.encode_group([o.items for _, o in group] if len(group) > 1 else [])
        except ValueError as error:
            tables = {str(t): o.items for t, o in group if isinstance(o.items, ItemTable)}
            raise blamed(tables, error) from error
        while group:
            task, opened = group.pop(0)
            yield task, opened.score(opened.encode(encode))


def _groups(tasks: Iterable[Task], images: Images) -> Iterator[list[tuple[Task, OpenTask]]]:
    """Opened tasks of `GROUP` items together, or one that has more."""
    group: list[tuple[Task, OpenTask]] = []
    items = 0
    for task in tasks:
        opened = task.open(images)
        group.append((task, opened))
        items += len(opened.items)
        if items >= GROUP:
            yield group
            group, items = [], 0
    if group:
        yield group
