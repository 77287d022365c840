"""Build what is missing of MiniVideo in a folder: pairs with their clips, evaluation, MiniMMEB."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_pipelines import mini_mmeb
from data_pipelines.mini_mmeb.backbone import BackboneSize
from data_pipelines.mini_video import content
from data_pipelines.mini_video.clip import encode
from data_pipelines.mini_video.content import Row, Side, path_of
from data_pipelines.preparing import check_parameters, note_parameters, preparing
from unime_jax import files

NAME, VERSION = "mini_video", "1.0.0"
PARTS = ("train", "clips", "eval")
TRAIN = 300  # rows of each training source, at most
CLIPS, IMAGES = "clips", "images"  # below train: its clips, and MiniMMEB's pairs


def prepare(
    data_dir: str | os.PathLike,
    *,
    seed: int,
    train_rows: int,
    eval_rows: int,
    backbone: BackboneSize = mini_mmeb.TINY,
) -> None:
    """Build whatever is missing of <data_dir>/mini_video/{train,clips,eval} and of MiniMMEB.

        train/<dataset>.jsonl    pairs in the form of docs/data.md, and their clips in train/clips/
        train/images             a link to MiniMMEB's pairs
        clips/                   what eval names
        eval/                    queries with their own candidates, in MMEB's columns

    Everything follows from the arguments, byte for byte; of each source there are `TRAIN` rows at
    most. A part appears under its name only when it is whole.

    Raises:
      ValueError: the folder was built with other arguments, or a number of rows is < 1.
    """
    mini_mmeb.prepare(
        data_dir, seed=seed, train_rows=train_rows, eval_rows=eval_rows, backbone=backbone
    )
    folder = Path(data_dir).expanduser() / NAME
    wanted = {"seed": seed, "train_rows": min(train_rows, TRAIN), "eval_rows": eval_rows}
    if check_parameters(folder, wanted) and not _missing(folder):
        return
    with preparing(folder):
        if not check_parameters(folder, wanted):
            note_parameters(folder, wanted)
        for part in _missing(folder):
            if part == "eval":
                _build_eval(folder, wanted)
                continue
            with tempfile.TemporaryDirectory(prefix=".incomplete_", dir=folder) as scratch:
                unfinished = Path(scratch) / part
                unfinished.mkdir()
                if part == "train":
                    _write_pairs(unfinished, seed, wanted["train_rows"])
                else:
                    rows = _rows("eval", seed, eval_rows)
                    _write_clips(
                        unfinished, (side for row in rows for side in (row.query, *row.candidates))
                    )
                unfinished.rename(folder / part)


def _missing(folder: Path) -> list[str]:
    places = {part: folder / part for part in PARTS} | {"eval": folder / "eval" / VERSION}
    return [part for part, place in places.items() if not place.is_dir()]


def _rows(part: str, seed: int, count: int) -> Iterator[Row]:
    for dataset in content.DATASETS:
        yield from content.rows(dataset, part, seed, count)


def _write_pairs(folder: Path, seed: int, count: int) -> None:
    for dataset in content.DATASETS:
        rows = content.rows(dataset, "train", seed, count)
        lines = []
        for number, row in enumerate(rows):
            positive, *others = map(_item, row.trained_on)
            pair = {
                "id": f"{dataset.name}-{number:06d}",
                "query": _item(row.query),
                "positive": positive,
                "negatives": others,
            }
            lines.append(json.dumps(pair))
        files.write_whole(folder / f"{dataset.name}.jsonl", "\n".join(lines) + "\n")
    every = _rows("train", seed, count)
    _write_clips(folder / CLIPS, (side for row in every for side in (row.query, *row.trained_on)))
    (folder / IMAGES).symlink_to("../../mini_mmeb/train", target_is_directory=True)


def _item(side: Side) -> str | dict[str, str]:
    path = path_of(side)
    return {"text": side.text, "video": f"{CLIPS}/{path}"} if path else side.text


def _write_clips(folder: Path, sides: Iterable[Side]) -> None:
    folder.mkdir(exist_ok=True)
    for path, clip in {path_of(side): side.clip for side in sides if side.clip}.items():
        (folder / path).write_bytes(encode(clip))


def _build_eval(folder: Path, parameters: dict[str, Any]) -> None:
    import tensorflow_datasets as tfds

    from data_pipelines.mini_video.builder import MiniVideo

    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as nothing_is_downloaded:
        builder = MiniVideo(config="eval", data_dir=folder.parent, parameters=parameters)
        builder.download_and_prepare(download_dir=nothing_is_downloaded)
