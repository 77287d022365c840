"""MMEB as on the hub: its 36 evaluation sets in both published layouts, and its training sets.

Parquet files stay as they came and are read where they lie: an evaluation set has links to them.
"""

import collections
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from absl import logging

from data_pipelines.benchmarks import unpack
from data_pipelines.benchmarks.public_set import Prepared, PublicSet
from data_pipelines.benchmarks.raw_paths import below
from unime_jax.evaluation.benchmarks.mmeb_instructions import TRAINING
from unime_jax.evaluation.benchmarks.mmeb_rows import APART
from unime_jax.evaluation.scores import MMEB_V1
from unime_jax.evaluation.tasks.mmeb import COLUMNS

ROWS = 1000  # of each evaluation set
MOST = 1000  # candidates of a row
# Sets whose candidates are all labels (VLM2Vec, Table 1); ObjectNet's are counted differently by
# different sources.
LABELS: Mapping[str, int] = {
    "ImageNet-1K": 1000,
    "N24News": 24,
    "HatefulMemes": 2,
    "VOC2007": 20,
    "SUN397": 397,
    "Place365": 365,
    "ImageNet-A": 1000,
    "ImageNet-R": 200,
    "Country211": 211,
}
# Rows of the training sets that are known exactly.
TRAINING_ROWS: Mapping[str, int] = {
    "ImageNet_1K": 100_000,
    "N24News": 48_988,
    "HatefulMemes": 8_500,
    "VOC2007": 7_844,
    "SUN397": 19_850,
    "OK-VQA": 9_009,
    "A-OKVQA": 17_056,
    **dict.fromkeys(("VisualNews_t2i", "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO"), 100_000),
}
TRAINING_COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
SPLIT, PARAPHRASED = "original", "diverse_instruction"
MEDIA = tuple(f"{folder}mmeb_v1.tar.gz" for folder in ("", "image-tasks/", "image_tasks/"))
DEEPEST = 3  # folders between the raw one and that of the images
NAMED = 3  # missing images that a message names


def read(
    raw: Path, folder: Path, *, rows: int = ROWS, labels: Mapping[str, int] = LABELS
) -> Prepared:
    """Evaluation sets: TIGER-Lab/MMEB-eval, or ziyjiang/MMEB_Test_Instruct, told by its columns.

    `<raw>/<set>/test-*.parquet` are the rows of a set. Images are in `raw`, or beside it in those
    of the set "mmeb", below any folder: the root of the archive is not a part of their paths. The
    hub's CIFAR-100, which no average counts, is left out.

    Args:
      rows: of each set.
      labels: candidates of each row, of sets where that is known.

    Raises:
      FileNotFoundError: there are no rows, or images are missing.
      ValueError: a column is missing, or a set has another number of rows or candidates.
    """
    files = _parquet_files(raw, "test", MMEB_V1)
    tables = {name: [_read_table(file) for file in own] for name, own in files.items()}
    for archive in MEDIA:
        if (raw / archive).is_file():
            unpack.unpack_all(raw, (archive,))
    candidates = {
        name: _checked(name, pyarrow.concat_tables(own), rows, labels.get(name))
        for name, own in tables.items()
    }
    paths = {name: _paths(own, ("qry_img_path", "tgt_img_path")) for name, own in tables.items()}
    images = _image_folder(_image_places(raw, folder), paths)
    for name, own in paths.items():
        if missing := [path for path in own if not below(images, path).is_file()]:
            raise FileNotFoundError(f"{name}: {_said(missing, images)}")
    _link(files, folder / "rows")
    return Prepared(
        rows="rows/*.parquet",
        images=str(images),
        counts={name: sum(map(len, own)) for name, own in tables.items()},
        extra={"candidates": candidates},
    )


