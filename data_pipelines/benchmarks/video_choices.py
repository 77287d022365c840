"""MMEB-V2's videos with texts to choose from: SmthSmthV2 and five sets of questions.

Each row ranks its own labels or options, so that hit@1 is MMEB-V2's. Words are those of VLM2Vec and
of Qwen3-VL-Embedding to the letter, spaces included.
"""

import functools
import itertools
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.benchmarks import annotations, choice_rows, video_files
from data_pipelines.benchmarks.choice_rows import CLIP, DEFAULT, Choice, Words, text, texts
from data_pipelines.benchmarks.public_set import Prepared, PublicSet

PROMPT = (
    "Given a video and a question, select the most accurate answer from the provided candidates. "
    "Return only the exact text of your chosen answer."
)
ACTION = "What actions or object interactions are being performed by the person in the video?"
YES_NO = ("yes", "no")
# MVBench's configs, and the folder of each one's videos; frames lie in a folder of its name.
MVBENCH: Mapping[str, str] = {
    config: folder
    for folder, configs in {
        "tvqa/frames_fps3_hq": "episodic_reasoning",
        "star/Charades_v1_480": "action_sequence action_prediction object_interaction",
        "ssv2_video": "action_antonym",
        "Moments_in_Time_Raw/videos": "fine_grained_action",
        "FunQA_test/test": "unexpected_action",
        "clevrer/video_validation": "object_existence moving_direction moving_count "
        "moving_attribute counterfactual_inference",
        "perception/videos": "object_shuffle action_count state_change character_order",
        "sta/sta_video": "action_localization",
        "scene_qa/video": "scene_transition",
        "nturgbd": "fine_grained_pose",
        "vlnqa": "egocentric_navigation",
    }.items()
    for config in configs.split()
}
NAMED = 5  # options that an error names
MVBENCH_FILES = ("{}/train*.parquet", "json/{}.json*", "{}.json*", "{}*.parquet")


class Question(NamedTuple):
    """A row of a set: its video, its query and candidates, and the number of the right one."""

    video: str
    query: Words
    candidates: Sequence[Words]
    answer: int


Reader = Callable[[Mapping[str, Any], str], Question]  # of a row, and where it stands


def read(
    raw: Path, folder: Path, *, name: str, tables: Sequence[str], question: Reader, limit: int = 0
) -> Prepared:
    """A set whose rows are in one table, and whose videos are named by ids.

    Args:
      tables: globs of its file, of which the first that matches counts.
      limit: the rows that count are the first so many; 0: all.

    Raises:
      FileNotFoundError: the table or videos are missing.
      ValueError: a row is not as in the public file, or its answer is none of its options.
    """
    file = annotations.first_file(raw, tables)
    rows = itertools.islice(annotations.rows(file), limit or None)
    questions = [question(row, where) for where, row in rows]
    paths = video_files.paths(raw, [asked.video for asked in questions])
    choices = (
        _choice(str(number), asked, path)
        for number, (asked, path) in enumerate(zip(questions, paths, strict=True))
    )
    return choice_rows.write(name, raw, folder, choices)


def read_mvbench(raw: Path, folder: Path, *, name: str) -> Prepared:
    """MVBench: a table for each of its configs, and videos in folders that several of them share.

    Videos of two folders have the same names, so they are found by config or folder and name.

    Raises:
      FileNotFoundError, ValueError: as `read`.
    """
    known = video_files.by_last_name(raw)
    choices: list[Choice] = []
    videos: dict[str, str | None] = {}  # paths by config and name
    for config, place in MVBENCH.items():
        file = annotations.first_file(raw, [glob.format(config) for glob in MVBENCH_FILES])
        for number, (where, row) in enumerate(annotations.rows(file)):
            asked = _mvbench(row, where)
            own = f"{config}/{asked.video}"
            path = videos[own] = video_files.ending_in(
                known, f"{place}/{asked.video}", own, video_files.without_ending(own)
            )
            choices.append(_choice(f"{config}/{number}", asked, path or ""))
    missing = [own for own, path in videos.items() if path is None]
    expected = "a folder of frames of this path, or the file in the folder that MVBench names,"
    video_files.check_missing(raw, missing, len(videos), expected)
    return choice_rows.write(name, raw, folder, choices)


def _choice(id: str, asked: Question, video: str) -> Choice:
    """A row with the right candidate first."""
    others = [each for n, each in enumerate(asked.candidates) if n != asked.answer]
    return Choice(id, asked.query, [asked.candidates[asked.answer], *others], video)


def _smthsmthv2(row: Mapping[str, Any], where: str) -> Question:
    labels = texts(row, "neg_text", where)  # the right one is among them
    query = Words(f"{CLIP} {ACTION}", f"{CLIP}\n{ACTION}")
    answer = _answer(text(row, "pos_text", where), labels, where)
    return Question(_id(row, "video_id", where), query, _plain(labels), answer)


def _nextqa(row: Mapping[str, Any], where: str) -> Question:
    options = [text(row, f"a{number}", where) for number in range(5)]
    listed = _listed(text(row, "question", where), options)
    candidates = [
        Words(option, f"{DEFAULT} {lettered}")
        for option, lettered in zip(options, _lettered(options), strict=True)
    ]
    answer = _number(row, "answer", len(options), where)
    return Question(_id(row, "video", where), _asked(listed, listed), candidates, answer)


