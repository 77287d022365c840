"""mteb's five image clustering sets, as rows of an image and a label."""

import functools
import re
from pathlib import Path

from data_pipelines.benchmarks import composition_files as reading
from data_pipelines.benchmarks.mteb_retrieval import rows_of
from data_pipelines.benchmarks.public_set import Prepared, PublicSet

LABEL = "label"


def read(raw: Path, folder: Path, name: str, split: str, image: str, label: str) -> Prepared:
    """Writes <folder>/rows/<name>.jsonl, and the images of a split's parquet files as they are.

    `image` and `label` are the columns.

    Raises:
      FileNotFoundError: there are no parquet files of the split.
      ValueError: they lie in several folders, or a row has no image or no label.
    """
    stored = reading.ImageFiles(folder)
    rows = []
    for where, row in rows_of(_files(raw, split)):
        if missing := [column for column in (image, label) if row.get(column) is None]:
            raise ValueError(
                f"{where}: no {' and no '.join(missing)}; its columns are {', '.join(row)}"
            )
        rows.append({"image": stored.add(row[image], where), LABEL: row[label]})
    counts = {name: reading.write_rows(folder, name, rows)}
    return Prepared(f"rows/{name}.jsonl", "images", counts)


def _files(raw: Path, split: str) -> list[Path]:
    """The parquet files of a split, in whichever folder the repository has them."""
    of_split = re.compile(rf"{re.escape(split)}(-\d+-of-\d+)?\.parquet")
    files = sorted(file for file in raw.rglob("*.parquet") if of_split.fullmatch(file.name))
    if not files:
        raise FileNotFoundError(f"{raw} has no {split}-00000-of-...parquet")
    if len(folders := sorted({str(file.parent) for file in files})) > 1:
        raise ValueError(
            f"{raw} has the split {split} in {' and '.join(folders)}; leave one of them"
        )
    return files


def _set(
    name: str,
    repository: str,
    revision: str,
    rows: int,
    *,
    split: str = "test",
    image: str = "image",
    label: str = LABEL,
) -> PublicSet:
    return PublicSet(
        name=name,
        kind="clustering",
        repository=repository,
        revision=revision,
        files=(f"*{split}-*.parquet",),
        counts={name: rows},
        read=functools.partial(read, name=name, split=split, image=image, label=label),
    )


SETS = (
    _set(
        "mteb_cifar10_clustering",
        "mteb/cifar10",
        "69a62dd171e24a133d193073e73fda4dbb823266",
        10000,
        image="img",
    ),
    _set(
        "mteb_cifar100_clustering",
        "mteb/cifar100",
        "ac5511f885f65fb75d31a9d8810a8440913f7721",
        10000,
        image="img",
        label="fine_label",
    ),
    _set(
        "mteb_imagenet_dog15_clustering",
        "mteb/imagenet-dog-15",
        "16b4f3ff0eba385e23756afc3fdefc460a5c3444",
        1076,
    ),
    _set(
        "mteb_imagenet10_clustering",
        "mteb/imagenet-10",
        "6ee8458695d029cc225d046deb33342dfca9d4ce",
        13000,
    ),
    _set(
        "mteb_tiny_imagenet_clustering",
        "mteb/tiny-imagenet",
        "e04e259f646f750bd0bdb2a56c2a4577d89bee3d",
        10000,
        split="valid",
    ),
)
