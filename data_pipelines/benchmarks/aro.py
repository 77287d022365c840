"""ARO: relations and attributes of Visual Genome, and orders of words of COCO and Flickr30K.

mteb's parquet files hold whole images. ARO's own code cuts each down to the box of its row, so the
sets whose names end in "_crops" do, too: pixels as they were decoded, in PNG, which loses nothing.
"""

import collections
import functools
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipelines.benchmarks import composition_files as reading
from data_pipelines.benchmarks.public_set import Prepared, PublicSet
from unime_jax.data import images

CAPTIONS = ("true_caption", "false_caption")
ORDERS = ("correct_caption", "hard_text_1", "hard_text_2", "hard_text_3", "hard_text_4")
BOX = ("x", "y", "w", "h")
RELATIONS, ATTRIBUTIONS = "visual_genome_relation.json", "visual_genome_attribution.json"
MIN_ROWS = 25  # of a pair of attributes, below which ARO leaves it out of its mean

# Relations that hold both ways round, or nearly: ARO's notebook leaves them out of its mean.
SYMMETRIC = frozenset(
    """adjusting, attached to, between, bigger than, biting, boarding, brushing, chewing, cleaning,
    climbing, close to, coming from, coming out of, contain, crossing, dragging, draped over,
    drinking, drinking from, driving, driving down, driving on, eating from, eating in, enclosing,
    exiting, facing, filled with, floating in, floating on, flying, flying above, flying in,
    flying over, flying through, full of, going down, going into, going through, grazing in,
    growing in, growing on, guiding, hanging from, hanging in, hanging off, hanging over,
    higher than, holding onto, hugging, in between, jumping off, jumping on, jumping over, kept in,
    larger than, leading, leaning over, leaving, licking, longer than, looking in, looking into,
    looking out, looking over, looking through, lying next to, lying on top of, making, mixed with,
    mounted on, moving, on the back of, on the edge of, on the front of, on the other side of,
    opening, painted on, parked at, parked beside, parked by, parked in, parked in front of,
    parked near, parked next to, perched on, petting, piled on, playing, playing in, playing on,
    playing with, pouring, reaching for, reading, reflected on, riding on, running in, running on,
    running through, seen through, sitting behind, sitting beside, sitting by,
    sitting in front of, sitting near, sitting next to, sitting under, skiing down, skiing on,
    sleeping in, sleeping on, smiling at, sniffing, splashing, sprinkled on, stacked on,
    standing against, standing around, standing behind, standing beside, standing in front of,
    standing near, standing next to, staring at, stuck in, surrounding, swimming in, swinging,
    talking to, topped with, touching, traveling down, traveling on, tying, typing on, underneath,
    wading in, waiting for, walking across, walking by, walking down, walking next to,
    walking through, working in, working on, worn on, wrapped around, wrapped in, by, of, near,
    next to, with, beside, on the side of, around""".replace("\n    ", " ").split(", ")
)


def read_relation(raw: Path, folder: Path) -> Prepared:
    """Whole images of mteb's parquet files of VG-Relation, with relations as groups.

    Raises:
      ValueError: files are missing, or a row is not complete; the message names it.
    """
    return _prepared(folder, _whole_rows(raw, folder, "relation_name"), 0)


def read_attribution(raw: Path, folder: Path) -> Prepared:
    """Whole images of mteb's parquet files of VG-Attribution.

    Pairs of attributes are the groups, where the files have the column `attributes`.

    Raises:
      ValueError: as `read_relation`.
    """
    return _prepared(folder, _whole_rows(raw, folder, "attributes"), MIN_ROWS)


def read_order(raw: Path, folder: Path) -> Prepared:
    """Images of mteb's parquet files with a caption and four of its words in another order.

    Raises:
      ValueError: as `read_relation`.
    """
    stored = reading.ImageFiles(folder)
    rows = (
        {
            "images": [stored.add(row["images"], where)],
            "captions": reading.texts(row, ORDERS, where),
        }
        for where, row in reading.parquet_rows(raw, ("images", *ORDERS))
    )
    counts = {"test": reading.write_rows(folder, "test", rows)}
    return Prepared("rows/*.jsonl", "images", counts, {"rule": "text_acc"})


def read_relation_crops(raw: Path, folder: Path) -> Prepared:
    """Boxes of mteb's parquet files, or of ARO's visual_genome_relation.json and images/.

    Raises:
      ValueError: as `read_relation`.
    """
    return _prepared(folder, _cropped_rows(raw, folder, RELATIONS, "relation_name"), 0)


def read_attribution_crops(raw: Path, folder: Path) -> Prepared:
    """Boxes of ARO's visual_genome_attribution.json and images/, or of mteb's parquet files.

    Raises:
      ValueError: as `read_relation`.
    """
    return _prepared(folder, _cropped_rows(raw, folder, ATTRIBUTIONS, "attributes"), MIN_ROWS)


def _prepared(folder: Path, rows: Iterator[dict[str, Any]], min_rows: int) -> Prepared:
    """Writes rows; groups that ARO leaves out of its mean become "".

    `min_rows`: of a group; 0: of relations, where the symmetric ones are left out.
    """
    listed = list(rows)
    size = collections.Counter(row["group"] for row in listed)
    for row in listed:
        if row["group"] in SYMMETRIC if not min_rows else size[row["group"]] < min_rows:
            row["group"] = ""
    counts = {"test": reading.write_rows(folder, "test", listed)}
    return Prepared("rows/*.jsonl", "images", counts, {"rule": "aro"})


