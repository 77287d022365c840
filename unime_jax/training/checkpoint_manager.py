"""Orbax' manager of a folder of checkpoints: which are kept, and names it could not read again."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from unime_jax import files
from unime_jax.training import damaged_checkpoints
from unime_jax.training.damaged_checkpoints import in_short

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

# Of some steps, that of the best checkpoint; None: no score is known.
Best = Callable[[Sequence[int]], int | None]


@dataclasses.dataclass(frozen=True)
class _BestOf(ocp.checkpoint_managers.PreservationPolicy):
    """Orbax' preservation policy that keeps the best checkpoint."""

    best: Best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = self.best([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == best for checkpoint in checkpoints]


def open_manager(
    folder: files.Path, keep: int, best: Best | None, read_only: bool
) -> ocp.CheckpointManager:
    """Orbax' manager of a folder; damaged notes in it are set aside.

    Raises:
      ValueError: `read_only`, and the notes are damaged.
    """
    if read_only:
        options = ocp.CheckpointManagerOptions(read_only=True)
    elif best is None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    else:
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), _BestOf(best)]
            ),
            cleanup_tmp_directories=True,
        )
    try:
        return ocp.CheckpointManager(folder, options=options)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        if read_only:
            raise ValueError(
                f"{folder} cannot be opened, a {damaged_checkpoints.NOTES} in it is damaged: "
                f"{in_short(error)}. Remove that file; the checkpoint is whole without it."
            ) from error
        damaged_checkpoints.set_notes_aside(folder, error)
        return ocp.CheckpointManager(folder, options=options)


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
