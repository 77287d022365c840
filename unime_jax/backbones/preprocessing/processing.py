"""The record in an exported folder of how items become rows, where other files don't say."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from unime_jax.data.settings import MissingImages, Processing

FILE = "embedder.json"  # of an exported folder: its model is to be used as it was trained
KEY = "unime_jax"  # of the same in config.json

_IN_IMAGE_PROCESSOR = ("pinpoints", "pixels", "crops")


def require_missing_images(processing: Processing, *supported: MissingImages) -> None:
    """Raises ValueError for a choice of `missing_images` that a family does not have."""
    if processing.missing_images not in supported:
        raise ValueError(
            f'processing.missing_images is "{processing.missing_images}"; this family supports'
            f" {', '.join(map(repr, supported))}"
        )


def caveats(processing: Processing) -> tuple[str, ...]:
    """What transformers cannot be told of in a folder's files, in sentences for its users."""
    found = []
    if processing.image_size:
        height, width = processing.image_size
        found.append(
            f"Every image must first be resized to {height} x {width} pixels (height x width, by"
            " Pillow's bicubic filter, whatever its aspect)."
        )
    if processing.legacy_padding:
        found.append("Images must be padded as transformers 4.48 did, an odd pixel left out.")
    if processing.missing_images == "token":
        found.append("An image marker without an image is one image token, without features.")
    if processing.missing_images == "image":
        found.append(
            "An image marker without an image is the image tokens of one tile whose normalised"
            " pixels are zero, and a newline."
        )
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Record:
    """What an exported folder says of how it was trained.

    `max_length` is the most tokens of a row; None: of before it was recorded. `commits` are those
    of the hub repositories that it was made of, by their ids.
    """

    processing: Processing
    max_length: int | None = None
    commits: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write(
    folder: pathlib.Path,
    processing: Processing,
    *,
    max_length: int | None = None,
    commits: Mapping[str, str] | None = None,
) -> None:
    """Records in an exported folder how its inputs are made, and what it was made of.

    Beside `FILE` there is a copy in config.json, if there is one: other libraries carry unknown
    keys of it along when they save a model, and leave out files that they do not know. The copy
    is without what lies in the image processor's own files, which may be changed there.
    """
    record = dataclasses.asdict(processing)
    record |= {"max_length": max_length, "commits": dict(commits or {})}
    (folder / FILE).write_text(json.dumps(record, indent=2) + "\n")
    config = folder / "config.json"
    if config.exists():
        copy = {key: value for key, value in record.items() if key not in _IN_IMAGE_PROCESSOR}
        content = json.loads(config.read_text()) | {KEY: copy}
        config.write_text(json.dumps(content, indent=2) + "\n")


def read(folder: pathlib.Path) -> Processing | None:
    """The processing that `write` recorded; None for a folder that was not exported from here."""
    record = read_record(folder)
    return record.processing if record else None


def read_record(folder: pathlib.Path) -> Record | None:
    """What `write` recorded, in `FILE` or else in config.json; None: nothing."""
    file, config = folder / FILE, folder / "config.json"
    record = json.loads(file.read_text()) if file.exists() else None
    if record is None and config.exists():
        record = json.loads(config.read_text()).get(KEY)
    if record is None:
        return None
    image_size, pixels = record["image_size"], record.get("pixels")
    processing = Processing(
        prompt=record["prompt"],
        image_size=image_size and tuple(image_size),
        pinpoints=tuple(map(tuple, record.get("pinpoints", ()))),
        pixels=pixels and tuple(pixels),
        grid_positions=record["grid_positions"],
        legacy_padding=record["legacy_padding"],
        # Folders exported before have neither key, or an earlier name of the second.
        crops=record.get("crops"),
        missing_images=record.get("missing_images", record.get("orphans", "strip")),
    )
    return Record(processing, record.get("max_length"), record.get("commits", {}))
