"""Saving and resuming a run with Orbax: trained values, optimizer, counters, data iterator.

Frozen weights are not saved: they are read again from the backbone's folder. Saves are
asynchronous and atomic; a save that was cut short is not seen on resume.
"""

import dataclasses
import pathlib
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from unime_jax.step import TrainState


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for pending saves."""

    def __init__(self, folder: pathlib.Path, *, every: int, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._every = every

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """Steps done in the newest complete checkpoint."""
        return self._manager.latest_step()

    def is_due(self, steps_done: int) -> bool:
        return steps_done % self._every == 0

    def save(self, steps_done: int, state: TrainState, data: grain.DatasetIterator) -> None:
        """Starts a save; returns as soon as `state` may be donated again."""
        if self._manager.latest_step() == steps_done:
            return
        self._manager.save(
            steps_done,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_saved_part(state)),
                data=grain.checkpoint.CheckpointSave(data),
            ),
        )

    def restore(self, state: TrainState, data: grain.DatasetIterator | None) -> TrainState:
        """The newest checkpoint in the shapes and shardings of `state`; moves `data` along."""
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _saved_part(state))
        parts: dict[str, Any] = {"state": ocp.args.StandardRestore(shapes)}
        if data is not None:
            parts["data"] = grain.checkpoint.CheckpointRestore(data)
        restored = self._manager.restore(
            self._manager.latest_step(), args=ocp.args.Composite(**parts)
        )
        return dataclasses.replace(state, **restored["state"])


def _saved_part(state: TrainState) -> dict[str, Any]:
    fields = (field.name for field in dataclasses.fields(state))
    return {name: getattr(state, name) for name in fields if name != "frozen"}
