"""A work directory's lock: one owner at a time, across processes, hosts, file systems and buckets.

The lock is a file with the owner's host, process id and start. It is made in one step (a hard
link, or an exclusive open where there are no links), so that of several who want it one gets it.
Its owner touches it every few seconds. One that a dead process has left is taken over:

- on the same host, when no process has that id, or one that started at another time;
- on another host, or in another container, when it was not touched for `STALE_SECONDS`. Its age is
  told by the file system's own clock, so that hosts need not agree on the time.

`flock` is not used: on NFS and in mounted buckets it may be kept per host, or not at all. A lock
under gs:// is an object that is made only if there is none (`operations/bucket_lock.py`).
"""

import contextlib
import os
import pathlib
import threading
import time
import uuid
from collections.abc import Iterator

from absl import logging

from unime_jax import files
from unime_jax.operations import bucket_lock, exits, lock_owner
from unime_jax.operations.lock_owner import Owner

TOUCH_SECONDS = 10.0
STALE_SECONDS = 90.0  # NFS and gcsfuse may show a file's time as it was a minute ago
POLL_SECONDS = 0.5
SETTLE_SECONDS = 0.5  # in a takeover: whoever tried the same has put things in order then
SAY_SECONDS = 60.0  # between lines of a process that waits for another one
LOST = 76  # status of a process whose lock another one has taken ("protocol error" in sysexits.h)


class LockedError(ValueError):
    """The folder has another owner, who is alive; the message says which."""


@contextlib.contextmanager
def owned(folder: files.Path, name: str, *, what: str, wait: bool = False) -> Iterator[None]:
    """Holds <folder>/<name> while the body runs.

    Args:
      what: what only one process may do there, for messages: "trains in".
      wait: until the other owner is done, however long that is; else it is an error.

    Raises:
      LockedError: another owner is alive, and `wait` is False.
      OSError: the lock cannot be written.
    """
    path = folder / name
    mine = lock_owner.myself()
    _acquire(path, mine, what, wait)
    _tidy(path)
    end = threading.Event()
    thread = threading.Thread(
        target=_touch, args=(path, mine, end, what), name=f"lock {name}", daemon=True
    )
    thread.start()
    forget = exits.before_exit(lambda: _release(path, mine))
    try:
        yield
    finally:
        end.set()
        thread.join()
        forget()
        _release(path, mine)


