"""Rows that models get wrong, with the first answers of each model beside each other."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unime_jax.batch import Item
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.encoding.item_table import Images
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.report.gallery import EXAMPLES, SMALL, Card, card, fill
from unime_jax.evaluation.tasks.retrieval import RetrievalResult

ANSWERS = 3  # of each model
BUDGET = 5_500_000  # characters of all examples
CARD = 600  # characters of an answer without its images, about

Result = DatasetResult | RetrievalResult


def examples(
    results: Mapping[str, Mapping[str, Result]], table: scores_lib.Table, images: Images
) -> tuple[list[dict[str, Any]], int]:
    """Some rows of every dataset, and how many had to be left out for size.

    Only models that have the rows of the first one are shown beside it.

    Args:
      results: by model and dataset.
      table: meta task and split by dataset.
    """
    thumbnails: dict[str, str] = {}
    waiting: list[tuple[dict[str, Any], list[Card]]] = []
    for name in dict.fromkeys(name for of_model in results.values() for name in of_model):
        beside = {model: found[name] for model, found in results.items() if name in found}
        first = next(iter(beside.values()))
        beside = {model: result for model, result in beside.items() if result.ids == first.ids}
        cards: list[Card] = [
            functools.partial(_example, row, beside, images, thumbnails) for row in pick(beside)
        ]
        section = {
            "name": name,
            "meta": table[name][0] if name in table else "",
            "rows": len(first.ids),
            "wrong": {model: int(np.sum(result.rank > 0)) for model, result in beside.items()},
            "examples": [],
        }
        waiting.append((section, cards))
    return fill(waiting, BUDGET)


def pick(beside: Mapping[str, Result]) -> list[int]:
    """Rows worth a look: one that the models disagree on most, then their most confident mistakes.

    Of retrieval only rows whose answers were kept.
    """
    several = list(beside.values())
    margin = np.stack([np.nan_to_num(r.gold_score - r.hardest, posinf=2.0) for r in several])
    hit = np.stack([result.rank == 0 for result in several])
    rows = np.arange(margin.shape[1])
    if isinstance(several[0], RetrievalResult):
        kept = [result.shown for result in several if isinstance(result, RetrievalResult)]
        rows = np.unique(np.concatenate(kept))
    hits = hit.sum(axis=0)
    by_any, by_all = hits > 0, hits == len(several)
    disputed = rows[(by_any & ~by_all)[rows]]
    spread = margin.max(axis=0) - margin.min(axis=0)
    first = disputed[np.argsort(-spread[disputed], kind="stable")][:1].tolist()
    wrong = rows[~by_all[rows]]
    # Mistakes of all models come before those of some.
    order = np.lexsort((margin.max(axis=0)[wrong], by_any[wrong]))
    mistakes = [row for row in wrong[order].tolist() if row not in first]
    return ([*first, *mistakes] or rows.tolist())[:EXAMPLES]


def _example(
    row: int, beside: Mapping[str, Result], images: Images, thumbnails: dict[str, str]
) -> dict[str, Any]:
    """A row's query, and the answers of each model."""
    first = next(iter(beside.values()))
    query = next((q for q in (_query(result, row) for result in beside.values()) if q), None)

    def of(item: Item) -> dict[str, Any]:
        return card(item, images, thumbnails, SMALL)

    answers: list[dict[str, Any]] = [
        {
            "name": model,
            "place": int(result.rank[row]) + 1,
            "cards": [of(item) | about for item, about in _answers(result, row)],
        }
        for model, result in beside.items()
    ]
    shown: list[dict[str, Any]] = [c for of_model in answers for c in of_model["cards"]]
    if len(shown) > 1 and len({c["text"] for c in shown}) == 1:
        for answer in shown:  # one prompt for all says nothing about each
            answer["text"] = ""
    asked: dict[str, Any] = of(query) if query else {"text": "", "images": [], "lost": 0, "more": 0}
    return {
        "id": first.ids[row],
        "query": asked,
        "answers": answers,
        "candidates": int(np.atleast_1d(first.candidates)[row if _is_ranked(first) else 0]),
        "size": sum(CARD + sum(map(len, c["images"])) for c in (asked, *shown)),
    }


def _is_ranked(result: Result) -> bool:
    return isinstance(result, DatasetResult)


def _query(result: Result, row: int) -> Item | None:
    place = _place(result, row)
    return None if place is None else result.items[result.query[place]]


def _place(result: Result, row: int) -> int | None:
    """Where the row stands in the fields of its items; None where its answers were not kept."""
    if isinstance(result, DatasetResult):
        return row
    kept = np.flatnonzero(result.shown == row)
    return int(kept[0]) if len(kept) else None


def _answers(result: Result, row: int) -> Sequence[tuple[Item, dict[str, Any]]]:
    """The first items with place, score and whether they are right; then the right one."""
    place = _place(result, row)
    if place is None:
        return []
    gold = int(result.gold[place])
    numbers, scores = result.top[place, :ANSWERS].tolist(), result.top_score[place].tolist()
    if isinstance(result, RetrievalResult):
        right = result.top_relevant[place, :ANSWERS].tolist()
    else:
        right = [number == gold for number in numbers]
    answers = [
        (result.items[number], {"place": n, "score": score, "gold": is_right})
        for n, (number, score, is_right) in enumerate(zip(numbers, scores, right), 1)
        if number >= 0
    ]
    if not any(right):
        about = {"place": int(result.rank[row]) + 1, "score": float(result.gold_score[row])}
        answers.append((result.items[gold], about | {"gold": True}))
    return answers
