"""Karpathy's test splits of Flickr30K and COCO, in any of three public layouts.

- Karpathy's own: `dataset_flickr30k.json` or `dataset_coco.json` (of caption_datasets.zip), and the
  images beside it, in `flickr30k-images/` or `val2014/`.
- `royokong/flickr30k_test` and `royokong/coco_test`, which UniME's evaluation reads: parquet files
  in `data/` with the columns `image`, an image file, and `text`, a list.
- `nlphuji/flickr_1k_test_image_text_retrieval` and `nlphuji/mscoco_2014_5k_test_...`, which
  CLIP_benchmark has: a csv with the columns `filename` and `raw`, a list as text, and a zip.

Of an image the first five captions count, as in the papers; COCO has up to seven.
"""

import ast
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.benchmarks import caption_rows, unpack
from data_pipelines.benchmarks.caption_rows import Captioned
from data_pipelines.benchmarks.public_set import Prepared, PublicSet
from unime_jax import files
from unime_jax.data import images
from unime_jax.data.formats import open_dataset

CAPTIONS = 5  # of an image, the first


@dataclasses.dataclass(frozen=True)
class Layouts:
    """Names that the layouts of one set have for their files."""

    json: str
    images: tuple[str, ...]  # folders of images beside it, any of them
    csv: str
    archive: str  # of the images that go with the csv


FLICKR30K = Layouts(
    "dataset_flickr30k.json",
    ("flickr30k-images", "flickr30k_images", "images"),
    "test_1k_flickr.csv",
    "images_flickr_1k_test.zip",
)
COCO = Layouts(
    "dataset_coco.json", (".",), "test_5k_mscoco_2014.csv", "images_mscoco_2014_5k_test.zip"
)


def read(name: str, layouts: Layouts, raw: Path, folder: Path) -> Prepared:
    """The test split of one set, from whichever layout `raw` is in.

    Raises:
      FileNotFoundError: none of them is there, or images are missing.
      ValueError: a row is not as in the public files.
    """
    if (raw / layouts.json).exists():
        where = caption_rows.first_folder(raw, layouts.images, "images")
        return caption_rows.write(name, folder, where, _of_json(raw / layouts.json))
    if (raw / layouts.csv).exists():
        unpack.unpack_all(raw, (layouts.archive,))
        where = unpack.folder_of(raw / layouts.archive)
        return caption_rows.write(name, folder, where, _of_csv(raw / layouts.csv))
    if any((raw / "data").glob("*.parquet")):
        rows = _of_parquet(raw / "data", folder / "images")
        return caption_rows.write(name, folder, folder / "images", rows)
    raise FileNotFoundError(
        f"{raw} has neither {layouts.json} nor {layouts.csv} nor data/*.parquet"
    )


def _of_json(path: Path) -> Iterator[Captioned]:
    """Karpathy's splits: images with `filepath` (COCO only), `filename`, `split`, `sentences`."""
    listed = files.read_object(path).get("images")
    if not isinstance(listed, list):
        raise ValueError(f"{path} has no list of images")
    for number, image in enumerate(listed):
        where = f"{path}, image {number}"
        try:
            if image["split"] != "test":
                continue
            name = "/".join(filter(None, (image.get("filepath"), image["filename"])))
            captions = [sentence["raw"] for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is not as in Karpathy's files: no {error}") from error
        yield Captioned(name, _five(captions, where), where)


def _of_csv(path: Path) -> Iterator[Captioned]:
    (rows,) = open_dataset(path).values()
    for number in range(len(rows)):
        row, where = rows[number], f"{path}, row {number}"
        if "filename" not in row or "raw" not in row:
            raise ValueError(f"{where}: no filename or raw among its columns {tuple(row)}")
        if row.get("split", "test") == "test":
            yield Captioned(row["filename"], _five(_listed(row["raw"], where), where), where)


def _of_parquet(data: Path, folder: Path) -> Iterator[Captioned]:
    """Rows whose image files are written, as they are, below `folder`."""
    (rows,) = open_dataset(data).values()
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(rows)):
        row, where = rows[number], f"{data}, row {number}"
        image, texts = row.get("image"), row.get("text")
        content = image.get("bytes") if isinstance(image, Mapping) else image
        if not isinstance(content, bytes) or not isinstance(texts, list):
            raise ValueError(f"{where}: no image file or list of texts in {tuple(row)}")
        try:
            name = f"{number:05d}{images.suffix(content)}"
        except OSError as error:
            raise ValueError(f"{where}: its image cannot be read: {error}") from error
        (folder / name).write_bytes(content)
        yield Captioned(name, _five(texts, where), where)


def _listed(text: str, where: str) -> list[Any]:
    """A list as JSON or as Python writes it."""
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"{where}: raw is no list of captions: {text[:100]!r}") from error
    if not isinstance(value, list):
        raise ValueError(f"{where}: raw is no list of captions: {text[:100]!r}")
    return value


def _five(captions: list[Any], where: str) -> list[Any]:
    if len(captions) < CAPTIONS:
        raise ValueError(f"{where}: {len(captions)} captions, where all images have {CAPTIONS}")
    return captions[:CAPTIONS]


SETS = (
    PublicSet(
        name="flickr30k",
        kind="captions",
        repository="royokong/flickr30k_test",
        revision="e5d418e5d73970abdca4f9d97914e1b4cce76478",
        files=("data/test-*.parquet",),
        counts={"flickr30k": 1000},
        read=functools.partial(read, "flickr30k", FLICKR30K),
    ),
    PublicSet(
        name="coco_karpathy",
        kind="captions",
        repository="royokong/coco_test",
        revision="a68a300",
        files=("data/test-*.parquet",),
        counts={"coco_karpathy": 5000},
        read=functools.partial(read, "coco_karpathy", COCO),
    ),
)