def _acquire(path: files.Path, mine: Owner, what: str, wait: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    said = -SAY_SECONDS
    seen: tuple[str, float] | None = None  # token and time of the last touch, when first looked at
    contested = False
    while True:
        if _create(path, mine):
            contested = contested or any(path.parent.glob(f"{path.name}.*.stale"))
            if not contested or _is_settled(path, mine):
                return
            continue
        state = _look(path)
        if state is None:  # it is gone
            continue
        owner, touched, age = state
        where = f"{path.parent} ({path.name})"
        if owner is not None and lock_owner.died_here(owner, mine):
            logging.warning("%s: taking over from %s, which is gone", where, owner)
            contested = True
            _remove_stale(path, owner, touched, mine)
            continue
        if age > STALE_SECONDS:
            logging.warning(
                "%s: taking over from %s, which was not heard of for %.0f s",
                where,
                owner or "a lock that cannot be read",
                age,
            )
            contested = True
            _remove_stale(path, owner, touched, mine)
            continue
        token = owner.token if owner else ""
        alive = owner is not None and (
            lock_owner.is_here(owner, mine) or seen not in (None, (token, touched))
        )
        if alive and not wait:
            raise LockedError(
                f"{path.parent} is in use: {owner} {what} it, and one process at a time may. Wait "
                "for it, end it, or give another folder. If there is no such process, nothing "
                f"need be done: its lock, {path}, is taken over {STALE_SECONDS:.0f} s after it was "
                "last heard of."
            )
        seen = seen or (token, touched)
        if time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            why = "waiting until it is done" if alive else "waiting for a sign of life"
            logging.info("%s: %s %s it; %s", where, owner or "somebody", what, why)
        time.sleep(POLL_SECONDS)


def _create(path: files.Path, mine: Owner) -> bool:
    """Makes the lock, whole, unless there is one."""
    content = lock_owner.to_text(mine)
    if not isinstance(path, pathlib.Path):
        return bucket_lock.create(path, content)
    draft = path.with_name(f"{path.name}.{mine.token}")
    try:
        draft.write_text(content)
        try:
            os.link(draft, path)
            return True
        except FileExistsError:
            return False
        except OSError:  # no hard links here: buckets, some network shares
            pass
        try:
            with path.open("x") as file:
                file.write(content)
            return True
        except FileExistsError:
            return False
    finally:
        draft.unlink(missing_ok=True)


def _remove_stale(path: files.Path, owner: Owner | None, touched: float, mine: Owner) -> None:
    """Moves a stale lock out of the way, unless somebody else was faster."""
    aside = path.with_name(f"{path.name}.{mine.token}.stale")
    if not _is_still(path, owner, touched):
        return
    if not isinstance(path, pathlib.Path):
        path.unlink(missing_ok=True)
        return
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if not _is_still(aside, owner, touched):
        # That was the lock of one who took over meanwhile: it goes back.
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _is_settled(path: files.Path, mine: Owner) -> bool:
    """True if a lock that was made while others took over is still there when they are done."""
    time.sleep(SETTLE_SECONDS if isinstance(path, pathlib.Path) else bucket_lock.SETTLE_SECONDS)
    state = _look(path)
    return state is not None and state[0] == mine


def _is_still(path: files.Path, owner: Owner | None, touched: float) -> bool:
    """True if the lock still is that of `owner`; without an owner, if its time is `touched`."""
    state = _look(path)
    return state is not None and state[0] == owner and (owner is not None or state[1] == touched)


def _look(path: files.Path) -> tuple[Owner | None, float, float] | None:
    """Owner (None: cannot be read), time of the last touch, and seconds since; None: no lock.

    Opening a file makes NFS ask the server; a new file's time is the server's now.
    """
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}.now")
    if not isinstance(path, pathlib.Path):
        try:
            content, touched = bucket_lock.read(path)
        except FileNotFoundError:
            return None
        return lock_owner.from_text(content), touched, bucket_lock.now(probe) - touched
    try:
        with path.open("rb") as file:
            content, touched = file.read(), os.fstat(file.fileno()).st_mtime
        probe.touch()
        age = probe.stat().st_mtime - touched
    except FileNotFoundError:
        return None
    finally:
        probe.unlink(missing_ok=True)
    return lock_owner.from_text(content), touched, age


def _touch(path: files.Path, mine: Owner, end: threading.Event, what: str) -> None:
    while not end.wait(TOUCH_SECONDS):
        try:
            content = path.read_bytes()
            owner = lock_owner.from_text(content)
            if owner == mine:
                if isinstance(path, pathlib.Path):
                    os.utime(path)
                else:
                    bucket_lock.touch(path, content)
                continue
        except FileNotFoundError:  # removed by hand, or on its way back in a takeover
            if end.is_set() or _create(path, mine):
                continue
            owner = None
        except OSError as error:
            logging.warning("%s cannot be touched: %s", path, error)
            continue
        time.sleep(SETTLE_SECONDS)
        state = _look(path)
        if end.is_set() or state is None or state[0] == mine:
            continue
        logging.error(
            "%s now belongs to %s, which %s it: this process was not heard of for more than %.0f s "
            "and ends, so that both do not",
            path,
            state[0] or "somebody else",
            what,
            STALE_SECONDS,
        )
        exits.exit_now(LOST)


def _release(path: files.Path, mine: Owner) -> None:
    try:
        if lock_owner.from_text(path.read_bytes()) == mine:
            path.unlink()
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            logging.warning("%s could not be removed: %s", path, error)


def _tidy(path: files.Path) -> None:
    """Removes files of processes that were killed while they looked at the lock."""
    if not isinstance(path, pathlib.Path):
        return
    with contextlib.suppress(OSError):
        now = path.stat().st_mtime
        for left in path.parent.glob(f"{path.name}.*"):
            if now - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()
