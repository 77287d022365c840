"""How items become rows, as far as a checkpoint's own files leave it open."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from unime_jax.backbones.prompts import Orphans, Style

FILE = "embedder.json"  # of an exported folder: its model is to be used as it was trained


@dataclasses.dataclass(frozen=True)
class Processing:
    """A run's choices; a family's `PROCESSING` has those that its published embedders made.

    Attributes:
      prompt: "chat" or "verbatim", in the checkpoint's chat template, or "raw", see
        `prompts.Prompt`.
      image_size: (height, width) that every image is resized to first; None: not resized.
      pinpoints: AnyRes canvases (height, width) of LLaVA; (): the checkpoint's own.
      pixels: least and most pixels of Qwen2-VL's dynamic resolution; None: the checkpoint's own.
      grid_positions: Qwen2-VL images always get row and column positions, as in transformers 5;
        if not, only those that stand after a vision_start token, as when UniME-V2 was trained.
      legacy_padding: LLaVA canvases are padded as by transformers 4.48, which published UniME
        checkpoints were trained with: where the padding is odd, the last tile is one pixel short
        and stretched.
      crops: the most crops of an image of Phi-3.5-Vision; None: the checkpoint's own.
      orphans: an image marker without an image (MMEB's WebQA and EDIS have such queries) is left
        out ("strip"); is an ordinary token ("token", as VLM2Vec and UniME-V2 feed it); or stands
        for an image of zeros, one tile and a newline ("image", LLaVE).
    """

    prompt: Style
    image_size: tuple[int, int] | None = None
    pinpoints: tuple[tuple[int, int], ...] = ()
    pixels: tuple[int, int] | None = None
    grid_positions: bool = False
    legacy_padding: bool = False
    crops: int | None = None
    orphans: Orphans = "strip"


def require_orphans(processing: Processing, *supported: Orphans) -> None:
    """Raises ValueError for a choice of `orphans` that a family does not have."""
    if processing.orphans not in supported:
        raise ValueError(
            f'processing.orphans is "{processing.orphans}"; this family supports'
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
    if processing.orphans == "token":
        found.append("An image marker without an image is one image token, without features.")
    if processing.orphans == "image":
        found.append(
            "An image marker without an image is the image tokens of one tile whose normalised"
            " pixels are zero, and a newline."
        )
    return tuple(found)


def write(
    folder: pathlib.Path, processing: Processing, commits: Mapping[str, str] | None = None
) -> None:
    """Records in an exported folder how its inputs are made, and what it was made of.

    `commits`: of hub repositories, by id; None: it came from none.
    """
    record = dataclasses.asdict(processing) | {"commits": dict(commits or {})}
    (folder / FILE).write_text(json.dumps(record, indent=2) + "\n")


def read_commits(folder: pathlib.Path) -> dict[str, str]:
    """Commits of the hub repositories that an exported folder was made of, by their ids."""
    if not (folder / FILE).exists():
        return {}
    commits: dict[str, str] = json.loads((folder / FILE).read_text()).get("commits", {})
    return commits


def read(folder: pathlib.Path) -> Processing | None:
    """What `write` recorded; None for a folder that was not exported from here."""
    if not (folder / FILE).exists():
        return None
    record = json.loads((folder / FILE).read_text())
    image_size, pixels = record["image_size"], record["pixels"]
    return Processing(
        prompt=record["prompt"],
        image_size=image_size and tuple(image_size),
        pinpoints=tuple(map(tuple, record["pinpoints"])),
        pixels=pixels and tuple(pixels),
        grid_positions=record["grid_positions"],
        legacy_padding=record["legacy_padding"],
        # Not in folders of before they could be chosen.
        crops=record.get("crops"),
        orphans=record.get("orphans", "strip"),
    )
