"""One preparation of a folder at a time, with one set of arguments; killed ones leave nothing."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unime_jax import files
from unime_jax.operations import workdir_lock

# Names under which TFDS and the builders here collect what is not whole yet.
UNFINISHED = ("incomplete.*", "*/incomplete.*", ".incomplete_*", "*.partial")
PARAMETERS = "parameters.json"  # in the folder


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


def check_parameters(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether what a folder is built with was noted; ValueError if it was begun with others."""
    path = folder / PARAMETERS
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}), so that nobody can say what {folder} was built with."
            " Use another data_dir, or delete this one to build it anew."
        ) from error
    if found != wanted:
        differ = [name for name in wanted if found.get(name) != wanted[name]]
        raise ValueError(
            f"{folder}: built with "
            + ", ".join(f"{name}={found.get(name)}" for name in differ)
            + "; asked for "
            + ", ".join(f"{name}={wanted[name]}" for name in differ)
            + ". Use another data_dir, or delete this one to build it anew."
        )
    return True


def note_parameters(folder: Path, wanted: dict[str, Any]) -> None:
    """Writes what a folder is built with, before anything is built."""
    files.write_whole(folder / PARAMETERS, json.dumps(wanted, indent=2))
