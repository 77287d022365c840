"""One pass over all rows by threads: what is wrong with each, hashes of its items, their sizes."""

import collections
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image

from unime_jax.backbones.preprocessing.images import decode_images
from unime_jax.batch import Example, Item, Media, Row
from unime_jax.data import clips
from unime_jax.data.ahead import THREADS, map_ahead
from unime_jax.data.embedding_store import item_id
from unime_jax.data.formats import Source
from unime_jax.data.packing import Preprocess, prepare
from unime_jax.data.quarantine import BadExample, MediaError, place_of
from unime_jax.data.schema import to_example
from unime_jax.data.shapes import BatchShapes, Bucket, Layout

LISTED = 1000  # rows of a kind that are named; the others are counted
PIECE = 64  # rows that a thread reads at a time
TINY = 16  # pixels; an image with a shorter side mostly stands for one that could not be fetched
ANYTHING = 2**31 - 1
_A = {"image": "an image", "clip": "a clip"}
# All negatives are looked at, and a row may be as long as it is.
SHAPES = BatchShapes((Bucket(ANYTHING, ANYTHING),), Layout(), 1, 1, negatives=ANYTHING)

Size = tuple[int, int]  # tokens and tiles of an item


class Finding(NamedTuple):
    """A row with something wrong; `row` is where it stands, `id` and `image` may be ""."""

    file: str
    source: str
    row: str
    id: str
    image: str
    reason: str


class Findings:
    """Rows of one kind: how many, and the first `LISTED` of them."""

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[Finding] = []

    def add(self, finding: Finding) -> None:
        self.count += 1
        if len(self.rows) < LISTED:
            self.rows.append(finding)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source of a file, by the name that the user gave."""

    file: str
    name: str
    rows: Source

    def place(self, index: int) -> str:
        """Where a row stands, "line 17", or its number, counted from 0."""
        row_id = getattr(getattr(self.rows, "rows", self.rows), "row_id", None)
        return (row_id(index) if row_id else "") or f"row {index}"

    def finding(self, index: int, reason: str, id: str = "", image: str = "") -> Finding:
        place = self.place(index)
        return Finding(self.file, self.name, place, "" if id == str(index) else id, image, reason)


@dataclasses.dataclass
class Scan:
    """What the pass saw.

    Attributes:
      usable: rows that training takes, counted through all sources.
      queries, positives: 16 bytes a usable row, the hash of an item; `negatives`: as many as are.
      sizes: how many items have so many tokens and tiles, of rows that a backbone preprocessed.
      findings: by kind.
    """

    usable: Bool[np.ndarray, " rows"]
    queries: bytearray = dataclasses.field(default_factory=bytearray)
    positives: bytearray = dataclasses.field(default_factory=bytearray)
    negatives: bytearray = dataclasses.field(default_factory=bytearray)
    sizes: collections.Counter[Size] = dataclasses.field(default_factory=collections.Counter)
    findings: dict[str, Findings] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(Findings)
    )


class _Looked(NamedTuple):
    """A row that was looked at; no hashes: it cannot be used."""

    hashes: tuple[bytes, ...]
    sizes: tuple[Size, ...]
    findings: tuple[tuple[str, Finding], ...]  # by kind


def scan(
    sources: Sequence[Opened],
    preprocess: Preprocess | None,
    preprocessed: Bool[np.ndarray, " rows"],
    progress: Callable[[int], None],
) -> Scan:
    """Looks at every row; images are decoded, and hashes are all that is kept of an item.

    Args:
      preprocess: a backbone's; None: there is none.
      preprocessed: the rows that it is tried on, counted through all sources.
      progress: is told how many rows are done.
    """

    def look(piece: tuple[Opened, range, int]) -> list[_Looked]:
        opened, rows, first = piece
        return [
            _look(opened, index, preprocess if preprocessed[first + number] else None)
            for number, index in enumerate(rows)
        ]

    result = Scan(np.zeros(len(preprocessed), np.bool_))
    done = 0
    for looked in map_ahead(look, _pieces(sources), ahead=2 * THREADS):
        for row in looked:
            if row.hashes:
                result.usable[done] = True
                query, positive, *negatives = row.hashes
                result.queries += query
                result.positives += positive
                result.negatives += b"".join(negatives)
            result.sizes.update(row.sizes)
            for kind, finding in row.findings:
                result.findings[kind].add(finding)
            done += 1
        progress(done)
    return result


def _pieces(sources: Sequence[Opened]) -> Iterator[tuple[Opened, range, int]]:
    """Rows that are looked at together, and the number of the first through all sources."""
    before = 0
    for opened in sources:
        count = len(opened.rows)
        for start in range(0, count, PIECE):
            yield opened, range(start, min(start + PIECE, count)), before + start
        before += count


def _look(opened: Opened, index: int, preprocess: Preprocess | None) -> _Looked:
    finding = functools.partial(opened.finding, index)
    try:
        example = to_example(opened.name, opened.rows[index], str(index))
        rows = prepare(example, preprocess or _decoded, SHAPES).rows
    except BadExample as error:
        bad = finding(error.item.reason, error.item.id, error.item.path)
        return _Looked((), (), (("unusable_rows", bad),))
    hashes = tuple(bytes.fromhex(item_id(item).decode()) for item in _items(example))
    findings = []
    for item in _items(example):
        for media in item.media:
            if side := _tiny(media):
                reason = f"{_A[media.kind]} with a side of {side} pixels"
                findings.append(("tiny_images", finding(reason, example.id, media.path)))
    if hashes[1] in hashes[2:]:
        reason = f"negative {hashes.index(hashes[1], 2) - 2} is the positive"
        findings.append(("positives_among_negatives", finding(reason, example.id)))
    sizes: tuple[Size, ...] = ()
    if preprocess:
        sizes = tuple((len(r.tokens), 0 if r.patches is None else len(r.patches)) for r in rows)
        if cut := max(row.truncated for row in rows):
            reason = f"a text loses {cut} tokens or more"
            findings.append(("cut_texts", finding(reason, example.id)))
        if markers := sum(row.unmatched_markers for row in rows):
            reason = f"{markers} image markers without an image"
            findings.append(("markers_without_image", finding(reason, example.id)))
    return _Looked(hashes, sizes, tuple(findings))


def _items(example: Example) -> tuple[Item, ...]:
    return (example.query, example.positive, *example.negatives)


def _decoded(item: Item) -> Row:
    """A row of nothing, where there is no backbone: its media are decoded all the same.

    Of a clip, the first and the last frame.
    """
    for number, media in enumerate(item.media):
        if media.kind == "clip":
            place = place_of(item, number)
            try:
                with clips.opened(media.data or b"") as clip:
                    collections.deque(clip.frames([0, clip.facts.frames - 1]), maxlen=0)
            except clips.ClipError as error:
                reason = f"{place} cannot be decoded: {error}"
                raise MediaError(reason, media.path, place) from error
    images = tuple(media for media in item.media if media.kind == "image")
    decode_images(dataclasses.replace(item, media=images), None)
    return Row(np.zeros(0, np.int32), np.zeros((0, 1), np.int32), np.zeros((0, 1), np.int32))


def _tiny(media: Media) -> int:
    """The shorter side of an image or clip if it is below `TINY`, else 0."""
    data = media.data or b""
    if media.kind == "clip":
        with clips.opened(data) as clip:
            side = min(clip.facts.width, clip.facts.height)
    else:
        with Image.open(io.BytesIO(data)) as image:  # whose headers the schema has checked
            side = min(image.size)
    return side if side < TINY else 0
