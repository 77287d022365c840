"""Text-video retrieval: MSR-VTT 1K-A and MSVD, as CLIP4Clip counts them, and MMEB-V2's five sets.

Annotations lie in the raw folder, and videos anywhere below it: files or folders of frames, by id.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.benchmarks import annotations, caption_rows, plain_pickle, video_files
from data_pipelines.benchmarks.caption_rows import Captioned
from data_pipelines.benchmarks.public_set import Prepared, PublicSet
from unime_jax import files

MSVD_LIST, MSVD_CAPTIONS = "test_list.txt", ("raw-captions.json", "raw-captions.pkl")
NOTE = "{annotations} into the raw folder, and the videos, or a folder of frames each, below it."

# MMEB-V2's words, by `evaluation.instructions`: VLM2Vec's, and those of Qwen3-VL-Embedding, where
# the sentence ends with a full stop, and a candidate has the default instruction.
TARGET_TEXT = {
    "data": "<|video_1|> Understand the content of the provided video.",
    "vlm2vec": "<|video_1|> Understand the content of the provided video.",
    "qwen3_vl": "<|video_1|>\nRepresent the user's input.",
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a set's rows are: globs of files, of which the first that matches counts, and columns.

    `id` is the column of a video's id, or of its path, whose name without the ending is the id;
    `captions` is that of a caption or a list of them. Of several captions the first is taken, where
    the protocol is of a single one.
    """

    files: tuple[str, ...]
    id: tuple[str, ...]
    captions: tuple[str, ...]
    first_only: bool = False


MSRVTT = Layout(
    (
        "MSRVTT_JSFUSION_test.csv",
        "msrvtt_test_1k.json*",
        "test_1k*.parquet",
        "test_1k/*.parquet",
        "test*.parquet",
    ),
    ("video_id",),
    ("sentence", "caption"),
)
MSVD = Layout(("msvd_test.json*", "test*.parquet", "*/test*.parquet"), ("video_id",), ("caption",))


def read(raw: Path, folder: Path, *, name: str, layout: Layout) -> Prepared:
    """A row for each video, from a table, whose rows of one video are put together.

    Raises:
      FileNotFoundError: annotations or videos are missing.
      ValueError: a row is not as in the public files.
    """
    file = annotations.first_file(raw, layout.files)
    captions: dict[str, list[str]] = {}
    for where, row in annotations.rows(file):
        id, own = _cells(row, layout, where)
        captions.setdefault(id, []).extend(own[:1] if layout.first_only else own)
    return _write(name, raw, folder, captions, str(file))


def read_msvd(raw: Path, folder: Path, *, name: str) -> Prepared:
    """CLIP4Clip's files: ids in test_list.txt, and all captions of an id in raw-captions.pkl.

    The pickle is read as plain values, or is there as JSON: {id: captions}, each a text or a list
    of words. Without these files, a table will do.

    Raises:
      FileNotFoundError, ValueError: as `read`.
    """
    if not (raw / MSVD_LIST).is_file():
        prepared = read(raw, folder, name=name, layout=MSVD)
    else:
        ids = (raw / MSVD_LIST).read_text(encoding="utf-8").split()
        file = annotations.first_file(raw, MSVD_CAPTIONS)
        known = files.read_object(file) if file.suffix == ".json" else plain_pickle.read(file)
        if not isinstance(known, Mapping) or (absent := [id for id in ids if id not in known]):
            lacks = f"captions of {absent[0]}" if isinstance(known, Mapping) else "captions by id"
            raise ValueError(f"{file} has no {lacks}, which {MSVD_LIST} names")
        captions = {id: [_sentence(own, f"{file}, {id}") for own in known[id]] for id in ids}
        prepared = _write(name, raw, folder, captions, str(file))
    return dataclasses.replace(prepared, extra={"grouped": True})


def read_mmeb_v2(raw: Path, folder: Path, *, name: str, layout: Layout, query: str) -> Prepared:
    """A set of MMEB-V2, of whose captions of a video the first counts, with its words.

    Raises:
      FileNotFoundError, ValueError: as `read`.
    """
    prepared = read(raw, folder, name=name, layout=layout)
    worded = f"{query}: {{text}}"
    words = {"data": worded, "vlm2vec": worded, "qwen3_vl": f"{query}. {{text}}"}
    return dataclasses.replace(prepared, extra={"query_text": words, "target_text": TARGET_TEXT})


