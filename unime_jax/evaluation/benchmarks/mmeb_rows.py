"""MMEB's evaluation rows in one form, whichever of its two layouts the files have.

TIGER-Lab/MMEB-eval has whole texts, `qry_text` and `tgt_text`. ziyjiang/MMEB_Test_Instruct has the
instructions apart, in `qry_inst` and `tgt_inst`; its texts are put together as VLM2Vec's second
version does it to agree with its first. Prepared rows of MMEB-V2's videos have whole texts in
VLM2Vec's words, and in `words` those of other instructions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from unime_jax.data.formats import Source
from unime_jax.data.settings import Instructions
from unime_jax.evaluation.benchmarks import mmeb_instructions, mmeb_v2_video
from unime_jax.evaluation.benchmarks.mmeb_instructions import MARKER, Wording
from unime_jax.evaluation.encoding.item_table import paths_of, text_of

APART = "qry_inst"  # the column that only the second layout has
WORDS = "words"  # columns of other instructions, by their name


@dataclasses.dataclass(frozen=True)
class WordedRows:
    """The rows of a dataset in MMEB-eval's columns, in the words of the chosen instructions.

    A row is worded when it is read. Without `wording`, texts of the first layout stay as they are.
    """

    name: str
    rows: Source
    instructions: Instructions
    wording: Wording | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self.rows[index]
        try:
            if APART in row:
                return _of_parts(row, self.name, self.instructions)
            if self.wording is None and self.instructions == "qwen3_vl":
                return {**row, **row[WORDS][self.instructions]}
            return row if self.wording is None else _of_texts(row, self.wording, self.instructions)
        except (ValueError, KeyError) as error:
            missing = isinstance(error, KeyError)
            reason = f"no column {error.args[0]}" if missing else str(error)
            raise ValueError(f"dataset {self.name!r}, row {index}: {reason}") from error


def worded(name: str, rows: Source, instructions: Instructions) -> WordedRows:
    """The rows of a dataset, whose name is one of the hub's, with the chosen instructions.

    Raises:
      ValueError: instructions other than "data" for a dataset that is not one of MMEB's.
    """
    wording = mmeb_instructions.EVALUATION.get(name)
    if wording is None and name not in mmeb_v2_video.SETS and instructions != "data":
        raise ValueError(
            f"config.evaluation.instructions={instructions!r}: there are none for {name!r}, which "
            'is not one of MMEB\'s datasets; "data" takes texts as they are.'
        )
    return WordedRows(name, rows, instructions, None if instructions == "data" else wording)


def _of_texts(row: Mapping[str, Any], wording: Wording, instructions: Instructions) -> Any:
    """A row of the first layout, whose texts must be in VLM2Vec's words, in those of others."""
    texts, paths = _targets(row)
    query = wording.query_content(text_of(row["qry_text"]))
    contents = [wording.target_content(text) for text in texts]
    return row if instructions == "vlm2vec" else _of_qwen(row, wording, query, contents, paths)


def _of_parts(row: Mapping[str, Any], name: str, instructions: Instructions) -> dict[str, Any]:
    """A row of the second layout, with its own instructions or published ones."""
    wording = mmeb_instructions.EVALUATION.get(name, Wording(""))
    query, (texts, paths) = text_of(row["qry_text"]), _targets(row)
    if instructions == "qwen3_vl":
        return _of_qwen(row, wording, query, texts, paths)
    if instructions == "vlm2vec":
        marker = f"{MARKER}\n" if wording.marked else ""
        query_words, target_words = marker + wording.query, wording.target
    else:
        query_words = text_of(row["qry_inst"])
        target_words = text_of(row["tgt_inst"]) if any(paths) else ""
    return _columns(
        row,
        _joined(query_words, query, bool(paths_of(row["qry_img_path"])), wording.query_end),
        [
            _joined(target_words, text, True, "\n" if text.strip() else wording.target_end)
            if path
            else text
            for text, path in zip(texts, paths, strict=True)
        ],
        paths,
    )


def _of_qwen(
    row: Mapping[str, Any],
    wording: Wording,
    query: str,
    targets: Sequence[str],
    paths: Sequence[str],
) -> dict[str, Any]:
    """A row of these contents in Qwen3-VL-Embedding's words."""
    return _columns(
        row,
        mmeb_instructions.qwen_query(wording, query, image=bool(paths_of(row["qry_img_path"]))),
        [
            mmeb_instructions.qwen_target(text, image=bool(path))
            for text, path in zip(targets, paths, strict=True)
        ],
        paths,
    )


def _joined(instruction: str, content: str, image: bool, end: str) -> str:
    """An instruction and a text, a marker before them if there is an image or the data have one.

    A space at the end of a line is left out where there is an image, as VLM2Vec does it.
    """
    marker = f"{MARKER}\n" if image or MARKER in instruction else ""
    words = instruction.replace(MARKER, "").strip()
    text = f"{marker}{words}{f' {content}' if content.strip() else ''}{end}"
    return text.replace(" \n", "\n") if image else text


def _targets(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Texts and paths of the targets, of one length; either may be left out where it is empty."""
    cells = row["tgt_text"], row.get("tgt_img_path")
    if any(isinstance(cell, str | bytes) for cell in cells):
        raise ValueError("tgt_text and tgt_img_path must be lists, gold first")
    texts, paths = ([] if cell is None else list(cell) for cell in cells)
    texts, paths = [text_of(text) for text in texts], [paths_of(path) for path in paths]
    if len(paths) < len(texts) and not any(paths):
        paths = [""] * len(texts)
    if len(texts) < len(paths) and not any(text.strip() for text in texts):
        texts = [""] * len(paths)
    if len(texts) != len(paths):
        raise ValueError(f"{len(texts)} tgt_text but {len(paths)} tgt_img_path")
    return texts, paths


def _columns(
    row: Mapping[str, Any], query: str, targets: Sequence[str], paths: Sequence[str]
) -> dict[str, Any]:
    """MMEB-eval's columns; several images of a target are a list again."""
    several = [path.split("\0") if "\0" in path else path for path in paths]
    own = {"qry_text": query, "tgt_text": list(targets), "tgt_img_path": several}
    kept = {"qry_img_path": row["qry_img_path"]} | ({"id": row["id"]} if "id" in row else {})
    return kept | own
