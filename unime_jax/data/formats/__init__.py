"""Formats of data on disk: random access to the rows of each source of a folder, file or glob.

docs/data.md says the same to users.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping

from absl import logging

from unime_jax import files
from unime_jax.data.formats import arrow, csv, jsonl, parquet, tfds, webdataset
from unime_jax.data.formats.rows import Rows, Shards, Source
from unime_jax.operations import local_copies, watchdog

__all__ = ["Rows", "Source", "fingerprint", "open_dataset"]

FORMATS: Mapping[str, Callable[[pathlib.Path, str, tuple[str, ...]], Rows]] = {
    ".jsonl": jsonl.open_file,
    ".ndjson": jsonl.open_file,
    ".csv": csv.open_file,
    ".tsv": csv.open_file,
    ".parquet": parquet.open_file,
    ".arrow": arrow.open_file,
    ".tar": webdataset.open_file,
}
OF_FOLDERS = ("captions.jsonl", "metadata.jsonl", "metadata.csv")  # named by their folder
KNOWN = (
    "a folder that TFDS has prepared (with a dataset_info.json) or that save_to_disk of datasets"
    f" has written, or files {', '.join(FORMATS)}, in the folder or one below it"
)
THREADS = 8  # files that are opened at the same time
ENDS = 2**16  # bytes of a file's beginning and end that its fingerprint is of

_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)")
_NUMBERED = re.compile(r"(.*?)[-_.]?\d+")  # a shard of webdataset
_VERSION = re.compile(r"\d+\.\d+\.\d+")  # of a dataset of TFDS
_PACKED = (".gz", ".bz2", ".xz", ".zst")


def open_dataset(path: str | files.Path) -> dict[str, Source]:
    """The rows of each source, by its name, in the columns that they have on disk.

    `path` is a folder, a file, or a glob of files. Files `<name>-00000-of-00010` are shards of
    source `<name>`, tar files that differ in a last number, too; every other file is a source,
    named without its ending. A folder below is named before: `<folder>/<name>`. Rows are found
    where they lie; nothing is converted. Of a bucket a local copy is opened.

    Raises:
      FileNotFoundError: there is no data of a known format; the message says which there are.
      ValueError: a file is not what its ending says, a shard is missing, or two formats have the
        same name.
    """
    path = files.as_path(path)
    if files.is_remote(path) and _is_tfds(path):
        return {**tfds.open_folder(path)}
    root, local = _local(path)
    if local.is_file():
        return {**_open_files([(_source_name(local, root), local)], root)}
    if root != local:  # a glob
        matches = _matches(root, local)
        if not matches:
            raise FileNotFoundError(f"no data in {path}: no file matches")
        return {**_open_files([(_source_name(file, root), file) for file in matches], root)}
    sources = _open_folder(local, local) if local.is_dir() else {}
    for folder in _folders_below(local):
        opened = _open_folder(folder, local)
        sources |= {_below(folder.name, name): rows for name, rows in opened.items()}
    if not sources:
        raise FileNotFoundError(f"no data in {path}: expected {KNOWN}{_unread(local)}")
    return sources


def fingerprint(path: str | files.Path) -> str:
    """A hash that changes with the data, of what is cheap to see; "" where there is none.

    Of a TFDS folder, of what it records of sizes and shards; else of names, sizes, and the ends of
    the files.
    """
    path = files.as_path(path)
    if _is_tfds(path):
        record = (tfds.version_folder(path) / "dataset_info.json").read_bytes()
        return hashlib.blake2b(record, digest_size=16).hexdigest()
    root, local = _local(path)
    known: Iterable[pathlib.Path] = _data_files(local)
    if root != local and not local.is_file():
        known = _matches(root, local)
    digest = hashlib.blake2b(digest_size=16)
    listed = sorted(file for file in known if file.is_file())
    for file in listed:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(root)}\0{size}\0".encode())
        with file.open("rb") as content:
            digest.update(content.read(ENDS))
            content.seek(max(size - ENDS, 0))
            digest.update(content.read(ENDS))
    return digest.hexdigest() if listed else ""


def _local(path: files.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The folder that paths of images are below, and the local path, which may be a glob."""
    parts = path.parts
    wild = [number for number, part in enumerate(parts) if re.search(r"[*?\[]", part)]
    if wild and not path.exists():
        above = path.parents[len(parts) - wild[0] - 1]
        pattern = "/".join(parts[wild[0] :])
        root = local_copies.local_copy(above, patterns=(pattern,))
        return root, root / pattern
    local = local_copies.local_copy(path)
    return (local.parent if local.is_file() else local), local


def _matches(root: pathlib.Path, local: pathlib.Path) -> list[pathlib.Path]:
    """Files that a glob is of, but for hidden ones."""
    return sorted(
        file
        for file in root.glob(str(local.relative_to(root)))
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(root).parts)
    )


def _open_folder(folder: pathlib.Path, root: pathlib.Path) -> dict[str, Source]:
    """Sources that lie in a folder itself."""
    if arrow.is_folder(folder):
        return {**_open_saved(folder, root)}
    if _is_tfds(folder):
        return {**tfds.open_folder(folder)}
    named = [(_source_name(file, folder), file) for file in _listed(folder, tuple(FORMATS))]
    packed = tuple(known + end for known in FORMATS for end in _PACKED)
    if unread := [file.name for file in _listed(folder, (*packed, ".tgz"))]:
        logging.warning(
            "%s: %s cannot be read at any place, and are left out; unpack them", folder, unread
        )
    return {**_open_files(named, root)}


