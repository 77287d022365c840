"""Saving and resuming a run with Orbax: trained values, optimizer, counters.

Frozen weights are not saved: they are read again from the backbone's folder, whose hash is in the
checkpoint. The place in the data is the number of steps done. Saves are asynchronous and atomic; a
save that was cut short is not seen on resume.

Storage formats don't notice every change of a byte, so a checkpoint has a checksum of each of its
arrays as it was on the devices, and what is read is compared with that.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from unime_jax import files
from unime_jax.training.step import TrainState

# Of an array that devices have copies of, Orbax lets each device save a slice. The slices are made
# one by one, and for adapters and moments that takes longer than to write them.
SLICED_FROM = 2**20  # bytes of a slice
ocp.type_handlers.register_type_handler(
    jax.Array,
    ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICED_FROM),
    override=True,
)


# A path with these is a pattern to the file names that Orbax looks for when it completes a
# checkpoint, and the pattern does not match the path itself, or matches another run's as well.
PATTERN = "*?[\\"

# What makes the arrays of a checkpoint readable; written last.
MANIFEST = "manifest.ocdbt"
NOTES = "_CHECKPOINT_METADATA"


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for pending saves.

    Args:
      facts: by name, what the saved values would be worthless without; kept in each checkpoint,
        and compared when one is restored.
      read_only: leaves the folder as it is, also what another process is saving there.
    """

    def __init__(
        self,
        folder: files.Path,
        *,
        every: int,
        keep: int,
        facts: Mapping[str, Any],
        read_only: bool = False,
    ):
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._folder = files.absolute(folder)
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            # Orbax' notes on times and handlers, without which a checkpoint can be read as well.
            if read_only:
                raise ValueError(
                    f"{self._folder} cannot be opened, a {NOTES} in it is damaged: "
                    f"{_in_short(error)}. Remove that file; the checkpoint is whole without it."
                ) from error
            self._set_notes_aside(error)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._every = every
        self._facts = facts
        self._read_only = read_only
        self._pending = self._closed = False
        self._unproven: dict[int, dict[str, Any]] = {}  # records of saves that were not read back
        self._proven = read_only

    def _set_notes_aside(self, why: Exception) -> None:
        if jax.process_index() == 0:
            for notes in self._folder.glob(f"*/{NOTES}"):
                files.set_aside(notes, _in_short(why))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("notes on checkpoints set aside")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except RuntimeError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # the other one matters more, and may be its reason

    def close(self) -> None:
        """Waits for pending saves.

        Raises:
          RuntimeError: a save has failed.
        """
        if self._closed:
            return
        self._closed = True
        with self._writing():
            self._manager.close()
        self._prove()

    def latest_step(self) -> int | None:
        """Steps done in the newest complete checkpoint, be it readable or not."""
        return self._manager.latest_step()

    def is_due(self, steps_done: int) -> bool:
        return steps_done % self._every == 0

    def save(self, steps_done: int, state: TrainState) -> None:
        """Starts a save; returns as soon as `state` may be donated again.

        Raises:
          RuntimeError: it cannot be written, or the save before it could not.
        """
        if self._manager.latest_step() == steps_done:
            return
        part = _saved_part(state)
        record = {"facts": dict(self._facts), "checksums": checksums(part)}
        with self._writing():
            self._manager.save(
                steps_done,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(part), record=ocp.args.JsonSave(record)
                ),
            )
        self._pending = True
        if not self._proven:
            self._unproven[steps_done] = record

    def check(self) -> None:
        """Call it between steps: a save that failed in the background must not go unnoticed.

        Raises:
          RuntimeError: a save has failed.
        """
        if not self._pending or self._manager.is_saving_in_progress():
            return
        self._pending = False
        with self._writing():
            self._manager.wait_until_finished()
        self._prove()

    def _prove(self) -> None:
        """Sees once in a process's life that what it saves can be read, before it relies on it."""
        if self._proven or not self._unproven or jax.process_index() != 0:
            return
        step, record = self._unproven.popitem()
        folder = self._folder / str(step)
        try:
            manifest = len((folder / "state" / MANIFEST).read_bytes())
            kept = json.loads((folder / "record" / "metadata").read_bytes())
        except (OSError, ValueError) as error:
            raise RuntimeError(self._not_readable(step, _in_short(error))) from error
        if not manifest or kept != json.loads(json.dumps(record)):
            raise RuntimeError(self._not_readable(step, "it is not what was saved"))
        self._proven = True
        self._unproven.clear()

    def _not_readable(self, step: int, reason: str) -> str:
        return (
            f"The first checkpoint of this run, of step {step} in {self._folder}, was written, but "
            f"cannot be read back: {reason}. None of the next ones could, so the run ends now. Use "
            "a work directory on another file system, or of a plainer name."
        )

    def restore(self, state: TrainState) -> TrainState | None:
        """The newest good checkpoint in the shapes and shardings of `state`; None without any.

        Those that cannot be read, or are not what was saved, are passed over, and then moved out
        of the way: to <folder>_bad.

        Raises:
          ValueError: there are checkpoints and none is good, or the newest one that is has other
            facts.
        """
        bad: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, reason = self._read(step, state)
            if found is None:
                bad[step] = reason
                logging.error("checkpoint of step %d in %s: %s", step, self._folder, reason)
                continue
            if bad:
                logging.warning("the checkpoint of step %d is used instead", step)
                self._move_away(bad)
            return found
        if bad:
            listed = "\n".join(f"  step {step}: {reason}" for step, reason in bad.items())
            raise ValueError(
                f"No checkpoint in {self._folder} can be used:\n{listed}\nBring a good one back, "
                "or begin again in another work directory."
            )
        return None

    def _read(self, step: int, state: TrainState) -> tuple[TrainState | None, str]:
        """The state, or None and why; the same in all processes."""
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _saved_part(state))
        record: dict[str, Any] = {}
        reason = ""
        try:
            record = self._restore(step, record=ocp.args.JsonRestore())["record"]
            expected = self._read_record(record)
        except Exception as error:
            reason = f"its record cannot be read: {_in_short(error)}"
        if not _all_processes(not reason):
            return None, reason or "another process cannot read its record"
        facts, sums = expected
        self._compare(step, facts)
        part: dict[str, Any] = {}
        try:
            part = self._restore(step, state=ocp.args.StandardRestore(shapes))["state"]
        except Exception as error:
            reason = f"it cannot be read: {_in_short(error)}"
        if not _all_processes(not reason):
            return None, reason or "another process cannot read it"
        found = checksums(part)
        wrong = [name for name in found if found[name] != sums.get(name)]
        if wrong:
            return None, (
                f"{len(wrong)} of its {len(found)} arrays are not what was saved, for example "
                f"{wrong[0]}"
            )
        return dataclasses.replace(state, **part), ""

    def _read_record(self, record: Any) -> tuple[dict[str, Any], dict[str, int]]:
        """Facts and checksums; ValueError or KeyError if they are not of this form."""
        facts, sums = record["facts"], record["checksums"]
        if not isinstance(facts, dict) or not isinstance(sums, dict):
            raise ValueError("facts and checksums are JSON objects")
        missing = [name for name in self._facts if name not in facts]
        if missing:
            raise ValueError(f"it does not say which {' and '.join(missing)} it belongs to")
        return facts, sums

    def _restore(self, step: int, **parts: ocp.args.CheckpointArgs) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**parts))

    def _compare(self, step: int, facts: Mapping[str, Any]) -> None:
        for name, now in self._facts.items():
            if facts[name] != now:
                raise ValueError(
                    f"The checkpoint of step {step} in {self._folder} belongs to another {name}: "
                    f"{facts[name]} then, {now} now. Give the run what it began with, or use "
                    "another work directory."
                )

    def _move_away(self, steps: Mapping[int, str]) -> None:
        if self._read_only:
            return
        if jax.process_index() == 0:
            for step in steps:
                target = self._folder.with_name(self._folder.name + "_bad")
                target.mkdir(exist_ok=True)
                files.move(self._folder / str(step), target / f"{step}-{time.time_ns()}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("bad checkpoints moved away")
        self._manager.reload()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Says of what goes wrong in it which checkpoints are left."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # a device or another process is gone, which is not about the folder
        except Exception as failure:
            raise RuntimeError(self._not_written(failure)) from failure

    def _not_written(self, failure: Exception) -> str:
        complete = sorted(int(f.name) for f in self._folder.glob("*") if f.name.isdigit())
        kept = f"Complete: {', '.join(f'step {step}' for step in complete) or 'none'}."
        return (
            f"A checkpoint could not be written in {self._folder}: {_in_short(failure)}. {kept} "
            "See to it that there is room and that the folder can be written; then the same "
            "command goes on from the newest one."
        )


def check_name(workdir: files.Path) -> None:
    """Raises ValueError if checkpoints in this folder could not be read again for its path."""
    path = str(files.absolute(workdir))
    bad = sorted(set(path) & set(PATTERN))
    if bad:
        raise ValueError(
            f"--workdir={path}: {' and '.join(map(repr, bad))} in a path is a pattern for Orbax, "
            "so that no checkpoint written there could be read again. Use another name, such as "
            f"{_plain(workdir.name) or 'run'}, or a symbolic link without them in its path."
        )


def _plain(name: str) -> str:
    for character in PATTERN + "]":
        name = name.replace(character, "_")
    return name.strip("_")


def checksums(tree: Any) -> dict[str, int]:
    """32 bits of every array by its path: the same on any mesh, another if any one value changes.

    The sum of an array's values, taken as unsigned integers, times odd numbers that depend on the
    place, modulo 2^32. It is computed where the arrays are, in one pass over them.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # One program for all: of many small ones with a reduction each, CPUs may mix up the order.
    sums = jax.device_get(_replicated_sums(leaves[0][1].sharding.mesh)([x for _, x in leaves]))
    return {jax.tree_util.keystr(path): int(n) for (path, _), n in zip(leaves, sums, strict=True)}


@functools.cache
def _replicated_sums(mesh: jax.sharding.Mesh) -> Callable[[list[jax.Array]], list[jax.Array]]:
    return jax.jit(
        lambda arrays: [_sum(array) for array in arrays], out_shardings=NamedSharding(mesh, P())
    )


def _sum(array: jax.Array) -> jax.Array:
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    place, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place += along * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def _all_processes(good: bool) -> bool:
    if jax.process_count() == 1:
        return good
    return bool(multihost_utils.process_allgather(np.array(good)).all())


def _in_short(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"  # why comes last


def _saved_part(state: TrainState) -> dict[str, Any]:
    fields = (field.name for field in dataclasses.fields(state))
    return {name: getattr(state, name) for name in fields if name != "frozen"}
