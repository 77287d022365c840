"""Winoground: two images and two captions of the same words in another order."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.benchmarks import composition_files as reading
from data_pipelines.benchmarks import unpack
from data_pipelines.benchmarks.public_set import Prepared, PublicSet

IMAGES, CAPTIONS = ("image_0", "image_1"), ("caption_0", "caption_1")


def read(raw: Path, folder: Path) -> Prepared:
    """Rows of data/examples.jsonl with the images of data/images.zip, or of data/*.parquet.

    The hub has had both. In the first, an image is the name of its file without the ending; files
    stay where they are unpacked.

    Raises:
      ValueError: a file or an image is missing, or a row is not complete; the message names it.
    """
    lines = [raw / name for name in ("data/examples.jsonl", "examples.jsonl")]
    listed = next((path for path in lines if path.exists()), None)
    if listed is None and any((raw / "data").glob("*.parquet")):
        counts = {"test": reading.write_rows(folder, "test", _parquet_rows(raw, folder))}
        return Prepared("rows/*.jsonl", "images", counts, {"rule": "winoground"})
    if listed is None:
        raise ValueError(f"Winoground is missing: there is no {' or '.join(map(str, lines))}")
    if (raw / "data" / "images.zip").is_file():
        unpack.unpack_all(raw, ("data/images.zip",))
    images = reading.first_of(raw, ("data/images", "images"), "the folder of Winoground's images")
    rows = _listed_rows(listed, images)
    counts = {"test": reading.write_rows(folder, "test", rows)}
    return Prepared("rows/*.jsonl", str(images.absolute()), counts, {"rule": "winoground"})


def _listed_rows(path: Path, images: Path) -> Iterator[dict[str, Any]]:
    names = {file.stem: file.name for file in images.iterdir()}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        where = f"{path}, line {number + 1}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}; fetch it again") from error
        first, second, *captions = reading.texts(row, (*IMAGES, *CAPTIONS), where)
        files = [
            reading.image_file(images, names.get(stem, f"{stem}.png"), where)
            for stem in (first, second)
        ]
        yield {"images": files, "captions": captions}


def _parquet_rows(raw: Path, folder: Path) -> Iterator[dict[str, Any]]:
    images = reading.ImageFiles(folder)
    for where, row in reading.parquet_rows(raw, (*IMAGES, *CAPTIONS)):
        yield {
            "images": [images.add(row[column], where) for column in IMAGES],
            "captions": reading.texts(row, CAPTIONS, where),
        }


SETS: tuple[PublicSet, ...] = (
    PublicSet(
        name="winoground",
        kind="composition",
        repository="facebook/winoground",
        revision="b400e173549071916ad1b3d449293bc8d8b4b763",
        files=("data/*",),
        counts={"test": 400},
        read=read,
        gated=True,
        licence="Meta's research licence for Winoground, with Getty Images' terms",
    ),
)
