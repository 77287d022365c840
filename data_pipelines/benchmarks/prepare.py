"""Preparation of a public set: raw files, read once, become rows and a set.json beside them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines.benchmarks import download, unpack
from data_pipelines.benchmarks.hub import ABBREVIATED, FULL, Hub
from data_pipelines.benchmarks.public_set import PublicSet
from data_pipelines.preparing import preparing
from unime_jax import files
from unime_jax.operations import disk_errors

SET, ROWS, RAW = "set.json", "rows", "raw"  # below the folder of a set


def prepare(
    public: PublicSet,
    folder: Path,
    copies: Path | None,
    hub: Hub,
    waits: Sequence[float] = download.WAITS,
) -> None:
    """Makes <folder>/<name>, unless it is whole; set.json is written last.

    Args:
      copies: raw files in the public layout, which are used where they lie; None: they are
        downloaded into <folder>/<name>/raw, and kept there, as images are read from it.
      waits: as of `download`.

    Raises:
      ValueError: the files are not as the public ones, or cannot be had; the message says why.
      RuntimeError: the disk is full.
      OSError: a file is missing or cannot be read, or the network is down.
    """
    own = folder.absolute() / public.name
    if is_prepared(public, own):
        return
    with disk_errors.explained(own), preparing(own):
        if is_prepared(public, own):  # another process was faster
            return
        (own / SET).unlink(missing_ok=True)
        shutil.rmtree(own / ROWS, ignore_errors=True)
        raw, revision = _raw_files(public, own, copies, hub, waits)
        unpack.unpack_all(raw, public.archives, required=copies is None)
        logging.info("%s: reading %s", public.name, raw)
        prepared = public.read(raw, own)
        check_counts(public, prepared.counts)
        content = {
            "name": public.name,
            "kind": public.kind,
            "rows": _relative(prepared.rows, own),
            "images": _relative(prepared.images, own),
            "source": public.repository or public.note,
            "revision": revision,
            "counts": dict(prepared.counts),
            **prepared.extra,
        }
        files.write_whole(own / SET, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def is_prepared(public: PublicSet, own: Path) -> bool:
    """Whether the folder of a set is whole, and not of another revision than the catalogue's."""
    try:
        content = files.read_object(own / SET)
    except FileNotFoundError:
        return False
    except ValueError as error:
        logging.warning("%s; the set is prepared anew", error)
        return False
    revision = str(content.get("revision", ""))
    is_pinned = FULL.fullmatch(public.revision) or ABBREVIATED.fullmatch(public.revision)
    if revision and is_pinned and not revision.startswith(public.revision):
        logging.warning(
            "%s was prepared from revision %s; it is prepared anew from %s",
            own,
            revision,
            public.revision,
        )
        return False
    return True


def check_counts(public: PublicSet, counts: Any) -> None:
    """Raises ValueError where a subset has not as many rows as the public one."""
    wrong = [
        f"{subset} has {counts.get(subset, 'none')} in place of {rows}"
        for subset, rows in public.counts.items()
        if counts.get(subset) != rows
    ]
    if wrong:
        raise ValueError(
            f"{public.name}: rows are missing, or too many: {'; '.join(wrong)}. The raw files are "
            "not those of the public set, or not all of them"
        )


def _raw_files(
    public: PublicSet, own: Path, copies: Path | None, hub: Hub, waits: Sequence[float]
) -> tuple[Path, str]:
    """The raw folder, and the commit that it is a copy of; "" where that is not known."""
    raw = own / RAW
    if copies is not None:
        if not copies.is_dir():
            raise FileNotFoundError(f"there are no local copies of {public.name} in {copies}")
        return copies.absolute(), ""
    if public.repository:
        return raw, download.download(public, raw, hub, waits=waits).commit
    if not raw.is_dir():
        raise FileNotFoundError(
            f"{public.name} is not on the hub. {public.note} Put the files into {raw}, or name "
            "local copies by --raw"
        )
    return raw, ""


def _relative(path: str, own: Path) -> str:
    """A path relative to the set's folder, if it is below it; else as it is."""
    return Path(path).relative_to(own).as_posix() if Path(path).is_relative_to(own) else path
