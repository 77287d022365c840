"""Packing of a batch: each distinct item a row in a length bucket, and pairs as row numbers."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from unime_jax.batch import Batch, Example, Inputs, Item, Row
from unime_jax.data.bucket_filling import fill_buckets, row_numbers, smallest_bucket
from unime_jax.data.images import ImageError
from unime_jax.data.quarantine import BadExample, BadItem, MediaError, failed_path, place_of
from unime_jax.data.shapes import BatchShapes

Preprocess = Callable[[Item], Row]  # may raise ValueError: the example is left out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """An example as rows: query, positive, then the negatives that are kept.

    A pytree, as Grain hands arrays from process to process only where it sees them.
    `keys` are the items' identities, text and content of images.
    `bad` are the examples that failed before this one was taken in their place.
    """

    source: str
    keys: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    dropped_negatives: int = 0
    bad: tuple[BadItem, ...] = ()
    scores: tuple[float, ...] = ()  # of the positive and the negatives that are kept
    grade: float = math.nan  # of a graded pair


@dataclasses.dataclass(frozen=True)
class PackInfo:
    """What happened while packing this process's part of a batch."""

    read: int  # examples looked at, the bad ones included
    bad: tuple[BadItem, ...]  # for the quarantine; the same item may come again
    rows: tuple[int, ...]  # live rows, by bucket
    chunks: tuple[int, ...]  # chunks with a live row, by bucket
    pad_fraction: float  # of the tokens in those chunks
    overflowed: int  # rows in a larger bucket than they need
    duplicates: int  # items that were there already
    dropped_negatives: int  # beyond H
    truncated: int  # rows whose text the preprocessor shortened
    unmatched_markers: int  # image markers without an image


def prepare(example: Example, preprocess: Preprocess, shapes: BatchShapes) -> Prepared:
    """Preprocesses an example's items.

    Raises BadExample where `preprocess` raises ValueError, as at an image that cannot be decoded,
    a row fits no bucket, or the batch wants scores or a grade that the example does not have. The
    negatives of a graded pair are dropped: its loss compares pairs.
    """
    if shapes.scored and not example.scores:
        reason = "it has no scores of its candidates, which config.loss needs; job judge makes them"
        raise BadExample(example.source, example.id, "", reason)
    is_graded = example.source in shapes.graded
    if is_graded and example.grade is None:
        reason = "it has no number as its score, which sources of config.loss.graded_sources need"
        raise BadExample(example.source, example.id, "", reason)
    negatives = () if is_graded else example.negatives[: shapes.negatives]
    numbers = example.negative_numbers or range(len(negatives))
    sides = ["query", "positive", *(f"negative {n}" for n in numbers[: len(negatives)])]
    items = (example.query, example.positive, *negatives)
    rows = []
    for side, item in zip(sides, items, strict=True):
        try:
            _check_kinds(item, shapes)
            row = preprocess(item)
            smallest_bucket(row, shapes)
        except ValueError as error:
            reason = str(error)  # names the item
            if isinstance(error, MediaError) and isinstance(error.__cause__, ImageError):
                reason = f"{side}: {error.place} cannot be decoded: {error.__cause__}"
            path = failed_path(item, error)
            raise BadExample(example.source, example.id, path, reason) from error
        rows.append(row)
    dropped = example.undrawn_negatives + len(example.negatives) - len(negatives)
    return Prepared(
        example.source,
        tuple(item.identity for item in items),
        tuple(rows),
        dropped,
        scores=example.scores[: 1 + len(negatives)] if shapes.scored else (),
        grade=example.grade if is_graded and example.grade is not None else math.nan,
    )


def _check_kinds(item: Item, shapes: BatchShapes) -> None:
    """Raises MediaError for a clip where rows of a batch have no room for any."""
    for number, media in enumerate(item.media):
        if media.kind == "clip" and shapes.layout.patches and not shapes.layout.clips:
            place = place_of(item, number)
            raise MediaError(
                f"{place} {media.path!r}: rows may have images alone; set config.data.clips=True"
                " for rows with clips",
                media.path,
                place,
            )


