"""COLA: two images and two captions that swap attributes, and images of objects with attributes."""

import functools
import posixpath
from pathlib import Path
from typing import Any

from data_pipelines.benchmarks import composition_files as reading
from data_pipelines.benchmarks.public_set import Prepared, PublicSet

SINGLE = "COLA_singleobjects_benchmark_{}.json"
FILE = "COLA_multiobjects_matching_benchmark.json"


def read(raw: Path, folder: Path) -> Prepared:
    """Rows of the list of [link to image 1, caption 1, link to image 2, caption 2].

    `raw` has data/COLA_multiobjects_matching_benchmark.json and images/, whose files are named as
    the links end (2414605.jpg); they stay where they are.

    Raises:
      ValueError: a file or an image is missing, or a row is not complete; the message names it.
    """
    images = reading.first_of(raw, ("images/vg", "images"), "the folder of COLA's images")
    path = reading.first_of(raw, (f"data/{FILE}", FILE), "COLA")
    content = reading.read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} is no list of rows")
    rows = [_row(row, images, f"{path}, row {number}") for number, row in enumerate(content)]
    counts = {"multi_objects": reading.write_rows(folder, "multi_objects", rows)}
    return Prepared("rows/*.jsonl", str(images.absolute()), counts, {"rule": "cola"})


def _row(row: Any, images: Path, where: str) -> dict[str, list[str]]:
    if not isinstance(row, list) or len(row) != 4 or not all(isinstance(v, str) and v for v in row):
        raise ValueError(f"{where} is not [image, caption, image, caption]: {str(row)[:100]}")
    links, captions = row[::2], row[1::2]
    names = [posixpath.basename(link) for link in links]
    return {
        "images": [reading.image_file(images, name, where) for name in names],
        "captions": captions,
    }


def read_single(raw: Path, folder: Path, name: str) -> Prepared:
    """Rows of {labels, data}, whose data are lists of an image's path, labels and what counts.

    `raw` has data/COLA_singleobjects_benchmark_<name>.json and images/, with files named as the
    paths end, in folders as the paths have them or in none. A label is a caption; of each image, a
    list of 0 and 1 says which are true, and another one for which it counts.

    Raises:
      ValueError: as `read`.
    """
    file = SINGLE.format(name)
    images = reading.first_of(raw, ("images",), "the folder of COLA's images")
    path = reading.first_of(raw, (f"data/{file}", file), "COLA")
    content = reading.read_json(path)
    if isinstance(content, list) and len(content) == 2:  # as COLA's own script has it
        content = dict(zip(("labels", "data"), content, strict=True))
    if not isinstance(content, dict) or not {"labels", "data"} <= content.keys():
        raise ValueError(f"{path} has no labels and data")
    captions = [str(label) for label in content["labels"]]
    rows = (
        _labelled_row(row, captions, images, f"{path}, row {number}")
        for number, row in enumerate(content["data"])
    )
    subset = name.lower()
    counts = {subset: reading.write_rows(folder, subset, rows)}
    return Prepared("rows/*.jsonl", str(images.absolute()), counts, {"rule": "cola_map"})


def _labelled_row(row: Any, captions: list[str], images: Path, where: str) -> dict[str, Any]:
    """The objects of an image, which come before its labels, are not read; PACO has none."""
    if not isinstance(row, list) or len(row) not in (3, 4) or not isinstance(row[0], str):
        raise ValueError(f"{where} is not [image, objects, labels, counted]: {str(row)[:100]}")
    marks = {}
    for name, values in zip(("right", "counted"), row[-2:], strict=True):
        if not isinstance(values, list) or len(values) != len(captions):
            raise ValueError(f"{where}: {name} is no list of {len(captions)} labels")
        marks[name] = [number for number, value in enumerate(values) if value == 1]
    parts = row[0].split("/")
    places = ["/".join(parts[start:]) for start in range(max(len(parts) - 3, 0), len(parts))]
    file = next((place for place in places if (images / place).is_file()), places[-1])
    image = reading.image_file(images, file, where)
    return {"images": [image], "captions": captions, **marks}


def _single(name: str) -> PublicSet:
    file = SINGLE.format(name)
    return PublicSet(
        name=f"cola_{name.lower()}",
        kind="composition",
        files=(f"data/{file}",),
        counts={},
        read=functools.partial(read_single, name=name),
        licence="MIT; images: their own terms",
        note=f"data/{file} of https://github.com/arijitray1993/COLA goes into data/, and the images"
        " that it names into images/.",
    )


SETS: tuple[PublicSet, ...] = (
    PublicSet(
        name="cola",
        kind="composition",
        files=(f"data/{FILE}",),
        counts={"multi_objects": 210},
        read=read,
        licence="MIT; images: Visual Genome, CC BY 4.0",
        note=f"data/{FILE} of https://github.com/arijitray1993/COLA goes into data/, and the files"
        " that it links to into images/; images/vg/ of the hub's dataset array/cola has them, too.",
    ),
    *(_single(name) for name in ("GQA", "CLEVR", "PACO")),
)
