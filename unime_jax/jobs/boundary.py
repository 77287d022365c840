"""Boundary of a job: it holds the lock of its work directory, and disk errors become messages."""

import contextlib
from collections.abc import Iterator

import jax

from unime_jax import files
from unime_jax.operations import disk_errors, processes, workdir_lock


@contextlib.contextmanager
def owning(workdir: files.Path, lock: str, what: str, *others: files.Path) -> Iterator[None]:
    """Holds <workdir>/<lock> for a run; in one of several processes, process 0 does for all.

    Args:
      what: what only one run may do there: "trains in".
      others: further folders that the job may write to.

    Raises:
      LockedError: another run is alive there.
      RuntimeError: a disk takes no more.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(disk_errors.explained(workdir, *others))
        if jax.process_index() == 0:
            stack.enter_context(workdir_lock.owned(workdir, lock, what=what))
        processes.barrier(f"{lock} is held")
        yield
