"""MMEB-V2's video classification: HMDB51, UCF101, Breakfast and Kinetics-700, by all labels.

Each video is ranked against every label of its set, so that R@1 is MMEB-V2's hit@1. The fifth set,
SmthSmthV2, gives each video candidates of its own, and is one of `video_choices`.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.benchmarks import annotations, video_files
from data_pipelines.benchmarks.public_set import Prepared, PublicSet
from unime_jax import files

LABELS = "labels.txt"
ROWS = ("test*.parquet", "*/test*.parquet", "test.json*")
# Labels as they are, in the words of VLM2Vec; Qwen3-VL-Embedding's have its default instruction.
TARGET_TEXT = {
    "data": "{text}",
    "vlm2vec": "{text}",
    "qwen3_vl": "Represent the user's input. {text}",
}


def read(raw: Path, folder: Path, *, name: str, labels: int, query: str) -> Prepared:
    """Queries and labels in BEIR's layout, from a table with `video_id` and `pos_text`.

    The labels are the lines of labels.txt in the raw folder; without it, those of the rows.

    Raises:
      FileNotFoundError: the table or videos are missing.
      ValueError: a row is not as in the public files, or there are not as many labels.
    """
    file = annotations.first_file(raw, ROWS)
    ids, right = [], []
    for where, row in annotations.rows(file):
        id, label = row.get("video_id"), row.get("pos_text")
        if not isinstance(id, str) or not isinstance(label, str):
            raise ValueError(f"{where} has no texts in video_id, pos_text; it has {', '.join(row)}")
        ids.append(id)
        right.append(label)
    known = _labels(raw, right, labels)
    numbers = {label: number for number, label in enumerate(known)}
    own = folder / "rows" / name
    own.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[dict[str, Any]]] = {
        "queries": [
            {"_id": str(number), "video": path}
            for number, path in enumerate(video_files.paths(raw, ids))
        ],
        "corpus": [{"_id": str(number), "text": label} for label, number in numbers.items()],
        "qrels": [
            {"query-id": str(number), "corpus-id": str(numbers[label]), "score": 1}
            for number, label in enumerate(right)
        ],
    }
    for part, lines in parts.items():
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        files.write_whole(own / f"{part}.jsonl", content)
    words = {"data": f"<|video_1|> {query}", "vlm2vec": f"<|video_1|> {query}"}
    words["qwen3_vl"] = f"<|video_1|>\n{query.strip()}"
    counts = {"queries": len(ids), "corpus": len(known), "qrels": len(right)}
    extra = {"query_text": words, "target_text": TARGET_TEXT}
    return dataclasses.replace(Prepared(f"rows/{name}", str(raw), counts), extra=extra)


def _labels(raw: Path, right: Sequence[str], count: int) -> list[str]:
    """All labels of the set, in order."""
    file = raw / LABELS
    listed = file.read_text(encoding="utf-8").splitlines() if file.is_file() else right
    labels = list(dict.fromkeys(filter(None, listed)))
    if unknown := [label for label in right if label not in set(labels)]:
        raise ValueError(f"{file} has not the label {unknown[0]!r}, which a row has")
    if len(labels) != count:
        where = file if file.is_file() else "the rows"
        raise ValueError(
            f"{where} has {len(labels)} labels in place of {count}: put all of them into {file}, a "
            "line each"
        )
    return labels


def _set(name: str, repository: str, labels: int, query: str) -> PublicSet:
    own = f"mmeb_v2_{name}"
    return PublicSet(
        name=own,
        kind="retrieval",
        counts={"corpus": labels},
        read=functools.partial(read, name=own, labels=labels, query=query),
        note=f"The parquet file of {repository} goes into the raw folder, and the videos, or a "
        "folder of frames each, below it. Frames are in video-tasks/frames/video_cls.tar.gz of "
        "TIGER-Lab/MMEB-V2.",
    )


SETS = (
    _set(
        "hmdb51",
        "VLM2Vec/HMDB51",
        51,
        "What actions or objects interactions are the person in the video doing?",
    ),
    _set(
        "ucf101",
        "VLM2Vec/UCF101",
        101,
        "What activities or sports are being performed by the person in the video?",
    ),
    _set(
        "breakfast",
        "VLM2Vec/Breakfast",
        10,
        "Recognize the breakfast type that the person is cooking in the video. ",  # sic
    ),
    _set(
        "kinetics700",
        "VLM2Vec/Kinetics-700",
        700,
        "Recognize the category of the video content.",
    ),
)
