"""COLA's multi-object setting: two images, and two captions that swap the attributes of objects."""

import posixpath
from pathlib import Path
from typing import Any

from data_pipelines.benchmarks import composition_files as reading
from data_pipelines.benchmarks.public_set import Prepared, PublicSet

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


SETS: tuple[PublicSet, ...] = (
    PublicSet(
        name="cola",
        kind="composition",
        repository="",
        revision="",
        files=(f"data/{FILE}",),
        archives=(),
        counts={"multi_objects": 210},
        read=read,
        licence="MIT; images: Visual Genome, CC BY 4.0",
        note=f"data/{FILE} of https://github.com/arijitray1993/COLA goes into data/, and the files"
        " that it links to into images/; images/vg/ of the hub's dataset array/cola has them, too.",
    ),
)
