"""Record in an exported folder of how items become rows, as far as no other file says it."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from unime_jax.backbones.preprocessing.images import CAP, FixedSize
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


def fixed_size(processing: Processing) -> FixedSize:
    """The size that images are resized to first, of either key; None: they are not.

    Raises:
      ValueError: `resolution` is no name of VLM2Vec's.
    """
    name = processing.resolution
    if name is None or name == "capped":
        return name or processing.image_size
    sides = {"low": 128, "mid_336": 336, "mid": 672, "high": CAP}
    if name not in sides:
        known = ", ".join(map(repr, (*sides, "capped")))
        raise ValueError(f"processing.resolution is {name!r}; VLM2Vec's names are {known}")
    return sides[name], sides[name]


def caveats(processing: Processing) -> tuple[str, ...]:
    """Differences from transformers that no file can express, as sentences for users."""
    sentences = []
    size = fixed_size(processing)
    if size == "capped":
        sentences.append(
            f"An image with a side of more than {CAP} pixels must first be resized to {CAP} x {CAP}"
            " pixels (by Pillow's bicubic filter, whatever its aspect)."
        )
    elif size:
        height, width = size
        sentences.append(
            f"Every image must first be resized to {height} x {width} pixels (height x width, by"
            " Pillow's bicubic filter, whatever its aspect)."
        )
    if processing.legacy_padding:
        sentences.append("Images must be padded as transformers 4.48 did, an odd pixel left out.")
    if not processing.final_norm:
        sentences.append(
            "The state that is pooled is the one before the decoder's final norm: transformers 4's"
            " `hidden_states[-1]`, which transformers 5 has after it, as both have"
            " `last_hidden_state`."
        )
    if processing.missing_images == "token":
        sentences.append("An image marker without an image is one image token, without features.")
    if processing.missing_images == "image":
        sentences.append(
            "An image marker without an image is the image tokens of one tile whose normalised"
            " pixels are zero, and a newline."
        )
    return tuple(sentences)


@dataclasses.dataclass(frozen=True)
class Record:
    """Origin of an exported folder: how its items became rows in training.

    `max_length` is the most tokens of a row; None: exported before it was recorded. `commits` are
    those of the hub repositories it was made of, by repository id.
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
    """Writes the record of an exported folder, in `FILE` and in config.json if there is one.

    Other libraries keep unknown keys of config.json when they save a model, and drop files that
    they do not know. The copy leaves out the settings in the image processor's own files, which
    may be changed there.
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
    """The record that `write` left in `FILE`, or else in config.json; None: there is none."""
    file, config = folder / FILE, folder / "config.json"
    record = json.loads(file.read_text()) if file.exists() else None
    if record is None and config.exists():
        record = json.loads(config.read_text()).get(KEY)
    if record is None:
        return None
    image_size, pixels = record["image_size"], record.get("pixels")
    frames, frame_pixels = record.get("frames"), record.get("frame_pixels")
    processing = Processing(
        prompt=record["prompt"],
        image_size=image_size and tuple(image_size),
        resolution=record.get("resolution"),
        pinpoints=tuple(map(tuple, record.get("pinpoints", ()))),
        pixels=pixels and tuple(pixels),
        grid_positions=record["grid_positions"],
        legacy_padding=record["legacy_padding"],
        # Folders exported before have none of these keys, or an earlier name of the last.
        crops=record.get("crops"),
        missing_images=record.get("missing_images", record.get("orphans", "strip")),
        fps=record.get("fps"),
        frames=frames and tuple(frames),
        frame_pixels=frame_pixels and tuple(frame_pixels),
        clip_pixels=record.get("clip_pixels"),
        clip_newlines=record.get("clip_newlines"),
        final_norm=record.get("final_norm", True),
    )
    return Record(processing, record.get("max_length"), record.get("commits", {}))