def _mvbench(row: Mapping[str, Any], where: str) -> Question:
    options = texts(row, "candidates", where)
    listed = _listed(text(row, "question", where), options)
    answer = _answer(text(row, "answer", where), options, where)
    candidates = _plain(_lettered(options))
    return Question(_id(row, "video", where), _asked(listed, listed), candidates, answer)


def _egoschema(row: Mapping[str, Any], where: str) -> Question:
    options, asked = texts(row, "option", where), text(row, "question", where)
    every = " ".join(options)
    query = _asked(f"{asked}{every}", f"{asked} {every}")  # sic: VLM2Vec has no space
    answer = _number(row, "answer", len(options), where)
    return Question(_id(row, "video_idx", where), query, _plain(map(_bare, options)), answer)


def _videomme(row: Mapping[str, Any], where: str) -> Question:
    options = texts(row, "options", where)
    listed = "\n".join([text(row, "question", where), *options])
    letters = list(string.ascii_uppercase[: len(options)])
    answer = _answer(text(row, "answer", where), letters, where)
    candidates = _plain(map(_bare, options))
    return Question(_id(row, "videoID", where), _asked(listed, listed), candidates, answer)


def _activitynetqa(row: Mapping[str, Any], where: str) -> Question:
    asked = f"{text(row, 'question', where)}? (A) yes; (B) no."
    answer = _answer(text(row, "answer", where), YES_NO, where)
    video = f"v_{_id(row, 'video_name', where)}"
    return Question(video, _asked(asked, asked), _plain(YES_NO), answer)


def _asked(vlm2vec: str, qwen3_vl: str) -> Words:
    """A question about a video; VLM2Vec's prompt ends with a space, to which it adds another."""
    return Words(f"{CLIP} {PROMPT} Question:  {vlm2vec}", f"{CLIP}\n{PROMPT} {qwen3_vl}")


def _plain(candidates: "Sequence[str] | map[str]") -> list[Words]:
    """Candidates that VLM2Vec has as they are, and Qwen3-VL-Embedding after its default words."""
    return [Words(each, f"{DEFAULT} {each}") for each in candidates]


def _lettered(options: Sequence[str]) -> list[str]:
    return [f"({string.ascii_uppercase[n]}) {option}" for n, option in enumerate(options)]


def _listed(question: str, options: Sequence[str]) -> str:
    return "\n".join([question, "Options:", *_lettered(options)]).rstrip()


def _bare(option: str) -> str:
    """An option "A. of this form." without its letter, and dots and spaces at its ends."""
    _, mark, rest = option.partition(". ")
    return rest.strip(". ") if mark else option


def _id(row: Mapping[str, Any], column: str, where: str) -> str:
    """A video's id, which may be a number."""
    id = row.get(column)
    if isinstance(id, bool) or not isinstance(id, str | int | np.integer) or id == "":
        raise ValueError(f"{where} has no id in {column}; it has {', '.join(row)}")
    return str(id)


def _answer(answer: str, options: Sequence[str], where: str) -> int:
    """The number of an answer; of equal options the last, as published code takes it."""
    if answer not in options:
        raise ValueError(
            f"{where}: the answer {answer!r} is none of its {len(options)} options, such as "
            f"{', '.join(options[:NAMED])}"
        )
    return len(options) - 1 - list(options)[::-1].index(answer)


def _number(row: Mapping[str, Any], column: str, options: int, where: str) -> int:
    """The number of the right option, from 0, which may be a text."""
    said = str(row.get(column))
    if not said.isdecimal() or int(said) >= options:
        raise ValueError(f"{where}: the answer {said!r} is none of its options, 0 to {options - 1}")
    return int(said)


def _set(
    name: str, repository: str, rows: int, read: Callable[..., Prepared], **reader: Any
) -> PublicSet:
    own = f"mmeb_v2_{name}"
    archive = "video_cls.tar.gz" if name == "smthsmthv2" else "video_qa.tar.gz"
    return PublicSet(
        name=own,
        kind="mmeb",
        counts={own: rows},
        read=functools.partial(read, name=own, **reader),
        note=f"What {repository} has goes into the raw folder, and the videos, or a folder of "
        f"frames each, below it. Frames are in video-tasks/frames/{archive} of TIGER-Lab/MMEB-V2.",
    )


SETS = (
    _set(
        "smthsmthv2",
        "VLM2Vec/SmthSmthV2",
        1000,
        read,
        tables=("test*.parquet", "*/test*.parquet", "test.json*"),
        question=_smthsmthv2,
        limit=1000,
    ),
    _set(
        "nextqa",
        "VLM2Vec/NExTQA (MC)",
        8564,
        read,
        tables=("MC/test*.parquet", "test*.parquet", "test.json*"),
        question=_nextqa,
    ),
    _set(
        "egoschema",
        "VLM2Vec/EgoSchema (Subset)",
        500,
        read,
        tables=("Subset/test*.parquet", "test*.parquet", "test.json*"),
        question=_egoschema,
    ),
    _set("mvbench", "VLM2Vec/MVBench, of all 20 configs,", 4000, read_mvbench),
    _set(
        "videomme",
        "VLM2Vec/Video-MME",
        2700,
        read,
        tables=("test*.parquet", "*/test*.parquet", "test.json*"),
        question=_videomme,
    ),
    _set(
        "activitynetqa",
        "VLM2Vec/ActivityNetQA",
        1000,
        read,
        tables=("test*.parquet", "*/test*.parquet", "test.json*", "activitynetqa.jsonl"),
        question=_activitynetqa,
    ),
)
