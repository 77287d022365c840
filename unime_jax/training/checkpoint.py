"""Saving and resuming a run with Orbax: trained values, optimizer, counters.

Frozen weights are not saved: they are read again from the backbone's folder, whose fingerprint is
in the checkpoint. The place in the data is the number of steps done. Saves are asynchronous and
atomic; a save that was cut short is not seen on resume.

Storage formats don't notice every change of a byte, so a checkpoint has a checksum of each of its
arrays as it was on the devices, and what is read is compared with that.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from unime_jax import files
from unime_jax.training import damaged_checkpoints
from unime_jax.training.checkpoint_manager import Best, open_manager
from unime_jax.training.checksums import checksums
from unime_jax.training.damaged_checkpoints import all_processes, in_short
from unime_jax.training.step import TrainState

# A path with these is a pattern to the file names that Orbax looks for when it completes a
# checkpoint, and the pattern does not match the path itself, or matches another run's as well.
PATTERN = "*?[\\"

# Names in the record of a checkpoint; runs that are under way have them on disk.
FINGERPRINTS, CHECKSUMS = "facts", "checksums"


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for pending saves.

    Args:
      every: steps from one save to the next.
      keep: how many of the newest are kept.
      fingerprints: of backbone and data, by name; saved, and verified on restore.
      best: which of these steps has the best checkpoint, if any; it is kept besides the newest.
      read_only: leaves the folder as it is, also what another process is saving there.
    """

    def __init__(
        self,
        folder: files.Path,
        *,
        every: int,
        keep: int,
        fingerprints: Mapping[str, Any],
        best: Best | None = None,
        read_only: bool = False,
    ):
        self._folder = files.absolute(folder)
        self._manager = open_manager(self._folder, keep, best, read_only)
        self._every = every
        self._fingerprints = fingerprints
        self._read_only = read_only
        self._pending = self._closed = False
        self._unproven: dict[int, dict[str, Any]] = {}  # records of saves that were not read back
        self._proven = read_only

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

    def steps(self) -> list[int]:
        """Steps done in each complete checkpoint, be it readable or not; the newest last."""
        return sorted(self._manager.all_steps())

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
        record = {FINGERPRINTS: dict(self._fingerprints), CHECKSUMS: checksums(part)}
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
        """Notices a save that failed in the background; call it between steps.

        Raises:
          RuntimeError: a save has failed.
        """
        if self._pending and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until all saves are complete.

        Raises:
          RuntimeError: a save has failed.
        """
        self._pending = False
        with self._writing():
            self._manager.wait_until_finished()
        self._prove()

    def restore(self, state: TrainState) -> TrainState | None:
        """The newest good checkpoint in the shapes and shardings of `state`; None without any.

        Those that cannot be read, or are not what was saved, are passed over, and then moved out
        of the way: to <folder>_bad.

        Raises:
          ValueError: there are checkpoints and none is good, or the newest one that is has other
            fingerprints.
        """
        bad: dict[int, str] = {}
        for step in reversed(self.steps()):
            restored, reason = self._read(step, state)
            if restored is None:
                bad[step] = reason
                logging.error("checkpoint of step %d in %s: %s", step, self._folder, reason)
                continue
            if bad:
                logging.warning("the checkpoint of step %d is used instead", step)
            if bad and not self._read_only:
                damaged_checkpoints.move_away(self._folder, bad)
                self._manager.reload()
            return restored
        if bad:
            listed = "\n".join(f"  step {step}: {reason}" for step, reason in bad.items())
            raise ValueError(
                f"No checkpoint in {self._folder} can be used:\n{listed}\nBring a good one back, "
                "or begin again in another work directory."
            )
        return None

    def restore_step(self, step: int, state: TrainState) -> TrainState:
        """The checkpoint of one step in the shapes and shardings of `state`.

        Raises:
          ValueError: it is damaged, or has other fingerprints.
        """
        restored, reason = self._read(step, state)
        if restored is None:
            raise ValueError(f"The checkpoint of step {step} in {self._folder}: {reason}.")
        return restored

    def _read(self, step: int, state: TrainState) -> tuple[TrainState | None, str]:
        """The state, or None and why; the same in all processes."""
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _saved_part(state))
        reason = ""
        try:
            record = self._restore(step, record=ocp.args.JsonRestore())["record"]
            fingerprints, sums = self._read_record(record)
        except Exception as error:
            reason = f"its record cannot be read: {in_short(error)}"
        if not all_processes(not reason):
            return None, reason or "another process cannot read its record"
        self._verify(step, fingerprints)
        part: dict[str, Any] = {}
        try:
            part = self._restore(step, state=ocp.args.StandardRestore(shapes))["state"]
        except Exception as error:
            reason = f"it cannot be read: {in_short(error)}"
        if not all_processes(not reason):
            return None, reason or "another process cannot read it"
        actual = checksums(part)
        wrong = [name for name in actual if actual[name] != sums.get(name)]
        if wrong:
            return None, (
                f"{len(wrong)} of its {len(actual)} arrays are not what was saved, for example "
                f"{wrong[0]}"
            )
        return dataclasses.replace(state, **part), ""

    def _read_record(self, record: Any) -> tuple[dict[str, Any], dict[str, int]]:
        """Fingerprints and checksums; ValueError or KeyError if they are not of this form."""
        fingerprints, sums = record[FINGERPRINTS], record[CHECKSUMS]
        if not isinstance(fingerprints, dict) or not isinstance(sums, dict):
            raise ValueError(f"{FINGERPRINTS} and {CHECKSUMS} are JSON objects")
        missing = [name for name in self._fingerprints if name not in fingerprints]
        if missing:
            raise ValueError(f"it does not say which {' and '.join(missing)} it belongs to")
        return fingerprints, sums

    def _verify(self, step: int, fingerprints: Mapping[str, Any]) -> None:
        for name, now in self._fingerprints.items():
            then = fingerprints[name]
            if then != now:
                raise ValueError(
                    f"The checkpoint of step {step} in {self._folder} belongs to another {name}: "
                    f"{then} then, {now} now. Give the run what it began with, or use another work "
                    "directory."
                )

    def _restore(self, step: int, **parts: ocp.args.CheckpointArgs) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**parts))

    def _prove(self) -> None:
        """Reads the first save of this process's life back, before it relies on saves."""
        if self._proven or not self._unproven or jax.process_index() != 0:
            return
        step, record = self._unproven.popitem()
        damaged_checkpoints.check_readable(self._folder, step, record)
        self._proven = True
        self._unproven.clear()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Errors of saves, in words that say which checkpoints are left."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # a device or another process is gone, which is not about the folder
        except Exception as failure:
            raise RuntimeError(damaged_checkpoints.not_written(self._folder, failure)) from failure


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


def _saved_part(state: TrainState) -> dict[str, Any]:
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: x for name, x in values.items() if name != "frozen" and x is not None}
