"""Rows of caption retrieval as readers write them: image or video and captions, both checked."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from data_pipelines.benchmarks.public_set import Prepared
from data_pipelines.benchmarks.raw_paths import below
from unime_jax import files

NAMED = 3  # missing images that an error names


class Captioned(NamedTuple):
    """A path below the folder of images or videos, its captions, and where both were read."""

    image: str
    captions: Sequence[str]
    where: str


def write(
    name: str,
    folder: Path,
    images: Path,
    rows: Iterable[Captioned],
    *,
    hint: str = "",
    column: Literal["image", "video"] = "image",
) -> Prepared:
    """Writes <folder>/rows/<name>.jsonl, in the form of docs/benchmarks.md.

    Args:
      images: the folder that has them, in the raw files or below `folder`.
      hint: where missing ones are to be had.
      column: of the paths; a video may be a folder of frames.

    Raises:
      FileNotFoundError: images are missing.
      ValueError: there are no rows, or a caption is no text or empty.
    """
    lines: list[str] = []
    missing: list[str] = []
    for row in rows:
        captions = list(row.captions)
        if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
            raise ValueError(f"{row.where}: captions are missing or empty: {captions!r}")
        place = below(images, row.image)
        if not (place.is_file() or (column == "video" and place.is_dir())):
            missing.append(row.image)
        lines.append(json.dumps({column: row.image, "captions": captions}, ensure_ascii=False))
    if missing:
        raise FileNotFoundError(
            f"{images} has not {len(missing)} of the {len(lines)} {column}s of {name}, such as "
            f"{', '.join(missing[:NAMED])}" + (f". {hint}" if hint else "")
        )
    if not lines:
        raise ValueError(f"there are no rows of {name}")
    path = folder / "rows" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, "\n".join(lines) + "\n")
    return Prepared(f"rows/{name}.jsonl", str(images), {name: len(lines)})


def first_folder(raw: Path, names: Sequence[str], what: str) -> Path:
    """The first of these folders below `raw` that is there.

    Raises:
      FileNotFoundError: there is none.
    """
    for name in names:
        if (raw / name).is_dir():
            return raw / name
    raise FileNotFoundError(f"{raw} has no folder of {what}: {' or '.join(names)} is expected")
