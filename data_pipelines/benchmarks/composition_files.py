"""Files of compositional benchmarks: their JSON and parquet read, rows and images written."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.benchmarks import unpack
from unime_jax import files
from unime_jax.data import images
from unime_jax.data.formats import open_dataset
from unime_jax.data.quarantine import BadExample

VAL2017 = ("val2017", "images/val2017", "coco/images/val2017")  # COCO's images, below a raw folder
VAL2017_ZIP = "http://images.cocodataset.org/zips/val2017.zip"


def first_of(raw: Path, names: Sequence[str], what: str) -> Path:
    """The first of several files or folders that is there.

    Raises:
      ValueError: none is; the message names the places, and `what` should be there.
    """
    for name in names:
        if (raw / name).exists():
            return raw / name
    listed = " or ".join(str(raw / name) for name in names)
    raise ValueError(f"{what} is missing: there is no {listed}")


def coco_images(raw: Path) -> Path:
    """The folder of COCO's val2017, of which there may be the archive in place of it.

    Raises:
      ValueError: there is neither, or the archive is damaged.
    """
    if (raw / "val2017.zip").is_file():
        unpack.unpack_all(raw, ("val2017.zip",))
    what = f"the folder of COCO's images ({VAL2017_ZIP} may lie in {raw}, too)"
    return first_of(raw, VAL2017, what)


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError if it is none."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; fetch it again") from error


def texts(row: Any, keys: Sequence[str], where: str) -> list[str]:
    """Entries of a row that are texts; ValueError if one is missing, empty or no text."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is no object with {', '.join(keys)}: {str(row)[:100]}")
    values = [row.get(key) for key in keys]
    if wrong := [k for k, v in zip(keys, values, strict=True) if not (isinstance(v, str) and v)]:
        raise ValueError(f"{where} has no text for {', '.join(wrong)}")
    return [str(value) for value in values]


def image_file(folder: Path, name: str, where: str) -> str:
    """`name`, of which there must be a file in `folder`; else ValueError."""
    if not (folder / name).is_file():
        raise ValueError(f"{where}: there is no image {folder / name}")
    return name


def write_rows(folder: Path, subset: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes <folder>/rows/<subset>.jsonl, whole or not at all, and counts the rows."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    files.write_whole(folder / "rows" / f"{subset}.jsonl", "".join(f"{line}\n" for line in lines))
    return len(lines)


def parquet_rows(raw: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of the parquet files of one split, as the hub has them, each with its place.

    Raises:
      ValueError: there are no such files, or several splits, or a row has not all columns.
    """
    folder = first_of(raw, ("data",), "the folder of the parquet files")
    try:
        splits = open_dataset(folder / "*.parquet")
    except FileNotFoundError as error:
        raise ValueError(f"the parquet files are missing: {error}") from error
    if len(splits) != 1:
        raise ValueError(f"{folder} has several splits, {', '.join(splits)}; one was expected")
    ((split, rows),) = splits.items()
    for number in range(len(rows)):
        where = f"{folder}, {split}, row {number}"
        try:
            row = rows[number]
        except BadExample as error:
            raise ValueError(f"{where}: {error.item.reason}; fetch it again") from error
        if missing := [column for column in columns if row.get(column) is None]:
            raise ValueError(f"{where} has no {', '.join(missing)}")
        yield where, dict(row)


class ImageFiles:
    """Images of parquet rows as files, as they came, each content once and named by its hash."""

    def __init__(self, folder: Path):
        """`folder`: of the set; images go to images/ in it."""
        self._folder = folder / "images"
        self._names: dict[bytes, str] = {}
        self._folder.mkdir(parents=True, exist_ok=True)

    def add(self, cell: Any, where: str) -> str:
        """The path of an image in the folder.

        `cell`: {"bytes", "path"} as Hugging Face datasets has it. Raises ValueError if it has no
        bytes, or these are no image.
        """
        data = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if not isinstance(data, bytes) or not data:
            raise ValueError(f"{where} has an image without content: {str(cell)[:100]}")
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if digest not in self._names:
            try:
                images.check(data)
            except images.ImageError as error:
                raise ValueError(f"{where}: {error}") from error
            name = digest.hex() + images.suffix(data)
            (self._folder / name).write_bytes(data)
            self._names[digest] = name
        return self._names[digest]