def _group(row: Mapping[str, Any], column: str) -> str:
    """The relation, or the pair of attributes as ARO names it; "" if the row has none."""
    value = row.get(column)
    return "_".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _whole_rows(raw: Path, folder: Path, column: str) -> Iterator[dict[str, Any]]:
    stored = reading.ImageFiles(folder)
    for where, row in reading.parquet_rows(raw, ("image", *CAPTIONS)):
        captions = reading.texts(row, CAPTIONS, where)
        image = stored.add(row["image"], where)
        yield {"images": [image], "captions": captions, "group": _group(row, column)}


def _cropped_rows(raw: Path, folder: Path, name: str, column: str) -> Iterator[dict[str, Any]]:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, (where, row, data, box) in enumerate(_boxed_rows(raw, name)):
        path = f"{number:05d}.png"
        (folder / "images" / path).write_bytes(_crop(data, box, where))
        captions = reading.texts(row, CAPTIONS, where)
        yield {"images": [path], "captions": captions, "group": _group(row, column)}


def _boxed_rows(raw: Path, name: str) -> Iterator[tuple[str, dict[str, Any], bytes, list[float]]]:
    """Each row with its place, the content of its image, and its box: x, y, width, height."""
    path = raw / name
    if not path.exists():
        for where, row in reading.parquet_rows(raw, ("image", "bbox", *CAPTIONS)):
            yield where, row, row["image"]["bytes"], [float(row["bbox"][side]) for side in BOX]
        return
    pictures = reading.first_of(raw, ("images",), "the folder of ARO's images")
    content = reading.read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} is no list of rows")
    for number, row in enumerate(content):
        where = f"{path}, row {number}"
        (image,) = reading.texts(row, ("image_path",), where)
        data = images.read_below(pictures, reading.image_file(pictures, image, where))
        box = [row.get(f"bbox_{side}") for side in BOX]
        if not all(isinstance(value, int | float) for value in box):
            raise ValueError(f"{where} has no box, but {box}")
        yield where, row, data, box


def _crop(data: bytes, box: list[float], where: str) -> bytes:
    """A box of an image as PNG, cut as ARO does: without turning the image by its EXIF."""
    x, y, width, height = box
    if round(width) < 1 or round(height) < 1:
        raise ValueError(f"{where} has an empty box: {box}")
    try:
        part = _decoded(data).crop((x, y, x + width, y + height))
    except images.ImageError as error:
        raise ValueError(f"{where}: {error}") from error
    buffer = io.BytesIO()
    part.save(buffer, "PNG")
    return buffer.getvalue()


@functools.lru_cache(maxsize=4)  # rows of an image follow each other
def _decoded(data: bytes) -> Image.Image:
    images.check(data)
    with Image.open(io.BytesIO(data)) as file:
        return file.convert("RGB")


SETS: tuple[PublicSet, ...] = (
    PublicSet(
        name="aro_relation",
        kind="composition",
        repository="mteb/ARO-Visual-Relation",
        revision="53c1115ab5871ab33b09d5bb8856236d46bdaf2d",
        files=("data/*.parquet",),
        counts={"test": 23937},
        read=read_relation,
        licence="MIT; images: Visual Genome, CC BY 4.0",
    ),
    PublicSet(
        name="aro_relation_crops",
        kind="composition",
        repository="mteb/ARO-Visual-Relation",
        revision="53c1115ab5871ab33b09d5bb8856236d46bdaf2d",
        files=("data/*.parquet",),
        counts={"test": 23937},
        read=read_relation_crops,
        licence="MIT; images: Visual Genome, CC BY 4.0",
        note=f"{RELATIONS} and images/ of vgr_vga_images.zip, as"
        " https://github.com/mertyg/vision-language-models-are-bows fetches them, will do, too.",
    ),
    PublicSet(
        name="aro_attribution",
        kind="composition",
        repository="mteb/ARO-Visual-Attribution",
        revision="25fe9b460426ff67cdb0608a737c94f8f49a901e",
        files=("data/*.parquet",),
        counts={"test": 28748},
        read=read_attribution,
        licence="MIT; images: Visual Genome, CC BY 4.0",
    ),
    PublicSet(
        name="aro_attribution_crops",
        kind="composition",
        files=(ATTRIBUTIONS,),
        counts={"test": 28748},
        read=read_attribution_crops,
        licence="MIT; images: Visual Genome, CC BY 4.0",
        note=f"{ATTRIBUTIONS} and images/ of vgr_vga_images.zip, as"
        " https://github.com/mertyg/vision-language-models-are-bows fetches them.",
    ),
    PublicSet(
        name="aro_coco_order",
        kind="composition",
        repository="mteb/ARO-COCO-order",
        revision="53c20afc02a87fed8c0245dde2e00f054da4b861",
        files=("data/*.parquet",),
        counts={"test": 25010},
        read=read_order,
        licence="MIT; images: COCO's terms",
    ),
    PublicSet(
        name="aro_flickr_order",
        kind="composition",
        repository="mteb/ARO-Flickr-Order",
        revision="e5d7f3502345b2c398a6645b4d09b44e650287bf",
        files=("data/*.parquet",),
        counts={"test": 5000},
        read=read_order,
        licence="MIT; images: Flickr30K's terms",
    ),
)
