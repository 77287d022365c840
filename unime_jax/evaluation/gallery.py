"""The report's gallery: queries with their best candidates, failures first, images inlined."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unime_jax.batch import Item
from unime_jax.data.image_markers import NUMBERED
from unime_jax.data.images import decode
from unime_jax.evaluation import figures, ranking
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.item_table import Images
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.tasks.retrieval import RetrievalResult

EXAMPLES = 3  # per dataset in the gallery
IMAGE_BUDGET = 1_800_000  # characters of base64 in the whole page
THUMBNAIL = 144  # pixels of the longer side

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
    used = left_out = 0
    for turn in range(EXAMPLES):  # one of every dataset, then a second one, ...
        for section, cards in waiting:
            if turn >= len(cards):
                continue
            if used > IMAGE_BUDGET:
                left_out += 1
                continue
            card = cards[turn]()
            sides_of_card = (card["query"], *card["cards"])
            used += sum(len(image) for side in sides_of_card for image in side["images"])
            section["examples"].append(card)
    return [section for section, _ in waiting if section["examples"]], left_out


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
        _card(result.items[number], images, thumbnails)
        | {"place": place, "score": float(score), "gold": number == gold}
        for place, (number, score) in enumerate(
            zip(result.top[row], result.top_score[row], strict=True), 1
        )
        if number >= 0
    ]
    gold_card = _card(result.items[gold], images, thumbnails)
    query = _card(result.items[result.query[row]], images, thumbnails)
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
        _card(result.items[item], images, thumbnails)
        | {"place": place, "score": float(score), "gold": bool(relevant)}
        for place, (item, score, relevant) in enumerate(best, 1)
        if item >= 0
    ]
    gold_card = _card(result.items[result.gold[number]], images, thumbnails)
    query = _card(result.items[result.query[number]], images, thumbnails)
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
    }


def _card(item: Item, images: Images, thumbnails: dict[str, str]) -> dict[str, Any]:
    """The text and the thumbnails of an item."""
    paths = [image.path for image in item.media]
    for path in paths:
        if path not in thumbnails:
            thumbnails[path] = thumbnail(images(path))
    text = " ".join(re.sub(NUMBERED, " ", item.text).split())
    text = text if len(text) <= 200 else text[:199] + "…"
    return {"text": text, "images": [thumbnails[path] for path in paths]}


def thumbnail(data: bytes) -> str:
    image = decode(data)
    form = "PNG" if max(image.size) <= 64 else "JPEG"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return figures.data_uri(image, form)