def read_training(raw: Path, folder: Path) -> Prepared:
    """Training sets of TIGER-Lab/MMEB-train, rows and images where they lie.

    Rows say `images/<set>/...`, and the archives lie in `images_zip`: a link brings them together.
    Of the two splits, set.json's rows are the original one; it has the glob of the other, too.

    Raises:
      FileNotFoundError: there are no rows, or none of the images.
      ValueError: a column is missing.
    """
    if not (raw / "images").exists() and (raw / "images_zip").is_dir():
        (raw / "images").symlink_to("images_zip", target_is_directory=True)
    files = _parquet_files(raw, SPLIT, TRAINING)
    counts, missing = {}, []
    for name, own in files.items():
        tables = [_read_table(file, TRAINING_COLUMNS) for file in own]
        counts[f"{name}/{SPLIT}"] = sum(map(len, tables))
        _warn_of_other_words(name, tables[0])
        paths = list(_paths(tables, ("qry_image_path", "pos_image_path")))
        own_missing = [path for path in paths if not below(raw, path).is_file()]
        if paths and len(own_missing) == len(paths):
            raise FileNotFoundError(f"{name}: {_said(own_missing, raw)}")
        missing += own_missing
    if missing:
        logging.warning("%s; training leaves their rows out", _said(missing, raw))
    return Prepared(
        rows=str(raw / "*" / f"{SPLIT}-*.parquet"),
        images=str(raw),
        counts=counts,
        extra={PARAPHRASED: os.path.relpath(raw / "*" / f"{PARAPHRASED}-*.parquet", folder)},
    )


def _parquet_files(raw: Path, split: str, known: Iterable[str]) -> dict[str, list[Path]]:
    """Files of a split by set, in the order of `known`.

    Raises:
      FileNotFoundError: there are none.
    """
    for pattern in (f"*/{split}-*.parquet", f"*/*/{split}-*.parquet"):
        by_set = collections.defaultdict(list)
        for file in sorted(raw.glob(pattern)):
            by_set[file.parent.name].append(file)
        if files := {name: by_set[name] for name in known if name in by_set}:
            if absent := [name for name in known if name not in files]:
                logging.warning("%s has no files of %s", raw, ", ".join(absent))
            return files
    raise FileNotFoundError(
        f"{raw} has no <set>/{split}-*.parquet of MMEB, such as "
        f"{next(iter(known))}/{split}-00000-of-00001.parquet"
    )


def _read_table(file: Path, needed: Sequence[str] = ()) -> pyarrow.Table:
    """The columns of a file that are looked at.

    Raises:
      ValueError: it is damaged, or has other columns.
    """
    try:
        schema = pyarrow.parquet.read_schema(file)
        names = schema.names
        if not needed:
            needed = (*COLUMNS, "tgt_inst", APART) if APART in names else COLUMNS
        if missing := [name for name in needed if name not in names]:
            raise ValueError(f"{file} has no column {', '.join(missing)}; it has {names}")
        for name in ("tgt_text", "tgt_img_path"):
            if name in needed and not pyarrow.types.is_list(schema.field(name).type):
                raise ValueError(f"{file}: {name} must be a list, gold first")
        return pyarrow.parquet.read_table(file, columns=list(needed))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}; fetch it again") from error


def _checked(name: str, table: pyarrow.Table, rows: int, labels: int | None) -> list[int]:
    """The least and the most candidates of a row. Raises ValueError for a count that is wrong."""
    if len(table) != rows:
        raise ValueError(f"{name} has {len(table)} rows in place of {rows}; fetch its file again")
    texts, paths = (
        pyarrow.compute.fill_null(pyarrow.compute.list_value_length(table[column]), 0).to_pylist()
        for column in ("tgt_text", "tgt_img_path")
    )
    apart = APART in table.column_names
    counts = []
    for row, (of_texts, of_paths) in enumerate(zip(texts, paths, strict=True)):
        if of_texts != of_paths and not apart:
            raise ValueError(f"{name}, row {row}: {of_texts} tgt_text but {of_paths} tgt_img_path")
        count = max(of_texts, of_paths)
        if not 2 <= count <= MOST or labels not in (None, count):
            expected = f"{labels}" if labels else f"2 to {MOST}"
            raise ValueError(f"{name}, row {row}: {count} candidates in place of {expected}")
        counts.append(count)
    return [min(counts), max(counts)]


