"""Sets of one long caption an image: ShareGPT4V-1K, Urban1K and DOCCI's test split."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.benchmarks import caption_rows, unpack
from data_pipelines.benchmarks.caption_rows import Captioned
from data_pipelines.benchmarks.public_set import Prepared, PublicSet

SHAREGPT4V = "share-captioner_coco_lcs_sam_1246k_1107.json"
FIRST = 1000  # rows of it, which Long-CLIP left out of training
DOCCI, DOCCI_IMAGES = "docci_descriptions.jsonlines", "docci_images.tar.gz"
SAM = "They are those of SA-1B, which Meta gives out; put them into sam/images"
BUFFER = 2**20  # characters of a JSON file that are read at a time


def read_sharegpt4v(raw: Path, folder: Path) -> Prepared:
    """The first 1,000 rows; a caption is the second turn, newlines as spaces.

    Images lie as the rows name them, `sam/images/sa_545504.jpg`, below `raw`.

    Raises:
      FileNotFoundError: the JSON file or images are missing.
      ValueError: a row is not as in the public file.
    """
    rows = _sharegpt4v(raw / SHAREGPT4V)
    return caption_rows.write("sharegpt4v_1k", folder, raw, rows, hint=SAM)


def read_urban1k(raw: Path, folder: Path) -> Prepared:
    """Images `image/1.jpg` with the first line of `caption/1.txt`, in `raw` or its `Urban1k`.

    Raises:
      FileNotFoundError: a folder, or an image of a caption is missing.
      ValueError: an image has no caption.
    """
    captions = caption_rows.first_folder(raw, ("Urban1k/caption", "caption"), "captions")
    return caption_rows.write("urban1k", folder, captions.parent, _urban1k(captions))


def read_docci(raw: Path, folder: Path) -> Prepared:
    """The rows of docci_descriptions.jsonlines whose split is test.

    Images are those of docci_images.tar.gz, unpacked or not.

    Raises:
      FileNotFoundError: descriptions or images are missing.
      ValueError: a line is not as in the public file.
    """
    if (raw / DOCCI_IMAGES).exists():
        unpack.unpack_all(raw, (DOCCI_IMAGES,))
    names = ("docci_images/images", "docci_images", "images")
    images = caption_rows.first_folder(raw, names, "images")
    return caption_rows.write("docci", folder, images, _docci(raw / DOCCI))


def _sharegpt4v(path: Path) -> Iterator[Captioned]:
    for number, row in enumerate(_first_objects(path, FIRST)):
        where = f"{path}, row {number}"
        try:
            image, caption = row["image"], row["conversations"][1]["value"]
            yield Captioned(image, [caption.replace("\n", " ")], where)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is not as in ShareGPT4V: no {error}") from error


def _urban1k(captions: Path) -> Iterator[Captioned]:
    images = {path.stem for path in (captions.parent / "image").glob("*.jpg")}
    texts = {path.stem: path for path in captions.glob("*.txt")}
    if extra := sorted(images - texts.keys()):
        raise ValueError(f"{captions} has no {extra[0]}.txt, nor {len(extra) - 1} others")
    for stem in sorted(texts, key=lambda stem: (len(stem), stem)):
        lines = texts[stem].read_text(encoding="utf-8").splitlines()
        yield Captioned(f"image/{stem}.jpg", lines[:1], str(texts[stem]))


def _docci(path: Path) -> Iterator[Captioned]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
                if row["split"] == "test":
                    yield Captioned(row["image_file"], [row["description"]], where)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{where} is not as in DOCCI: {error!r}") from error


def _first_objects(path: Path, count: int) -> Iterator[Any]:
    """The first values of a file's JSON list, of which no more than they take is read."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
        text = file.read(BUFFER).lstrip()
        if not text.startswith("["):
            raise ValueError(f"{path} is no list in JSON: it begins with {text[:20]!r}")
        text = text[1:]
        for number in range(count):
            while True:
                text = text.lstrip().removeprefix(",").lstrip()
                try:
                    value, end = decoder.raw_decode(text)
                    break
                except ValueError as error:
                    more = file.read(BUFFER)
                    if not more and text.startswith("]"):
                        return
                    if not more:
                        raise ValueError(f"{path} is cut off in row {number}") from error
                    text += more
            yield value
            text = text[end:]


SETS = (
    PublicSet(
        name="sharegpt4v_1k",
        kind="captions",
        repository="Lin-Chen/ShareGPT4V",
        revision="55d02b0bc53a2754095a14110dda6daedd95671d",
        files=(SHAREGPT4V,),
        counts={"sharegpt4v_1k": FIRST},
        read=read_sharegpt4v,
        licence="cc-by-nc-4.0",
        note="its images, SA-1B's, which Meta gives out, belong into sam/images of the raw folder",
    ),
    PublicSet(
        name="urban1k",
        kind="captions",
        repository="BeichenZhang/Urban1k",
        revision="953fcf1d1a3bde031d9424a91a0154e594b5a586",
        files=("Urban1k.zip",),
        archives=("Urban1k.zip",),
        counts={"urban1k": 1000},
        read=read_urban1k,
        licence="cc-by-nc-4.0",
    ),
    PublicSet(
        name="docci",
        kind="captions",
        counts={"docci": 5000},
        read=read_docci,
        licence="cc-by-4.0",
        note=f"{DOCCI} and {DOCCI_IMAGES} of storage.googleapis.com/docci/data.",
    ),
)
