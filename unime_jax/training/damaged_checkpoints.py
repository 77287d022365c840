"""Damage to a folder of checkpoints: proof that saves can be read, and bad ones moved away."""

import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from unime_jax import files

# The index of a checkpoint's arrays; written last.
MANIFEST = "manifest.ocdbt"
# Orbax' times and handlers, without which a checkpoint can be read as well.
NOTES = "_CHECKPOINT_METADATA"


def set_notes_aside(folder: files.Path, error: Exception) -> None:
    """Renames the notes of all checkpoints, one of which keeps Orbax from opening the folder."""
    if jax.process_index() == 0:
        for notes in folder.glob(f"*/{NOTES}"):
            files.set_aside(notes, in_short(error))
    _wait_for_process_0("notes on checkpoints set aside")


def move_away(folder: files.Path, steps: Mapping[int, str]) -> None:
    """Moves the checkpoints of these steps to <folder>_bad."""
    if jax.process_index() == 0:
        target = folder.with_name(folder.name + "_bad")
        target.mkdir(exist_ok=True)
        for step in steps:
            files.move(folder / str(step), target / f"{step}-{time.time_ns()}")
    _wait_for_process_0("bad checkpoints moved away")


def check_readable(folder: files.Path, step: int, record: Mapping[str, Any]) -> None:
    """Looks for the parts of a complete checkpoint without which it cannot be restored.

    Raises:
      RuntimeError: they are not there, or its record is not what was saved.
    """
    try:
        manifest = (folder / str(step) / "state" / MANIFEST).read_bytes()
        kept = json.loads((folder / str(step) / "record" / "metadata").read_bytes())
    except (OSError, ValueError) as error:
        raise RuntimeError(_not_readable(folder, step, in_short(error))) from error
    if not manifest or kept != json.loads(json.dumps(record)):
        raise RuntimeError(_not_readable(folder, step, "it is not what was saved"))


def _not_readable(folder: files.Path, step: int, reason: str) -> str:
    return (
        f"The first checkpoint of this run, of step {step} in {folder}, was written, but "
        f"cannot be read back: {reason}. None of the next ones could, so the run ends now. Use "
        "a work directory on another file system, or of a plainer name."
    )


def not_written(folder: files.Path, failure: Exception) -> str:
    """The message of a save that failed: why, which checkpoints are complete, what to do."""
    complete = sorted(int(f.name) for f in folder.glob("*") if f.name.isdigit())
    kept = f"Complete: {', '.join(f'step {step}' for step in complete) or 'none'}."
    return (
        f"A checkpoint could not be written in {folder}: {in_short(failure)}. {kept} "
        "See to it that there is room and that the folder can be written; then the same "
        "command goes on from the newest one."
    )


def all_processes(good: bool) -> bool:
    """True if `good` holds in every process, which all call it."""
    if jax.process_count() == 1:
        return good
    return bool(multihost_utils.process_allgather(np.array(good)).all())


def in_short(error: Exception) -> str:
    """Type and message in a line of at most 405 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"  # why comes last


def _wait_for_process_0(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
