"""MMEB-V2's moments: QVHighlight, Charades-STA and MomentSeeker, each row with clips of its own.

A query is a text with its video, or, of MomentSeeker, a text alone or with an image or a clip.
Words are those of VLM2Vec and of Qwen3-VL-Embedding to the letter.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines.benchmarks import annotations, choice_rows, video_files
from data_pipelines.benchmarks.choice_rows import CLIP, DEFAULT, IMAGE, Choice, Words, text
from data_pipelines.benchmarks.public_set import Prepared, PublicSet

TABLES = ("test*.parquet", "*/test*.parquet", "test.json*", "*.jsonl")
QUERY, POSITIVE, NEGATIVE = "query", "positive", "negative"  # parts of a row
CLIPS = 10  # of a row, as MMEB-V2 has drawn them
SCENE = "Find the clip that corresponds to the described scene in the given video"
SENTENCE = "Find the clip that corresponds to the given sentence and video segment"
PICTURE = "Select the video clip that aligns with the given text and image"
ALONE = "Find the clip that corresponds to the given text"
VIDEO = Words(
    f"{CLIP} Understand the content of the provided video.",
    f"{CLIP}\n{DEFAULT}",
)
SEGMENT = Words(f"{CLIP} Understand the content of the provided video clip.", VIDEO.qwen3_vl)


def read_folders(raw: Path, folder: Path, *, name: str) -> Prepared:
    """A set with a folder a video: `query`, its right clip `positive...`, and wrong ones.

    Each is a file or a folder of frames. The query's video may also lie elsewhere, by its own name.

    Raises:
      FileNotFoundError: the table or videos are missing.
      ValueError: a row is not as in the public file, or a video has several right clips.
    """
    file = annotations.first_file(raw, TABLES)
    by_id, clips = video_files.by_id(raw), _by_folder(raw)
    choices: list[Choice] = []
    lacks: dict[str, str] = {}  # of a video what is missing
    for number, (where, row) in enumerate(annotations.rows(file)):
        asked, path = text(row, "query", where), text(row, "video_path", where)
        video = Path(path.rpartition("/")[2]).stem
        wrong = dict(clips.get(video, {}))
        query = wrong.pop(QUERY, by_id.get(video, ""))
        right = [wrong.pop(clip) for clip in list(wrong) if clip.startswith(POSITIVE)]
        if len(right) > 1:
            raise ValueError(f"{where}: {video} has {len(right)} right clips in place of 1")
        parts = {QUERY: query, POSITIVE: right, NEGATIVE: wrong}
        lacks[video] = next((f"{video}/{part}" for part, there in parts.items() if not there), "")
        every = [*right, *wrong.values()]
        words = _asked(SCENE, asked, CLIP)
        choices.append(Choice(str(number), words, [VIDEO] * len(every), query, clips=every))
    expected = "a file, or a folder of frames, of this path or one that begins so"
    video_files.check_missing(raw, list(filter(None, lacks.values())), len(lacks), expected)
    _warn(name, choices)
    return choice_rows.write(name, raw, folder, choices)


def read_momentseeker(raw: Path, folder: Path, *, name: str) -> Prepared:
    """MomentSeeker, some of whose rows have several right clips.

    A clip is a file at its path, or a folder of frames that is named after its path, with `_` for
    each `/`; an image is named after its own, with `query_` before it.

    Raises:
      FileNotFoundError: the table, videos or images are missing.
      ValueError: a row is not as in the public file, comes twice, or has a clip that is both right
        and wrong.
    """
    file = annotations.first_file(raw, TABLES)
    known = video_files.by_last_name(raw)
    images = {path.name: path.relative_to(raw).as_posix() for path in raw.rglob("query_*.jpg")}
    paths: dict[str, str] = {}  # "": missing
    earlier: dict[str, str] = {}
    choices: list[Choice] = []

    def found(path: str) -> str:
        if path not in paths:
            frames = video_files.without_ending(path).replace("/", "_")
            there = images.get(path) or video_files.ending_in(known, path, frames)
            paths[path] = there or ""
        return paths[path]

    for number, (where, row) in enumerate(annotations.rows(file)):
        right, wrong = (_outputs(row, f"{side}_frames", where) for side in (POSITIVE, NEGATIVE))
        if both := set(right) & set(wrong):
            raise ValueError(f"{where}: {min(both)} is both right and wrong")
        given = row.get("input_frames")
        given = given if isinstance(given, str) else ""
        asked, video, image = text(row, "query", where), "", ""
        identity = json.dumps([asked, given, right, wrong])
        if earlier.setdefault(identity, where) != where:
            raise ValueError(
                f"{where} is that of {earlier[identity]}: MMEB-V2 counts VLM2Vec/MomentSeeker, "
                "which has no row twice, and not MomentSeeker_1k8"
            )
        words = _asked(ALONE, asked, "")
        if given.endswith(".mp4"):
            words, video = _asked(SENTENCE, asked, CLIP), found(given)
        elif given.endswith(".jpg"):
            words, image = _asked(PICTURE, asked, IMAGE), found(f"query_{given}")
        every = [found(path) for path in [*right, *wrong]]
        targets = [SEGMENT] * len(every)
        choices.append(Choice(str(number), words, targets, video, image, every, len(right)))
    missing = [path for path, there in paths.items() if not there]
    expected = "a file of this path, or, of a video, a folder of frames with _ for each /,"
    video_files.check_missing(raw, missing, len(paths), expected)
    _warn(name, choices)
    return choice_rows.write(name, raw, folder, choices)


def _asked(instruction: str, query: str, marker: str) -> Words:
    """A query in both words, after the place of its video or image, if it has one."""
    space, line = (f"{marker} ", f"{marker}\n") if marker else ("", "")
    return Words(f"{space}{instruction}: {query}", f"{line}{instruction}. {query}")


def _by_folder(raw: Path) -> dict[str, dict[str, str]]:
    """Paths below a folder of all videos in it, by the names of their folder and their own."""
    known: dict[str, dict[str, str]] = {}
    for path in sorted(path for paths in video_files.by_last_name(raw).values() for path in paths):
        parts = path.split("/")
        if len(parts) > 1:
            own = known.setdefault(parts[-2], {})
            name = video_files.without_ending(parts[-1])
            if name not in own or parts[-1] != name:  # of both the file counts
                own[name] = path
    return known


def _outputs(row: Mapping[str, Any], column: str, where: str) -> list[str]:
    """Paths of a row's clips, each once."""
    entries = row.get(column)
    several = list(entries) if isinstance(entries, Sequence) and entries else []
    paths = [each.get("output_path") if isinstance(each, Mapping) else None for each in several]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{where} has no output_path in {column}; it has {', '.join(row)}")
    return list(dict.fromkeys(map(str, paths)))


def _warn(name: str, choices: Sequence[Choice]) -> None:
    """Says so where rows have another number of clips: frames may not all be there."""
    if other := [each for each in choices if len(each.clips) != CLIPS]:
        logging.warning(
            "%s: %d of %d rows have not %d clips, such as row %s with %d",
            *(name, len(other), len(choices), CLIPS, other[0].id, len(other[0].clips)),
        )


def _set(name: str, repository: str, rows: int, read: Callable[..., Prepared]) -> PublicSet:
    own = f"mmeb_v2_{name}"
    return PublicSet(
        name=own,
        kind="mmeb",
        counts={own: rows},
        read=functools.partial(read, name=own),
        note=f"What {repository} has goes into the raw folder, and the folders of frames of its "
        "videos and clips below it, from video-tasks/frames/video_mret.tar.gz of TIGER-Lab/"
        "MMEB-V2.",
    )


SETS = (
    _set("qvhighlight", "VLM2Vec/QVHighlight", 1083, read_folders),
    _set("charades_sta", "VLM2Vec/Charades-STA", 727, read_folders),
    _set("momentseeker", "VLM2Vec/MomentSeeker", 1602, read_momentseeker),
)