def _open_saved(folder: pathlib.Path, root: pathlib.Path) -> dict[str, Rows]:
    """Splits that `save_to_disk` has written."""
    folders = tuple(dict.fromkeys((str(folder), str(root))))
    return {
        name: _joined([arrow.open_file(file, name, folders) for file in paths], paths)
        for name, split in arrow.split_folders(folder).items()
        if (paths := arrow.data_files(split))
    }


def _open_files(named: Iterable[tuple[str, pathlib.Path]], root: pathlib.Path) -> dict[str, Rows]:
    """Sources of files with their names; several of a name are shards.

    Raises:
      ValueError: as `open_dataset`.
    """
    shards: dict[str, list[pathlib.Path]] = {}
    for name, file in named:
        if file.suffix.lower() not in FORMATS:
            raise ValueError(f"{file} is of no known format; it must be {KNOWN}")
        shards.setdefault(name, []).append(file)
    for name, paths in shards.items():
        _check_shards(name, paths)

    def opened(name: str, file: pathlib.Path) -> Rows:
        folders = tuple(dict.fromkeys((str(file.parent), str(root))))
        rows = FORMATS[file.suffix.lower()](file, name, folders)
        watchdog.progress()
        return rows

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting = {
            name: [pool.submit(opened, name, file) for file in paths]
            for name, paths in shards.items()
        }
        return {
            name: _joined([future.result() for future in futures], shards[name])
            for name, futures in waiting.items()
        }


def _joined(parts: list[Rows], paths: list[pathlib.Path]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Shards(tuple(parts), tuple(path.name for path in paths))


def _source_name(file: pathlib.Path, root: pathlib.Path) -> str:
    """A file's source, with the folders between it and `root`."""
    name = file.stem
    if file.name in OF_FOLDERS:
        name = file.parent.name
    elif shard := _SHARD.fullmatch(name):
        name = shard[1]
    elif file.suffix.lower() == ".tar" and (numbered := _NUMBERED.fullmatch(name)):
        name = numbered[1] or file.parent.name
    for folder in reversed(file.relative_to(root).parts[:-1]):
        name = _below(folder, name)
    return name


def _below(folder: str, name: str) -> str:
    """A source's name within a folder; one that is named by the folder has it already."""
    return name if name == folder else f"{folder}/{name}"


def _check_shards(name: str, paths: list[pathlib.Path]) -> None:
    """Raises ValueError for files of one name that are not all shards of one source."""
    if len({path.suffix.lower() for path in paths}) > 1:
        listed = ", ".join(path.name for path in paths)
        raise ValueError(
            f"{paths[0].parent}: several files would be source {name!r}: {listed}; rename one, or"
            " name the files that are meant, for example by *.jsonl"
        )
    parts = [_SHARD.fullmatch(path.stem) for path in paths]
    counts = {int(part[3]) for part in parts if part}
    numbers = sorted(int(part[2]) for part in parts if part)
    if all(part is None for part in parts):
        if len(paths) > 1 and paths[0].suffix.lower() != ".tar":
            raise ValueError(
                f"several files would be source {name!r}: {', '.join(map(str, paths))}"
            )
        return
    if None in parts or len(counts) > 1 or numbers != list(range(max(counts))):
        missing = sorted(set(range(max(counts))) - set(numbers))
        lacks = f"shards {str(missing)[1:-1]} are missing" if missing else "there are too many"
        raise ValueError(
            f"source {name!r} in {paths[0].parent} should have {max(counts)} shards, but {lacks};"
            " fetch the data again"
        )


def _is_tfds(folder: files.Path) -> bool:
    """Whether a folder is a dataset of TFDS, or has a version of one."""
    infos = [folder / "dataset_info.json", *folder.glob("*/dataset_info.json")]
    return any(
        info.exists() and not arrow.is_folder(info.parent) and not any(info.parent.glob("*.arrow"))
        for info in infos
        if info.parent == folder or _VERSION.fullmatch(info.parent.name)
    )


def _listed(folder: pathlib.Path, endings: tuple[str, ...]) -> list[pathlib.Path]:
    """Files of a folder with these endings, in order, but for hidden ones."""
    with os.scandir(folder) as entries:  # there may be a million images beside them
        return sorted(
            pathlib.Path(entry.path)
            for entry in entries
            if entry.name.lower().endswith(endings)
            and not entry.name.startswith((".", "_"))
            and entry.is_file()
        )


def _folders_below(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders that may have sources of their own: none of a data set that is a folder itself."""
    if not folder.is_dir() or arrow.is_folder(folder) or _is_tfds(folder):
        return []
    return _inner_folders(folder)


def _inner_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    with os.scandir(folder) as entries:
        return sorted(
            pathlib.Path(entry.path)
            for entry in entries
            if entry.is_dir() and not entry.name.startswith((".", "_"))
        )


def _data_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Files of known formats at a path, in it, or one below."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    inner = [path, *_inner_folders(path)]
    return [file for folder in inner for file in _listed(folder, tuple(FORMATS))]


def _unread(folder: pathlib.Path) -> str:
    """What lies there that might be meant, and cannot be read."""
    if not folder.exists():
        return "; there is nothing of that name"
    names = [file.name for file in _listed(folder, (*_PACKED, ".tgz", ".json"))]
    if not names:
        return ""
    return f". There is {names[0]}: unpack what is compressed, write JSON as an object a line"