def _write(
    name: str, raw: Path, folder: Path, captions: Mapping[str, Sequence[str]], where: str
) -> Prepared:
    paths = video_files.paths(raw, list(captions))
    rows = (
        Captioned(path, own, f"{where}, {id}")
        for path, (id, own) in zip(paths, captions.items(), strict=True)
    )
    return caption_rows.write(name, folder, raw, rows, column="video")


def _cells(row: Mapping[str, Any], layout: Layout, where: str) -> tuple[str, list[str]]:
    """The id and the captions of a row."""
    id = next((row[name] for name in layout.id if row.get(name)), None)
    cell = next((row[name] for name in layout.captions if row.get(name) is not None), None)
    captions = [cell] if isinstance(cell, str) else list(cell or ())
    if not isinstance(id, str) or not all(isinstance(text, str) for text in captions):
        needed = f"{' or '.join(layout.id)}, {' or '.join(layout.captions)}"
        raise ValueError(f"{where} has no texts in {needed}; it has {', '.join(row)}")
    name = id.rpartition("/")[2]
    return (Path(name).stem if name.lower().endswith(video_files.VIDEOS) else name), captions


def _sentence(words: Any, where: str) -> str:
    """A caption, which may be a list of its words."""
    if isinstance(words, str):
        return words
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{where}: a caption is neither a text nor a list of words: {words!r}")
    return " ".join(words)


def _mmeb_v2(
    name: str, repository: str, id: str, captions: str, query: str, videos: int = 0
) -> PublicSet:
    """`videos`: 0: the number is not published."""
    own = f"mmeb_v2_{name}"
    layout = Layout(
        ("test_1k*.parquet", "test*.parquet", "val*.parquet", "*/test*.parquet", "*/val*.parquet"),
        (id,),
        (captions,),
        first_only=True,
    )
    parquet = f"The parquet file of {repository} goes"
    return PublicSet(
        name=own,
        kind="captions",
        counts={own: videos} if videos else {},
        read=functools.partial(read_mmeb_v2, name=own, layout=layout, query=query),
        note=NOTE.format(annotations=parquet)
        + " Frames of all five are in video-tasks/frames/video_ret.tar.gz of TIGER-Lab/MMEB-V2.",
    )


SETS = (
    PublicSet(
        name="msrvtt_1k",
        kind="captions",
        counts={"msrvtt_1k": 1000},
        read=functools.partial(read, name="msrvtt_1k", layout=MSRVTT),
        note=NOTE.format(
            annotations="MSRVTT_JSFUSION_test.csv, or the table of VLM2Vec/MSR-VTT (test_1k), goes"
        ),
    ),
    PublicSet(
        name="msvd",
        kind="captions",
        counts={"msvd": 670},
        read=functools.partial(read_msvd, name="msvd"),
        note=NOTE.format(annotations="test_list.txt and raw-captions.pkl of CLIP4Clip go"),
    ),
    _mmeb_v2(
        "msrvtt",
        "VLM2Vec/MSR-VTT (test_1k)",
        "video_id",
        "caption",
        "Find a video that contains the following visual content",
        1000,
    ),
    _mmeb_v2(
        "msvd",
        "VLM2Vec/MSVD",
        "video_id",
        "caption",
        "Find the video snippet that corresponds to the given summary",
        670,
    ),
    _mmeb_v2(
        "didemo",
        "VLM2Vec/DiDeMo",
        "video",
        "caption",
        "Find a video that includes the following described scenes",
    ),
    _mmeb_v2(
        "vatex",
        "VLM2Vec/VATEX",
        "videoID",
        "enCap",
        "Select a video that fits the description provided",
    ),
    _mmeb_v2(
        "youcook2",
        "lmms-lab/YouCook2 (val)",
        "id",
        "sentence",
        "Find a video that demonstrates the following action while making a recipe",
    ),
)
