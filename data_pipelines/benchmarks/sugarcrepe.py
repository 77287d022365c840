"""SugarCrepe: seven ways of wrong captions of COCO's val2017, of its JSON or of mteb's parquet."""

from pathlib import Path

from data_pipelines.benchmarks import composition_files as reading
from data_pipelines.benchmarks import sugarcrepe_pp
from data_pipelines.benchmarks.public_set import Prepared, PublicSet

COUNTS = {
    "add_att": 692,
    "add_obj": 2062,
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}


def read(raw: Path, folder: Path) -> Prepared:
    """Rows of the seven files {index: {filename, caption, negative_caption}}, each a subset.

    `raw` has data/add_att.json and so on, and val2017/ or val2017.zip. Images
    stay where they are.

    Raises:
      ValueError: a file or an image is missing, or a row is not complete; the message names it.
    """
    images = reading.coco_images(raw)
    counts = {}
    for subset in COUNTS:
        path = reading.first_of(raw, (f"data/{subset}.json", f"{subset}.json"), "SugarCrepe")
        content = reading.read_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} has no rows by index")
        rows = []
        for index, row in content.items():
            where = f"{path}, row {index}"
            name, right, wrong = reading.texts(
                row, ("filename", "caption", "negative_caption"), where
            )
            image = reading.image_file(images, name, where)
            rows.append({"image_path": image, "caption": right, "negative_caption": wrong})
        counts[subset] = reading.write_rows(folder, subset, rows)
    return Prepared("rows/*.jsonl", str(images.absolute()), counts, {"rule": "sugarcrepe"})


def read_mteb(raw: Path, folder: Path) -> Prepared:
    """All rows of mteb's parquet files, which do not say of which subset they are.

    Raises:
      ValueError: as `read`.
    """
    images, rows = reading.ImageFiles(folder), []
    for where, row in reading.parquet_rows(raw, ("images", "caption", "negative_caption")):
        captions = reading.texts(row, ("caption", "negative_caption"), where)
        rows.append({"images": [images.add(row["images"], where)], "captions": captions})
    counts = {"all": reading.write_rows(folder, "all", rows)}
    return Prepared("rows/*.jsonl", "images", counts, {"rule": "text_acc"})


SETS: tuple[PublicSet, ...] = (
    PublicSet(
        name="sugarcrepe",
        kind="composition",
        files=("data/*.json",),
        counts=COUNTS,
        read=read,
        licence="MIT; images: COCO's terms",
        note="data/*.json of https://github.com/RAIVNLab/sugar-crepe go into data/, and"
        f" {reading.VAL2017_ZIP} beside it.",
    ),
    PublicSet(
        name="sugarcrepe_mteb",
        kind="composition",
        repository="mteb/SUGARCREPE_fmt",
        revision="e9e0e3ce40c94023c819d3413edb5d090ec9f0d8",
        files=("data/*.parquet",),
        counts={"all": sum(COUNTS.values())},
        read=read_mteb,
        licence="MIT; images: COCO's terms",
    ),
    *sugarcrepe_pp.SETS,
)
