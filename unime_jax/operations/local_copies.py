"""Local copies of a bucket's folders, for readers that map files into memory.

ArrayRecord, safetensors and the vectors of a teacher are read from local files. A copy lies below
$XDG_CACHE_HOME (~/.cache)/unime_jax/copies, is made once a host, and again when what lies in the
bucket has changed. Old copies stay until they are removed by hand.
"""

import concurrent.futures
import fnmatch
import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Sequence

from absl import logging

from unime_jax import files
from unime_jax.operations import watchdog, workdir_lock

THREADS = 16  # files that are copied at the same time


def local_copy(path: files.Path, *, patterns: Sequence[str] = ("*",)) -> pathlib.Path:
    """A local folder or file with the same name and content; a local path is its own.

    Args:
      patterns: of the names below the folder that are needed, as in `fnmatch`.

    Raises:
      FileNotFoundError: there is nothing of that name.
      ValueError: there is not enough room for it.
    """
    if isinstance(path, pathlib.Path):
        return path
    client, root = files.bucket_client(), str(path).removeprefix("gs://")
    listed = client.find(root, detail=True)
    chosen = {
        name.removeprefix(root).lstrip("/"): (name, entry)
        for name, entry in listed.items()
        if name == root
        or any(fnmatch.fnmatch(name.removeprefix(root).lstrip("/"), p) for p in patterns)
    }
    if not chosen:
        raise FileNotFoundError(2, "there is nothing of that name", str(path))
    size = sum(entry["size"] for _, entry in chosen.values())
    versions = sorted(f"{name} {entry['generation']}" for name, entry in chosen.values())
    digest = hashlib.blake2b("\n".join(versions).encode(), digest_size=12).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    place = pathlib.Path(home, "unime_jax", "copies", digest)
    copy = place / path.name
    if copy.exists():
        return copy
    place.parent.mkdir(parents=True, exist_ok=True)
    with workdir_lock.owned(place.parent, f"{digest}.lock", what="copies into", wait=True):
        if copy.exists():
            return copy
        free = shutil.disk_usage(place.parent).free
        if size > free:
            raise ValueError(
                f"{path} has {size / 1e9:.1f} GB, and {place.parent} has room for "
                f"{free / 1e9:.1f} GB. Set XDG_CACHE_HOME to a folder on a larger disk, or mount "
                "the bucket and give the mounted folder"
            )
        started = time.monotonic()
        logging.info("copying %s (%d files, %.2f GB) to %s", path, len(chosen), size / 1e9, copy)
        partial = place.with_name(f"{digest}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        targets = [partial / path.name / name for name in chosen]
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            names = [name for name, _ in chosen.values()]
            for _ in pool.map(client.get_file, names, map(str, targets)):
                watchdog.progress()
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
        logging.info("copied %s in %.0f s", path, time.monotonic() - started)
    return copy
