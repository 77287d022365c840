"""Primitives of a lock in a bucket, for `workdir_lock`: an object that one creator gets.

Google Cloud Storage creates an object only if there is none (generation 0), so that of several
creators one wins. It has no conditional renaming here: a takeover deletes, then creates. Two that
take over at the same moment may both believe to own it until they look again (`SETTLE_SECONDS`);
then the one whose lock is gone gives way.
"""

from etils import epath

from unime_jax import files

SETTLE_SECONDS = 3.0  # a deletion that was decided before another's creation has come by then


def create(path: epath.Path, content: str) -> bool:
    """Makes the object, unless there is one; whether it did."""
    try:
        files.bucket_client().pipe_file(str(path), content.encode(), mode="create")
    except FileExistsError:
        return False
    return True


def read(path: epath.Path) -> tuple[bytes, float]:
    """Content and time of the last writing, by the store's clock; FileNotFoundError without it."""
    client = files.bucket_client()
    written = client.info(str(path))["mtime"].timestamp()
    return client.cat_file(str(path)), written


def now(path: epath.Path) -> float:
    """The store's time, as that of a new object called `path`, which is removed."""
    client = files.bucket_client()
    client.pipe_file(str(path), b"-")
    try:
        return client.info(str(path))["mtime"].timestamp()
    finally:
        client.rm_file(str(path))


def touch(path: epath.Path, content: bytes) -> None:
    """Renews the time of the object."""
    files.bucket_client().pipe_file(str(path), content)