def pack(
    prepared: Sequence[Prepared],
    shapes: BatchShapes,
    sources: Sequence[str],
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> tuple[Batch, PackInfo]:
    """One process's part of a batch, as numpy arrays: its rows of every chunk, its pairs.

    Equal keys become one row. Row numbers are those of the assembled batch; assemble every
    [C, R, ...] array along R and every [B, ...] array along B, in process order. `sources` are
    the names that `Batch.source` counts.
    """
    number_of: dict[tuple[str, str], int] = {}
    rows: list[Row] = []
    targets: list[tuple[str, str]] = []
    for example in prepared:
        targets += example.keys[1:]
        for key, row in zip(example.keys, example.rows, strict=True):
            if number_of.setdefault(key, len(rows)) == len(rows):
                rows.append(row)
    groups, places = fill_buckets(
        rows, shapes, process_index=process_index, process_count=process_count
    )
    numbers = row_numbers(places, shapes, process_index=process_index, process_count=process_count)

    target_id = tuple(np.zeros(group.embedded_shape, np.uint32) for group in groups)
    for key in targets:
        group, chunk, row = places[number_of[key]]
        target_id[group][chunk, row] = target_hash(key)
    negative = np.full((len(prepared), shapes.negatives), -1, np.int32)
    for i, example in enumerate(prepared):
        negative[i, : len(example.keys) - 2] = [numbers[number_of[key]] for key in example.keys[2:]]
    scores = None
    if shapes.scored:
        scores = np.full((len(prepared), 1 + shapes.negatives), np.nan, np.float32)
        for i, example in enumerate(prepared):
            scores[i, : len(example.scores)] = example.scores
    grade = None
    if shapes.graded:
        grade = np.array([example.grade for example in prepared], np.float32)
    batch = Batch(
        groups=groups,
        query=np.array([numbers[number_of[example.keys[0]]] for example in prepared], np.int32),
        positive=np.array([numbers[number_of[example.keys[1]]] for example in prepared], np.int32),
        negative=negative,
        target_id=target_id,
        source=np.array([sources.index(example.source) for example in prepared], np.int32),
        query_id=np.array([target_hash(example.keys[0]) for example in prepared], np.uint32),
        scores=scores,
        grade=grade,
    )
    return batch, _info(prepared, rows, groups, places, shapes)


def target_hash(key: tuple[str, str]) -> int:
    """The id of a target or query: 32 bits of its key, the same in every process, never 0."""
    digest = hashlib.blake2b("\0".join(key).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") or 1


def _info(
    prepared: Sequence[Prepared],
    rows: Sequence[Row],
    groups: Sequence[Inputs],
    places: np.ndarray,
    shapes: BatchShapes,
) -> PackInfo:
    bad = tuple(item for example in prepared for item in example.bad)
    live = [group.live.any(axis=1).sum() for group in groups]
    tokens = sum(n * group.tokens[0].size for n, group in zip(live, groups, strict=True))
    return PackInfo(
        read=len(prepared) + len(bad),
        bad=bad,
        rows=tuple(int(group.embedded.sum()) for group in groups),
        chunks=tuple(int(n) for n in live),
        pad_fraction=float(1 - sum(len(row.tokens) for row in rows) / max(tokens, 1)),
        overflowed=sum(
            int(shapes.buckets[g].texts == 1 and smallest_bucket(row, shapes) != g)
            for row, g in zip(rows, places[:, 0], strict=True)
        ),
        duplicates=sum(len(example.rows) for example in prepared) - len(rows),
        dropped_negatives=sum(example.dropped_negatives for example in prepared),
        truncated=sum(row.truncated > 0 for row in rows),
        unmatched_markers=sum(row.unmatched_markers for row in rows),
    )