def _paths(tables: Sequence[pyarrow.Table], columns: Sequence[str]) -> dict[str, None]:
    """Distinct paths of images, in the order in which they come."""
    paths: dict[str, None] = {}
    for table in tables:
        for name in columns:
            cells = table[name].combine_chunks()
            if pyarrow.types.is_list(cells.type) or pyarrow.types.is_large_list(cells.type):
                cells = cells.flatten()
            paths |= dict.fromkeys(path for path in cells.unique().to_pylist() if path)
    return paths


def _image_places(raw: Path, folder: Path) -> list[Path]:
    """Folders to look for images in: the set's own, or those of the other layout's set."""
    return [raw, folder.parent / "mmeb" / "raw", raw.parent / "mmeb"]


def _image_folder(places: Sequence[Path], paths: Mapping[str, Iterable[str]]) -> Path:
    """The folder that paths are relative to, told by the first path of each set.

    Raises:
      FileNotFoundError: there is none.
    """
    first = [next(iter(own)) for own in paths.values() if own]
    for place in places:
        for folder in _folders(place, DEEPEST):
            if any(below(folder, path).is_file() for path in first):
                return folder
    raise FileNotFoundError(
        f"images are missing: no folder of {places[0]} has {' or '.join(first[:NAMED])}. They are "
        "in images.zip of TIGER-Lab/MMEB-eval, or in image-tasks/mmeb_v1.tar.gz of "
        "TIGER-Lab/MMEB-V2"
    )


def _folders(place: Path, depth: int) -> Iterator[Path]:
    """A folder and those in it, the outer ones first."""
    level = [place] if place.is_dir() else []
    for _ in range(depth + 1):
        yield from level
        level = [
            Path(entry.path)
            for folder in level
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
            if entry.is_dir() and not entry.name.startswith(".")
        ]


def _link(files: Mapping[str, Sequence[Path]], folder: Path) -> None:
    """Links to the parquet files, each by the name of its set."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in files.items():
        for number, file in enumerate(own):
            shard = f"-{number:05d}-of-{len(own):05d}" if len(own) > 1 else ""
            inside = file.is_relative_to(folder.parent)  # both may be moved together then
            target = os.path.relpath(file, folder) if inside else file
            (folder / f"{name}{shard}.parquet").symlink_to(target)


def _warn_of_other_words(name: str, table: pyarrow.Table) -> None:
    """Says so where the first row of a training set is not worded as the evaluation sets are."""
    try:
        TRAINING[name].query_content(table["qry"][0].as_py())
        TRAINING[name].target_content(table["pos_text"][0].as_py())
    except (ValueError, IndexError) as error:
        logging.warning("%s/%s: %s", name, SPLIT, error)


def _said(missing: Sequence[str], folder: Path) -> str:
    return (
        f"{len(missing)} images are missing in {folder}, such as {', '.join(missing[:NAMED])}: "
        "fetch the archives again"
    )


SETS = (
    PublicSet(
        name="mmeb",
        kind="mmeb",
        repository="TIGER-Lab/MMEB-eval",
        revision="",  # its main branch; set.json has the commit
        files=(*(f"{name}/test-*.parquet" for name in MMEB_V1), "images.zip"),
        archives=("images.zip",),
        counts=dict.fromkeys(MMEB_V1, ROWS),
        read=read,
    ),
    PublicSet(
        name="mmeb_instruct",
        kind="mmeb",
        repository="ziyjiang/MMEB_Test_Instruct",
        files=tuple(f"{name}/test-*.parquet" for name in MMEB_V1),
        counts=dict.fromkeys(MMEB_V1, ROWS),
        read=read,
        note="Its images are those of the set mmeb, which is prepared first, or those of "
        "image-tasks/mmeb_v1.tar.gz in TIGER-Lab/MMEB-V2 (commit e7bbfeb6), put into the raw "
        "folder.",
    ),
    PublicSet(
        name="mmeb_train",
        kind="pairs",
        repository="TIGER-Lab/MMEB-train",
        files=(f"*/{SPLIT}-*.parquet", f"*/{PARAPHRASED}-*.parquet", "images_zip/*.zip"),
        archives=("images_zip/*.zip",),
        counts={f"{name}/{SPLIT}": rows for name, rows in TRAINING_ROWS.items()},
        read=read_training,
    ),
)
