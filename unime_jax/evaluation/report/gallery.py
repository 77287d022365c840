"""The report's gallery: queries with their best candidates, failures first, images inlined."""

import collections
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unime_jax.batch import Item
from unime_jax.data import clips
from unime_jax.data.image_markers import NUMBERED
from unime_jax.data.images import decode
from unime_jax.evaluation import ranking
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.encoding.item_table import Images
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.report import figures
from unime_jax.evaluation.tasks.retrieval import RetrievalResult

EXAMPLES = 3  # per dataset in the gallery
IMAGE_BUDGET = 1_800_000  # characters of base64 in the whole page
THUMBNAIL, SMALL = 144, 96  # pixels of the longer side
IMAGES = 4  # of an item that has more
STRIP = 3  # frames that stand for a clip
HARD, HARD_BUDGET = 6, 600_000  # hard negatives of a dataset, and characters of all their images

Card = Callable[[], dict[str, Any]]  # makes a query with its candidates


def gallery(
    table: scores_lib.Table,
    before: Mapping[str, DatasetResult],
    after: Mapping[str, DatasetResult],
    images: Images,
    retrieval: Mapping[str, Mapping[str, RetrievalResult]] | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """Some rows of every dataset, mistakes first, and how many had to be left out for size.

    `retrieval`: results of retrieval sets by name, "before" and "after".
    """
    thumbnails: dict[str, str] = {}
    earlier = before if after else {}
    waiting: list[tuple[dict[str, Any], list[Card]]] = []
    for name, result in (after or before).items():
        meta = table[name][0] if name in table else ""
        cards: list[Card] = [
            functools.partial(example, result, row, earlier.get(name), images, thumbnails)
            for row in pick(result)
        ]
        waiting.append((_section(name, meta, result), cards))
    sides = retrieval or {}
    sets = sides.get("after") or sides.get("before") or {}
    earlier_sets = sides.get("before") or {} if sides.get("after") else {}
    for name, of_set in sets.items():
        cards = [
            functools.partial(set_example, of_set, n, earlier_sets.get(name), images, thumbnails)
            for n in range(min(len(of_set.shown), EXAMPLES))
        ]
        waiting.append((_section(name, "retrieval", of_set), cards))
    return fill(waiting, IMAGE_BUDGET)


def fill(
    waiting: Sequence[tuple[dict[str, Any], Sequence[Card]]], budget: int
) -> tuple[list[dict[str, Any]], int]:
    """Sections with their cards as "examples", and how many cards were left out for size.

    `budget`: characters, after which no card is made. One card of every section, then a second one,
    and so on. Each card says in "size" what it takes.
    """
    used = left_out = 0
    for turn in range(max((len(cards) for _, cards in waiting), default=0)):
        for section, cards in waiting:
            if turn >= len(cards):
                continue
            if used > budget:
                left_out += 1
                continue
            made = cards[turn]()
            used += made["size"]
            section["examples"].append(made)
    return [section for section, _ in waiting if section["examples"]], left_out


def hard_negatives(
    table: scores_lib.Table, sides: Mapping[str, Mapping[str, DatasetResult]], images: Images
) -> tuple[list[dict[str, Any]], int]:
    """Wrong candidates that outscore the right one in the most rows, and how many are left out.

    `sides`: rankings by name of a model. A card counts the rows of each side; of the candidates
    that stand before the right one, the first `ranking.TOP` are known.
    """
    thumbnails: dict[str, str] = {}
    waiting: list[tuple[dict[str, Any], list[Card]]] = []
    for name in dict.fromkeys(name for results in sides.values() for name in results):
        counts = {
            side: collections.Counter(_outscoring(results[name])) if name in results else {}
            for side, results in sides.items()
        }
        total = sum(map(collections.Counter, counts.values()), collections.Counter())
        cards: list[Card] = [
            functools.partial(
                _hard_card,
                item,
                {side: of.get(item, 0) for side, of in counts.items()},
                images,
                thumbnails,
            )
            for item, _ in total.most_common(HARD)
        ]
        section = {"name": name, "meta": table[name][0] if name in table else "", "examples": []}
        waiting.append((section | {"distinct": len(total)}, cards))
    return fill(waiting, HARD_BUDGET)


def _outscoring(result: DatasetResult) -> Iterator[Item]:
    """In each row, the wrong candidates before the right one, as far as they are known."""
    for row in np.flatnonzero(result.rank):
        before = result.top[row, : result.rank[row]]
        yield from (result.items[n] for n in np.unique(before) if n not in (-1, result.gold[row]))


def _hard_card(
    item: Item, rows: Mapping[str, int], images: Images, thumbnails: dict[str, str]
) -> dict[str, Any]:
    shown = card(item, images, thumbnails, SMALL)
    return shown | {"rows": dict(rows), "size": sum(map(len, shown["images"]))}


def _section(name: str, meta: str, result: DatasetResult | RetrievalResult) -> dict[str, Any]:
    return {
        "name": name,
        "meta": meta,
        "failures": int(np.sum(result.rank > 0)),
        "rows": len(result.ids),
        "examples": [],
    }


def pick(result: DatasetResult) -> list[int]:
    """The most confident mistakes and, if there is room or at least one place, a hit."""
    margin = result.gold_score - result.top_score[:, 0]
    return ranking.telling_rows(margin, result.rank, EXAMPLES)


def example(
    result: DatasetResult,
    row: int,
    earlier: DatasetResult | None,
    images: Images,
    thumbnails: dict[str, str],
) -> dict[str, Any]:
    """A row of a dataset with its best candidates."""
    gold = int(result.gold[row])
    cards = [
        card(result.items[number], images, thumbnails)
        | {"place": place, "score": float(score), "gold": number == gold}
        for place, (number, score) in enumerate(
            zip(result.top[row], result.top_score[row], strict=True), 1
        )
        if number >= 0
    ]
    gold_card = card(result.items[gold], images, thumbnails)
    query = card(result.items[result.query[row]], images, thumbnails)
    candidates = int(result.candidates[row])
    return _example(result, row, earlier, query, cards, gold_card) | {"candidates": candidates}


def set_example(
    result: RetrievalResult,
    number: int,
    earlier: RetrievalResult | None,
    images: Images,
    thumbnails: dict[str, str],
) -> dict[str, Any]:
    """A shown query of a retrieval set with its best candidates; all relevant ones are gold."""
    row = int(result.shown[number])
    best = zip(
        result.top[number], result.top_score[number], result.top_relevant[number], strict=True
    )
    cards = [
        card(result.items[item], images, thumbnails)
        | {"place": place, "score": float(score), "gold": bool(relevant)}
        for place, (item, score, relevant) in enumerate(best, 1)
        if item >= 0
    ]
    gold_card = card(result.items[result.gold[number]], images, thumbnails)
    query = card(result.items[result.query[number]], images, thumbnails)
    return _example(result, row, earlier, query, cards, gold_card) | {
        "candidates": result.candidates
    }


def _example(
    result: DatasetResult | RetrievalResult,
    row: int,
    earlier: DatasetResult | RetrievalResult | None,
    query: dict[str, Any],
    cards: list[dict[str, Any]],
    gold_card: dict[str, Any],
) -> dict[str, Any]:
    """A query with its cards; the gold one follows where it is not among them."""
    if not any(c["gold"] for c in cards):
        place, score = int(result.rank[row]) + 1, float(result.gold_score[row])
        cards = [*cards, gold_card | {"place": place, "score": score, "gold": True}]
    if len(cards) > 1 and len({c["text"] for c in cards}) == 1:
        cards = [c | {"text": ""} for c in cards]  # one prompt for all says nothing about each
    place_before = None
    if earlier and earlier.ids[row : row + 1] == result.ids[row : row + 1]:
        place_before = int(earlier.rank[row]) + 1
    return {
        "id": result.ids[row],
        "query": query,
        "cards": cards,
        "has_images": any(c["images"] for c in cards),
        "rank": int(result.rank[row]) + 1,
        "earlier": place_before,
        "size": sum(len(image) for side in (query, *cards) for image in side["images"]),
    }


def card(
    item: Item, images: Images, thumbnails: dict[str, str], size: int = THUMBNAIL
) -> dict[str, Any]:
    """The text and the thumbnails of an item.

    `thumbnails` are those made so far, all of one size. Images of which `images` has no bytes are
    counted as "lost", those beyond `IMAGES` as "more".
    """
    shown = item.media[:IMAGES]
    for media in shown:
        if media.key not in thumbnails:
            data = images(media.path)
            make = thumbnail if media.kind == "image" else film_strip
            thumbnails[media.key] = make(data, size) if data else ""
    text = " ".join(re.sub(NUMBERED, " ", item.text).split())
    text = text if len(text) <= 200 else text[:199] + "…"
    made = [thumbnails[media.key] for media in shown]
    return {
        "text": text,
        "images": [image for image in made if image],
        "lost": made.count(""),
        "more": len(item.media[IMAGES:]),
    }


def thumbnail(data: bytes, size: int = THUMBNAIL) -> str:
    """An image as a data URI, whose longer side has at most `size` pixels."""
    return _data_uri(decode(data), size)


def film_strip(data: bytes, size: int = THUMBNAIL) -> str:
    """First frame, one of the middle and last of a clip side by side, as `thumbnail`."""
    with clips.opened(data) as clip:
        numbers = np.linspace(0, clip.facts.frames - 1, min(STRIP, clip.facts.frames)).round()
        frames = list(clip.frames(numbers.astype(int).tolist()))
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for number, frame in enumerate(frames):
        strip.paste(frame, (number * width, 0))
    return _data_uri(strip, size)


def _data_uri(image: Image.Image, size: int) -> str:
    form = "PNG" if max(image.size) <= 64 else "JPEG"
    image.thumbnail((size, size))
    return figures.data_uri(image, form)
