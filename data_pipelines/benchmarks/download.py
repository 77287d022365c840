"""Downloads of a public set's files: pinned, resumed after any kill, verified by size and hash."""

import dataclasses
import fnmatch
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from absl import logging
from tqdm import tqdm

from data_pipelines.benchmarks import unpack
from data_pipelines.benchmarks.hub import Hub, HubFile, RefusedError, UnreachableError
from data_pipelines.benchmarks.public_set import PublicSet
from data_pipelines.benchmarks.raw_paths import below
from unime_jax import files

MANIFEST = ".download.json"  # in the raw folder: what it is a copy of
PART = ".part"  # after the name of a file that is not whole
WAITS = (2.0, 8.0, 30.0, 120.0, 300.0)
BLOCK = 2**22  # bytes read at a time to be hashed

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A commit of a repository, and those of its files that a set consists of."""

    repository: str
    revision: str  # as the catalogue has it
    patterns: tuple[str, ...]
    commit: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)


def download(public: PublicSet, raw: Path, hub: Hub, *, waits: Sequence[float] = WAITS) -> Manifest:
    """Fetches what is missing of a set's files into `raw`, where they lie as in the repository.

    A file has its name only when its content is what the hub says. What has come of another one is
    kept, and the next call goes on from there. Once all names are known and all files are there, no
    network is needed.

    Args:
      waits: seconds before the next try, after as many in turn without a byte.

    Raises:
      RefusedError: the hub has no such repository, commit or files, or wants a licence accepted.
      UnreachableError: the network is down, for longer than all waits.
      ValueError: a file's content is not what the hub says.
      RuntimeError, OSError: the disk is full.
    """
    known = read_manifest(raw)
    if known is not None and _is_of(known, public):
        manifest = known
    else:
        manifest = _with_waits(lambda: _look_up(public, hub), lambda: 0, waits)
        if known is not None and known.commit != manifest.commit:
            logging.warning("%s: what %s has of %s is removed", public.name, raw, known.commit)
            _remove(known, raw)
        raw.mkdir(parents=True, exist_ok=True)
        _verify_present(manifest, raw)
        files.write_whole(raw / MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=1))
    missing = [file for file in manifest.files if not is_there(file, raw)]
    _check_room(public, missing, raw)
    with tqdm(
        total=sum(file.size for file in missing),
        desc=public.name,
        unit="B",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        for file in missing:
            logging.info("%s: fetching %s (%d MB)", public.name, file.path, file.size >> 20)
            _fetch(manifest, file, raw, hub, bar, waits)
    return manifest


def read_manifest(raw: Path) -> Manifest | None:
    """What a raw folder is a copy of; None where nothing has been downloaded, or it is damaged."""
    try:
        values = files.read_object(raw / MANIFEST)
        values["patterns"] = tuple(values["patterns"])
        values["files"] = tuple(HubFile(**file) for file in values["files"])
        return Manifest(**values)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def is_there(file: HubFile, raw: Path) -> bool:
    """Whether a file is whole, by its name and size; content was verified before it was named."""
    path = below(raw, file.path)
    return path.is_file() and path.stat().st_size == file.size


def _is_of(known: Manifest, public: PublicSet) -> bool:
    asked = (public.repository, public.revision, public.files)
    return (known.repository, known.revision, known.patterns) == asked


def _look_up(public: PublicSet, hub: Hub) -> Manifest:
    commit = hub.commit(public.repository, public.revision)
    known = hub.files(public.repository, commit)
    chosen: dict[str, HubFile] = {}
    for pattern in public.files:
        matching = [file for file in known if fnmatch.fnmatchcase(file.path, pattern)]
        if not matching:
            raise RefusedError(
                f"dataset {public.repository} at {commit} has no file {pattern}; it has "
                f"{len(known)} files, such as {', '.join(file.path for file in known[:5])}"
            )
        chosen |= {file.path: file for file in matching}
    return Manifest(
        public.repository, public.revision, public.files, commit, tuple(chosen.values())
    )


def _remove(known: Manifest, raw: Path) -> None:
    """Removes what was downloaded, and what its archives became; files of others stay."""
    for file in known.files:
        path = below(raw, file.path)
        path.unlink(missing_ok=True)
        path.with_name(path.name + PART).unlink(missing_ok=True)
        if unpack.is_archive(path):
            shutil.rmtree(unpack.folder_of(path), ignore_errors=True)


def _verify_present(manifest: Manifest, raw: Path) -> None:
    """Removes files that somebody else has put there, and that are not what the hub says."""
    for file in manifest.files:
        path = below(raw, file.path)
        if path.is_file() and _fault(file, path):
            logging.warning("%s is not as on the hub, and is fetched again", path)
            path.unlink()


def _fetch(
    manifest: Manifest,
    file: HubFile,
    raw: Path,
    hub: Hub,
    bar: tqdm,
    waits: Sequence[float],
) -> None:
    target = below(raw, file.path)
    part = target.with_name(target.name + PART)
    target.parent.mkdir(parents=True, exist_ok=True)
    before = bar.n

    def attempt() -> str:
        with part.open("ab+") as content:
            if content.tell() > file.size:
                content.truncate(0)
            start = content.seek(0, os.SEEK_END)
            bar.update(before + start - bar.n)
            if start < file.size:
                counted = cast(BinaryIO, _Counted(content, bar))
                hub.append(manifest.repository, manifest.commit, file, counted)
            content.flush()
            os.fsync(content.fileno())
        wrong = _fault(file, part)
        if wrong and _size(part) >= file.size:
            part.unlink()
        return wrong

    for _ in range(2):  # bytes that were damaged on their way are fetched once more
        fault = _with_waits(attempt, lambda: _size(part), waits)
        if not fault:
            part.replace(target)
            return
    raise ValueError(
        f"{file.path} of dataset {manifest.repository} at {manifest.commit} came twice with other "
        f"content than the hub says: {fault}. Something between here and the hub changes files; "
        "the same command tries again"
    )


def _with_waits(attempt: Callable[[], T], progress: Callable[[], int], waits: Sequence[float]) -> T:
    """The result of an attempt, which is made anew while the network fails, after longer waits."""
    left, before = list(waits), progress()
    while True:
        try:
            return attempt()
        except UnreachableError as error:
            if (now := progress()) > before:  # bytes have come: the network is not down
                left, before = list(waits), now
            if not left:
                raise UnreachableError(
                    f"{error}. {len(waits)} more tries have failed, too; what has come is kept, "
                    "and the same command goes on from there. Without a network, name local "
                    "copies by --raw"
                ) from error
            logging.warning("%s; trying again in %g seconds", error, left[0])
            time.sleep(left.pop(0))


def _fault(file: HubFile, path: Path) -> str:
    """How a file's content differs from what the hub says; "" if it does not."""
    if (size := path.stat().st_size) != file.size:
        return f"{size} bytes in place of {file.size}"
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
    expected = file.sha256 or file.git_hash
    name = "SHA-256" if file.sha256 else "git hash"
    return "" if digest.hexdigest() == expected else f"{name} {digest.hexdigest()}, not {expected}"


def _check_room(public: PublicSet, missing: Sequence[HubFile], raw: Path) -> None:
    """Raises RuntimeError where a disk has no room for what is missing."""
    partly = sum(_size(below(raw, file.path + PART)) for file in missing)
    needed, free = sum(file.size for file in missing) - partly, shutil.disk_usage(raw).free
    if needed > free:
        raise RuntimeError(
            f"{raw}: {public.name} needs {needed / 1e9:.1f} GB more, and the disk has "
            f"{free / 1e9:.1f} GB free. Make room (what archives hold takes as much again), and "
            "the same command goes on; or name another --folder"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _Counted:
    """A binary file that shows on a bar what is written."""

    def __init__(self, file: BinaryIO, bar: tqdm):
        self._file, self._bar = file, bar

    def write(self, data: bytes) -> int:
        self._bar.update(len(data))
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(size)
