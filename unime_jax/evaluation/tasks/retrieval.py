"""Retrieval from a corpus: where do a query's relevant targets stand among all candidates?"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from absl import logging
from jaxtyping import Bool, Float32, Float64, Int32

from unime_jax.batch import Item
from unime_jax.evaluation import ranking
from unime_jax.evaluation.encoding.item_table import Encode, Images, ItemTable, encode_table
from unime_jax.evaluation.retrieval import corpus_ranking
from unime_jax.evaluation.retrieval.corpus_ranking import Judgements, Places
from unime_jax.evaluation.retrieval.data import RetrievalData, images_of

SHOWN = 3  # queries whose first candidates are kept for display


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalResult:
    """Ranks and per-query metrics of one set. Scores are cosines.

    `query`, `gold` and `top` are numbers in `items`, which carry no image bytes; they are of the
    few queries that are `shown`.
    """

    name: str
    ids: tuple[str, ...]  # of queries
    items: tuple[Item, ...]
    candidates: int  # of the corpus
    rank: Int32[np.ndarray, " queries"]  # candidates before the first relevant target; 0 is a hit
    ndcg_5: Float64[np.ndarray, " queries"]  # of the first 5, in [0, 1]; NaN: was not kept
    ndcg: Float64[np.ndarray, " queries"]  # of the first 10
    average_precision: Float64[np.ndarray, " queries"]  # in [0, 1]
    gold_score: Float32[np.ndarray, " queries"]  # of the first relevant target
    hardest: Float32[np.ndarray, " queries"]  # best other candidate; -inf: all are relevant
    shown: Int32[np.ndarray, " shown"]  # queries, mistakes first
    query: Int32[np.ndarray, " shown"]
    gold: Int32[np.ndarray, " shown"]  # the first relevant target
    top: Int32[np.ndarray, "shown 5"]  # best candidates in order, -1 where there are fewer
    top_score: Float32[np.ndarray, "shown 5"]
    top_relevant: Bool[np.ndarray, "shown 5"]


@dataclasses.dataclass(frozen=True)
class Task:
    """One set: queries, a corpus, and which of it is relevant to which query."""

    data: RetrievalData
    limit: int = 0  # the first rows (pairs) or queries (a judged corpus, all of it); 0: all
    kind: Literal["retrieval"] = "retrieval"

    @property
    def name(self) -> str:
        return self.data.name

    def open(self, images: Images) -> "OpenTask":
        """Reads all rows; see `tasks.Task`. Images are those of the rows, not `images`."""
        table = ItemTable(images_of({self.name: self.data}), self.data.where)
        ids, judged, without = self.data.judgements(table, self.limit)
        if without:
            logging.warning(
                "%s: %d of %d queries have no relevant target and are left out",
                self,
                without,
                without + len(ids),
            )
        return OpenTask(self, ids, table, judged)

    def __str__(self) -> str:
        return str(self.data)


@dataclasses.dataclass(frozen=True, eq=False)
class OpenTask:
    """Queries and corpus as numbers in a table of distinct items."""

    task: Task
    ids: Sequence[str]
    items: ItemTable
    judged: Judgements

    def encode(self, encode: Encode) -> Float32[np.ndarray, "n D"]:
        """Unit vectors."""
        return encode_table(str(self.task), self.items, encode)

    def score(self, vectors: Float32[np.ndarray, "n D"]) -> RetrievalResult:
        """Ranks the whole corpus for each query."""
        return rank_corpus(self.task.name, self.ids, self.items, self.judged, vectors)


def rank_corpus(
    name: str,
    ids: Sequence[str],
    table: ItemTable,
    judged: Judgements,
    vectors: Float32[np.ndarray, "n D"],
) -> RetrievalResult:
    """Ranks the whole corpus for each query, by unit vectors of the items of `table`.

    `ids` are of the queries.
    """
    places = corpus_ranking.rank(judged, vectors)
    first = judged.offsets[:-1]
    rank = places.place[first].astype(np.int32)
    gold_score = places.score[first]
    margin = np.minimum(gold_score - places.hardest, np.float32(2))  # inf: all are relevant
    shown = np.array(ranking.telling_rows(margin, rank, SHOWN), np.int64)
    top, top_score, top_relevant = corpus_ranking.best(judged, shown, vectors)
    query = judged.query[shown]
    gold = judged.candidates[places.relevant[first[shown]]]
    top = np.where(top < 0, -1, judged.candidates[top])
    kept, renumbered = np.unique(np.concatenate([query, gold, top.ravel()]), return_inverse=True)
    missing = int(kept[0] == -1)  # -1 sorts first and stays -1
    renumbered = (renumbered - missing).astype(np.int32)
    query, gold, top = np.split(renumbered, [len(shown), 2 * len(shown)])
    return RetrievalResult(
        name=name,
        ids=tuple(ids),
        items=tuple(table.bare(i) for i in kept[missing:].tolist()),
        candidates=len(judged.candidates),
        rank=rank,
        ndcg_5=ndcg(judged, places, 5),
        ndcg=ndcg(judged, places, 10),
        average_precision=average_precision(judged, places),
        gold_score=gold_score,
        hardest=places.hardest,
        shown=shown.astype(np.int32),
        query=query,
        gold=gold,
        top=top.reshape(top_score.shape),
        top_score=top_score,
        top_relevant=top_relevant,
    )


def ndcg(judged: Judgements, places: Places, depth: int) -> Float64[np.ndarray, " queries"]:
    """nDCG of the first few with linear gain, grade / log2(place + 2), as pytrec_eval and mteb."""
    starts, owner = judged.offsets[:-1], _owners(judged)
    gain = _discounted(places.grade, places.place, depth)
    ideal_order = np.lexsort((-places.grade, owner))
    ideal_place = np.arange(len(owner)) - starts[owner]
    ideal = _discounted(places.grade[ideal_order], ideal_place, depth)
    return np.add.reduceat(gain, starts) / np.add.reduceat(ideal, starts)


def average_precision(judged: Judgements, places: Places) -> Float64[np.ndarray, " queries"]:
    """Mean of the precisions at each relevant target's place, whatever its grade; no depth."""
    starts = judged.offsets[:-1]
    within = np.arange(len(places.place)) - starts[_owners(judged)]
    precision = (within + 1) / (places.place + 1)
    return np.add.reduceat(precision, starts) / np.diff(judged.offsets)


def _owners(judged: Judgements) -> np.ndarray:
    """The query of each relevant target."""
    return np.repeat(np.arange(len(judged.query)), np.diff(judged.offsets))


def _discounted(grade: np.ndarray, place: np.ndarray, depth: int) -> np.ndarray:
    return np.where(place < depth, grade / np.log2(place + 2.0), 0.0)
