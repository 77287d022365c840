"""One preparation of a folder at a time; what killed ones have left is cleared away."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from unime_jax.operations import workdir_lock

# Names under which TFDS and the builders here collect what is not whole yet.
UNFINISHED = ("incomplete.*", "*/incomplete.*", ".incomplete_*", "*.partial")


@contextlib.contextmanager
def preparing(folder: Path) -> Iterator[None]:
    """Holds `folder`, which is made if absent, while the body builds in it.

    Another process that builds there, on whichever host, is waited for; so look again, inside, for
    what is missing.
    """
    with workdir_lock.owned(folder, "preparing.lock", what="prepares data in", wait=True):
        for pattern in UNFINISHED:
            for left in folder.glob(pattern):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
        yield
