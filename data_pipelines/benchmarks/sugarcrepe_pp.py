"""SugarCrepe++: two true captions and a wrong one of images of COCO's val2017."""

from pathlib import Path

from data_pipelines.benchmarks import composition_files as reading
from data_pipelines.benchmarks.public_set import Prepared, PublicSet

COUNTS = {
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}
COLUMNS = ("filename", "caption", "caption2", "negative_caption")


def read(raw: Path, folder: Path) -> Prepared:
    """Rows of the five lists of {id, filename, caption, caption2, negative_caption}.

    `raw` has data/replace_att.json and so on, and val2017/ or val2017.zip. Images
    stay where they are.

    Raises:
      ValueError: a file or an image is missing, or a row is not complete; the message names it.
    """
    images = reading.coco_images(raw)
    counts = {}
    for subset in COUNTS:
        path = reading.first_of(raw, (f"data/{subset}.json", f"{subset}.json"), "SugarCrepe++")
        content = reading.read_json(path)
        if not isinstance(content, list):
            raise ValueError(f"{path} is no list of rows")
        rows = []
        for number, row in enumerate(content):
            where = f"{path}, row {number}"
            name, *captions = reading.texts(row, COLUMNS, where)
            rows.append({"images": [reading.image_file(images, name, where)], "captions": captions})
        counts[subset] = reading.write_rows(folder, subset, rows)
    return Prepared("rows/*.jsonl", str(images.absolute()), counts, {"rule": "sugarcrepe_pp"})


SETS: tuple[PublicSet, ...] = (
    PublicSet(
        name="sugarcrepe_pp",
        kind="composition",
        repository="Aman-J/SugarCrepe_pp",
        revision="dea2a1b6f9e1069c609f676aa55ec61e9b65fb61",
        files=("data/*.json",),
        counts=COUNTS,
        read=read,
        licence="CC BY 4.0; images: COCO's terms",
        note=f"the repository has no images: {reading.VAL2017_ZIP} goes into the raw folder.",
    ),
)
