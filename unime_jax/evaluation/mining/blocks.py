"""Blocks of the table of mined negatives: a search below each positive's score, and the choice."""

import dataclasses
import functools

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from unime_jax.config import MineConfig
from unime_jax.data.embedding_store import Embeddings
from unime_jax.data.mined_table import Writer, row_type
from unime_jax.data.mining_guide import Guide
from unime_jax.data.mining_rows import NONE, MiningRows
from unime_jax.evaluation.mining import corpus_search, negative_choice


@dataclasses.dataclass(frozen=True)
class Mining:
    """A mining job whose vectors are on disk."""

    settings: MineConfig
    rows: MiningRows
    queries: Embeddings
    candidates: Embeddings
    writer: Writer
    mesh: Mesh
    guide: Guide | None


def mine(mining: Mining, *, process_index: int, process_count: int) -> None:
    """One process's blocks of the table."""
    settings, rows, writer = mining.settings, mining.rows, mining.writer
    mine = [n for n in writer.missing() if n % process_count == process_index]
    query_rows = mining.queries.rows_of(rows.queries.ids)
    candidate_rows = mining.candidates.rows_of(rows.candidates.ids)

    def pool_of(source: int | None) -> corpus_search.Corpus:
        """Candidates of a source, or of all; of a corpus named apart, its own."""
        if source is not None:
            number = rows.pool(source, source + 1)
        elif settings.data.corpus:
            number = rows.pool(len(rows.start), np.iinfo(np.int32).max)
        else:
            number = np.arange(len(rows.candidates), dtype=np.int32)
        return corpus_search.Corpus(
            number[candidate_rows[number] >= 0],
            lambda numbers: mining.candidates.at(candidate_rows[numbers]),
            mining.mesh,
            settings.search.columns,
            settings.search.method,
        )

    pools = functools.lru_cache(maxsize=1)(pool_of)
    order = {name: number for number, name in enumerate(rows.start)}
    blocks = writer.layout.blocks()
    total = sum(len(blocks[number][1]) for number in mine)
    with tqdm(total=total, unit="row", disable=process_index > 0) as bar:
        for number in mine:
            name, span = blocks[number]
            pool = pools(order[name] if settings.search.pool == "source" else None)
            writer.put(number, _block(mining, name, span, pool, query_rows, candidate_rows))
            bar.update(len(span))


def _block(
    mining: Mining,
    name: str,
    span: range,
    pool: corpus_search.Corpus,
    query_rows: np.ndarray,
    candidate_rows: np.ndarray,
) -> np.ndarray:
    """The table's rows of a block."""
    rows, chosen = mining.rows, mining.settings.search
    flat = rows.start[name] + np.arange(span.start, span.stop)
    table = np.zeros(len(span), row_type(chosen.negatives))
    table["digest"] = rows.digest[flat]
    table["positive"] = np.nan
    table["number"], table["score"] = NONE, np.nan
    query, positive = rows.query[flat], rows.positive[flat]
    live = (query >= 0) & (positive >= 0)
    live[live] &= (query_rows[query[live]] >= 0) & (candidate_rows[positive[live]] >= 0)
    places = np.flatnonzero(live)
    if not len(places):
        return table
    queries = mining.queries.at(query_rows[query[places]])
    positives = mining.candidates.at(candidate_rows[positive[places]])
    score = np.einsum("nd,nd->n", queries, positives, dtype=np.float64).astype(np.float32)
    table["positive"][places] = score
    limit = negative_choice.limits(score, chosen.margin, chosen.ratio, chosen.max_score)
    own = chosen.own_negatives
    excluded = [rows.excluded(row, own_negatives=own) for row in flat[places].tolist()]
    first, last = chosen.ranks
    numbers, scores = corpus_search.search(queries, limit, excluded, pool, last)
    for place, ranked, values in zip(places.tolist(), numbers, scores, strict=True):
        window = slice(first - 1, int(np.sum(ranked >= 0)))
        ranked, values = ranked[window], values[window]
        if mining.guide is not None and len(ranked):
            kept = mining.guide.agrees(query[place], positive[place], ranked)
            ranked, values = ranked[kept], values[kept]
        picked = negative_choice.choose(
            len(ranked),
            count=chosen.negatives,
            choice=chosen.choice,
            interval=chosen.interval,
            fill=chosen.fill,
            seed=f"{chosen.seed}/{name}/{span[place]}",
        )
        table["number"][place, : len(picked)] = ranked[picked]
        table["score"][place, : len(picked)] = values[picked]
    return table
