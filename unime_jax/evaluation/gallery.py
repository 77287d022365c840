"""The report's gallery: queries with their best candidates, failures first, images inlined."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from unime_jax.data.image_markers import NUMBERED
from unime_jax.data.images import decode
from unime_jax.evaluation import figures
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.item_table import Images
from unime_jax.evaluation.ranking import DatasetResult

EXAMPLES = 3  # per dataset in the gallery
IMAGE_BUDGET = 1_800_000  # characters of base64 in the whole page
THUMBNAIL = 144  # pixels of the longer side


def gallery(
    table: scores_lib.Table,
    before: Mapping[str, DatasetResult],
    after: Mapping[str, DatasetResult],
    images: Images,
) -> tuple[list[dict[str, Any]], int]:
    """Some rows of every dataset, mistakes first, and how many had to be left out for size."""
    shown = after or before
    picks = {name: pick(result) for name, result in shown.items()}
    thumbnails: dict[str, str] = {}
    sections: dict[str, dict[str, Any]] = {
        name: {
            "name": name,
            "meta": table[name][0] if name in table else "",
            "failures": int(np.sum(result.rank > 0)),
            "rows": len(result.ids),
            "examples": [],
        }
        for name, result in shown.items()
    }
    used = left_out = 0
    for turn in range(EXAMPLES):  # one of every dataset, then a second one, ...
        for name, rows in picks.items():
            if turn >= len(rows):
                continue
            if used > IMAGE_BUDGET:
                left_out += 1
                continue
            earlier = before.get(name) if after else None
            card = example(shown[name], rows[turn], earlier, images, thumbnails)
            sides = (card["query"], *card["cards"])
            used += sum(len(image) for side in sides for image in side["images"])
            sections[name]["examples"].append(card)
    return [section for section in sections.values() if section["examples"]], left_out


def pick(result: DatasetResult) -> list[int]:
    """The most confident mistakes and, if there is room or at least one place, a hit."""
    margin = result.gold_score - result.top_score[:, 0]
    order = np.argsort(margin, kind="stable")
    failures = [int(n) for n in order if result.rank[n] > 0]
    hits = np.flatnonzero(result.rank == 0).tolist()
    return [*failures[: EXAMPLES - 1], *hits[:1], *failures[EXAMPLES - 1 :], *hits[1:]][:EXAMPLES]


def example(
    result: DatasetResult,
    row: int,
    earlier: DatasetResult | None,
    images: Images,
    thumbnails: dict[str, str],
) -> dict[str, Any]:
    def card(number: int) -> dict[str, Any]:
        item = result.items[number]
        paths = [image.path for image in item.media]
        for path in paths:
            if path not in thumbnails:
                thumbnails[path] = thumbnail(images(path))
        text = " ".join(re.sub(NUMBERED, " ", item.text).split())
        text = text if len(text) <= 200 else text[:199] + "…"
        return {"text": text, "images": [thumbnails[path] for path in paths]}

    gold = int(result.gold[row])
    cards = [
        card(int(number)) | {"place": place, "score": float(score), "gold": number == gold}
        for place, (number, score) in enumerate(
            zip(result.top[row], result.top_score[row], strict=True), 1
        )
        if number >= 0
    ]
    if not any(c["gold"] for c in cards):
        score = float(result.gold_score[row])
        place = int(result.rank[row]) + 1
        cards.append(card(gold) | {"place": place, "score": score, "gold": True})
    if len(cards) > 1 and len({c["text"] for c in cards}) == 1:
        cards = [c | {"text": ""} for c in cards]  # one prompt for all says nothing about each
    place_before = None
    if earlier and earlier.ids[row : row + 1] == result.ids[row : row + 1]:
        place_before = int(earlier.rank[row]) + 1
    return {
        "id": result.ids[row],
        "query": card(int(result.query[row])),
        "cards": cards,
        "has_images": any(c["images"] for c in cards),
        "rank": int(result.rank[row]) + 1,
        "earlier": place_before,
        "candidates": int(result.candidates[row]),
    }


def thumbnail(data: bytes) -> str:
    image = decode(data)
    form = "PNG" if max(image.size) <= 64 else "JPEG"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return figures.data_uri(image, form)
