"""Judged rows on disk: pairs with the scores of their candidates, as JSON lines for training.

A source is files `<source>-00000-of-00010.jsonl`, each a block of its rows. Images are files in
`_images`, named by their content, so that rows of any format, also with images inside, become
rows that training reads with no mechanism of its own, and an image that many rows have is one file.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unime_jax import files
from unime_jax.batch import Example, Item, Media

RECORD, ROWS, IMAGES = "judge.json", "rows", "_images"
# Where a model or a data set lies may change; what they are may not.
NOT_COMPARED = ("complete", "provenance.backbone", "provenance.commits")


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive rows of a source that are one file."""

    source: str
    rows: range
    file: files.Path


class Writer:
    """The files of a folder, written in any order, also by several processes that share it.

    A file has its name only when it is whole. What was written before a process was killed is taken
    up by the next `Writer`.
    """

    def __init__(
        self,
        workdir: files.Path,
        *,
        sources: Mapping[str, int],
        block: int,
        provenance: Mapping[str, Any],
    ):
        """Begins or resumes the judged rows of sources of so many rows.

        Raises:
          ValueError: what is there was begun with something else; the message lists what changed.
        """
        self._file = workdir / RECORD
        self._folder = workdir / ROWS
        record = {
            "sources": dict(sources),
            "block": block,
            "complete": False,
            "provenance": json.loads(json.dumps(provenance)),
        }
        self.blocks = list(_blocks(self._folder, sources, block))
        if self._file.exists():
            changes = files.changes(files.read_object(self._file), record)
            told = [
                f"{key}: {before} before, {now} now"
                for key, (before, now) in changes.items()
                if not key.startswith(NOT_COMPARED)
            ]
            if told:
                raise ValueError(
                    f"{workdir} was begun with something else, and its scores would not go"
                    " together. Take another folder, or go back to what changed:\n  "
                    + "\n  ".join(told)
                )
            return
        for folder in {block.file.parent for block in self.blocks} | {self._folder / IMAGES}:
            folder.mkdir(parents=True, exist_ok=True)
        files.write_whole(self._file, json.dumps(record, indent=2) + "\n")

    def missing(self) -> list[Block]:
        """Blocks that are still to be written."""
        return [block for block in self.blocks if not block.file.exists()]

    def put(self, block: Block, judged: Sequence[Example]) -> None:
        """Writes a block's examples with their scores, images first."""
        lines = "".join(
            json.dumps(self._row(example), ensure_ascii=False) + "\n" for example in judged
        )
        files.write_whole(block.file, lines)

    def finish(self) -> bool:
        """Completes the folder if all blocks are there; whether it is complete now."""
        if self.missing():
            return False
        record = files.read_object(self._file)
        if not record["complete"]:
            files.write_whole(self._file, json.dumps(record | {"complete": True}, indent=2) + "\n")
        return True

    def _row(self, example: Example) -> dict[str, Any]:
        row = {
            "id": example.id,
            "query": self._side(example.query),
            "positive": self._side(example.positive),
            "negatives": [self._side(item) for item in example.negatives],
            "scores": list(example.scores),
        }
        return row if example.grade is None else row | {"score": example.grade}

    def _side(self, item: Item) -> str | dict[str, Any]:
        if not item.media:
            return item.text
        side: dict[str, Any] = {"text": item.text}
        for kind, name in (("image", "images"), ("clip", "videos")):  # in which order rows are read
            if paths := [self._written(media) for media in item.media if media.kind == kind]:
                side[name] = paths
        return side

    def _written(self, media: Media) -> str:
        """A medium's path below the rows' folder; its file is written if it is not there."""
        assert media.data, "a row's media were read"
        # A dot in the name: a path of hexadecimal digits alone could be taken for base64.
        suffix = pathlib.PurePath(media.path).suffix
        suffix = suffix if suffix[1:].isalnum() and len(suffix) < 6 else ".img"
        digest = media.identity.rpartition(":")[2]
        name = f"{IMAGES}/{digest}{suffix}"
        if not (self._folder / name).exists():
            files.write_whole(self._folder / name, media.data)
        return name


def _blocks(folder: files.Path, sources: Mapping[str, int], size: int) -> Iterator[Block]:
    for source, count in sources.items():
        # Sources are files of a folder, or of a folder below it.
        above, _, name = source.partition("/")
        name = f"{above}/{name.replace('/', '_')}" if name else above
        total = -(-count // size)
        for number in range(total):
            rows = range(number * size, min((number + 1) * size, count))
            yield Block(source, rows, folder / f"{name}-{number:05d}-of-{total:05d}.jsonl")
