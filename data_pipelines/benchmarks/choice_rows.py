"""Rows that rank candidates of their own, as MMEB-eval has them, in the words of two protocols.

VLM2Vec's words stand in the columns themselves, and Qwen3-VL-Embedding's in `words`, by the name of
`evaluation.instructions`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.benchmarks.public_set import Prepared
from unime_jax import files

CLIP, IMAGE = "<|video_1|>", "<|image_1|>"  # the places of media in texts
DEFAULT = "Represent the user's input."  # Qwen3-VL-Embedding's for candidates


class Words(NamedTuple):
    """One text in the words of VLM2Vec, and in those of Qwen3-VL-Embedding."""

    vlm2vec: str
    qwen3_vl: str


class Choice(NamedTuple):
    """A query with its candidates, of which the first `right` are right.

    Paths are relative to the raw folder; "": none. `clips` are those of the candidates, if they
    have any.
    """

    id: str
    query: Words
    candidates: Sequence[Words]
    video: str = ""
    image: str = ""
    clips: Sequence[str] = ()
    right: int = 1


def write(name: str, raw: Path, folder: Path, rows: Iterable[Choice]) -> Prepared:
    """Writes <folder>/rows/<name>.jsonl, in the form of docs/video_evaluation.md.

    Raises:
      ValueError: there are no rows.
    """
    lines, counts = [], []
    for row in rows:
        columns: dict[str, Any] = {"id": row.id} | _texts(row, "vlm2vec")
        columns |= {"qry_img_path": row.image, "qry_video_path": row.video}
        columns |= {"tgt_img_path": [""] * len(row.candidates), "tgt_video_path": list(row.clips)}
        columns |= {"right": row.right, "words": {"qwen3_vl": _texts(row, "qwen3_vl")}}
        lines.append(json.dumps(columns, ensure_ascii=False) + "\n")
        counts.append(len(row.candidates))
    if not lines:
        raise ValueError(f"there are no rows of {name}")
    path = folder / "rows" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, "".join(lines))
    extra = {"candidates": [min(counts), max(counts)]}
    return Prepared(f"rows/{name}.jsonl", str(raw), {name: len(lines)}, extra)


def _texts(row: Choice, protocol: str) -> dict[str, Any]:
    targets = [getattr(words, protocol) for words in row.candidates]
    return {"qry_text": getattr(row.query, protocol), "tgt_text": targets}


def text(row: Mapping[str, Any], column: str, where: str) -> str:
    """A text of a row. Raises ValueError where there is none."""
    cell = row.get(column)
    if not isinstance(cell, str):
        raise ValueError(f"{where} has no text in {column}; it has {', '.join(row)}")
    return cell


def texts(row: Mapping[str, Any], column: str, where: str) -> list[str]:
    """A list of texts of a row. Raises ValueError where it has fewer than two, or other things."""
    cell = row.get(column)
    several = list(cell) if isinstance(cell, list | tuple | np.ndarray) else []
    if len(several) < 2 or not all(isinstance(each, str) for each in several):
        raise ValueError(f"{where} has no list of texts in {column}; it has {', '.join(row)}")
    return several
