"""Mine negatives for training rows: the best candidates below the positive, a table by row.

Queries and candidates are embedded as job `embed` does, into <workdir>/queries and
<workdir>/candidates, and searched block by block of rows. Every process works alone, on its own
devices, on every n-th block; nothing but files is exchanged. So the table does not depend on
processes or devices, and after a kill the same command goes on with what is missing.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from unime_jax import config, config_reader, files
from unime_jax.backbones import Backbone
from unime_jax.data import heads, mining_rows
from unime_jax.data.embedding_store import Embeddings, open_embeddings
from unime_jax.data.formats import Source
from unime_jax.data.mined_table import Layout, Writer, row_type
from unime_jax.data.mining_corpus import open_corpus
from unime_jax.data.mining_rows import NONE, MiningRows
from unime_jax.data.pairs import open_pairs
from unime_jax.evaluation import corpus_search, negative_choice
from unime_jax.jobs import embed, preflight, preflight_models
from unime_jax.operations import compilation_cache, disk_errors, workdir_lock
from unime_jax.training.setup import write_config

PROMPTS = {"queries": "query", "candidates": "document"}  # of sentence-transformers, by folder


@dataclasses.dataclass(frozen=True)
class Data:
    """What is mined: rows by source, before and after the cut to first rows, and a corpus."""

    total: dict[str, int]
    sources: dict[str, Source]
    corpus: dict[str, Source]


@dataclasses.dataclass(frozen=True)
class Guide:
    """Vectors of the same rows by another model; rows are by number of a query or candidate."""

    queries: Embeddings
    candidates: Embeddings
    query_rows: np.ndarray
    candidate_rows: np.ndarray
    margin: float

    def agrees(self, query: int, positive: int, candidates: np.ndarray) -> np.ndarray:
        """Which candidates this model, too, scores below the positive.

        Raises:
          ValueError: it has no vector of one of them.
        """
        targets = self.candidate_rows[np.append(candidates, positive)]
        if min(self.query_rows[query], *targets) < 0:
            raise ValueError(
                f"config.search.guide={self.candidates.folder.parent} has no vectors of all queries"
                " and candidates: mine there with the same config.data first"
            )
        vector = self.queries.at(self.query_rows[query : query + 1]).astype(np.float64)
        scores = self.candidates.at(targets).astype(np.float64) @ vector[0]
        return scores[:-1] <= scores[-1] - self.margin


@dataclasses.dataclass(frozen=True)
class Mining:
    """A mining job whose vectors are on disk."""

    settings: config.MineConfig
    rows: MiningRows
    queries: Embeddings
    candidates: Embeddings
    writer: Writer
    mesh: Mesh
    guide: Guide | None


def run(config_dict: ConfigDict, workdir: files.Path) -> None:
    """Begins or resumes the mining in `workdir`.

    Rows that training would leave out and items that the model cannot take have no negatives and
    are none; quarantine.jsonl of the two folders of vectors lists them.

    Raises:
      ValueError: the config does not make sense, too much is bad, `workdir` was begun with another
        model, other data or another search, or another process writes the same part of it.
      RuntimeError: a disk takes no more.
    """
    settings = config_reader.read(config.MineConfig, config_dict.to_dict())
    mesh = preflight.check(
        lambda: embed.local_mesh(settings.mesh),
        workdir,
        lambda problems: preflight_models.check_mining(settings, problems),
    )
    lock = f"mine-{jax.process_index()}-of-{jax.process_count()}.lock"
    with (
        disk_errors.explained(workdir),
        workdir_lock.owned(workdir, lock, what="writes this part of the negatives in"),
    ):
        compilation_cache.use_for_job(settings.compilation_cache, workdir)
        backbone = embed.open_model(embedding(settings, None, "queries"))
        data = open_data(settings.data)
        rows = mining_rows.read_rows(data.sources, data.corpus)
        logging.info(
            "%d rows, %d distinct queries, %d distinct candidates",
            len(rows.query),
            len(rows.queries),
            len(rows.candidates),
        )
        writer = begin(settings, workdir, backbone, data, rows)
        write_config(workdir, config_dict)
        _embed_both(settings, workdir, backbone, rows)
        mining = Mining(
            settings=settings,
            rows=rows,
            queries=open_embeddings(workdir / "queries"),
            candidates=open_embeddings(workdir / "candidates"),
            writer=writer,
            mesh=mesh,
            guide=open_guide(settings.search, rows),
        )
        mine(mining, process_index=jax.process_index(), process_count=jax.process_count())
        _wait(writer.finish)
        logging.info("%s is complete: %s", workdir, _summary(writer))


def open_data(data: config.MineDataConfig) -> Data:
    """The rows that are mined for, by source, and the corpus.

    Raises:
      FileNotFoundError: as `open_pairs` and `open_corpus`.
      ValueError: as they do, and `heads.heads`.
    """
    folder = files.as_path(data.folder)
    pairs = open_pairs(folder / data.train, data.columns)
    total = {name: len(rows) for name, rows in sorted(pairs.items())}
    sources = heads.heads(pairs, data.first_rows, data.first_rows_by_source)
    chosen = {name: sources[name] for name in sorted(data.sources or sources)}
    corpus = open_corpus(folder / data.corpus, data.columns) if data.corpus else {}
    return Data({name: total[name] for name in chosen}, chosen, corpus)


def open_guide(search: config.SearchConfig, rows: MiningRows) -> Guide | None:
    """The second model's vectors, if there is one; ValueError if they are not complete."""
    if not search.guide:
        return None
    folder = files.as_path(search.guide)
    queries, candidates = (open_embeddings(folder / side) for side in PROMPTS)
    return Guide(
        queries,
        candidates,
        queries.rows_of(rows.queries.ids),
        candidates.rows_of(rows.candidates.ids),
        search.guide_margin,
    )


def begin(
    settings: config.MineConfig,
    workdir: files.Path,
    backbone: Backbone,
    data: Data,
    rows: MiningRows,
) -> Writer:
    """The table of `workdir`, checked against what it began with."""
    search = dataclasses.asdict(settings.search)
    for key in ("rows", "columns", "guide"):  # memory, not results, and where a folder lies
        del search[key]
    record = {
        "sources": {name: [len(data.sources[name]), data.total[name]] for name in data.sources},
        "corpus": {"path": settings.data.corpus, "sources": sorted(data.corpus)},
        "provenance": {
            "backbone": backbone.base if backbone.adapter is None else str(backbone.adapter),
            "commits": dict(backbone.commits),
            "model": embed.model_provenance(backbone, settings.dtype),
            "prefixes": {side: _prefix(settings, backbone, side) for side in PROMPTS},
            "suffix": settings.suffix,
            "truncate_dim": settings.truncate_dim,
            "vectors": settings.output.dtype,
            "data": rows.fingerprints(),
            "corpus": rows.corpus_fingerprint() if data.corpus else "",
            "search": search,
            "guide": _guide_provenance(settings.search.guide),
            "versions": embed.versions(),
        },
    }
    counts = {name: len(source) for name, source in data.sources.items()}
    writer = Writer(
        workdir, Layout(counts, settings.search.rows, settings.search.negatives), record
    )
    writer.put_candidates(rows.candidates.ids, rows.candidates.places, rows.positive)
    return writer


def embedding(
    settings: config.MineConfig, backbone: Backbone | None, side: str
) -> config.EmbedConfig:
    """The embedding job of the queries or the candidates."""
    return config.EmbedConfig(
        job="embed",
        backbone=settings.backbone,
        revision=settings.revision,
        processing=settings.processing,
        prefix=None if backbone is None else _prefix(settings, backbone, side),
        suffix=settings.suffix,
        max_length=settings.max_length,
        truncate_dim=settings.truncate_dim,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        compilation_cache=settings.compilation_cache,
        mesh=settings.mesh,
        data=config.CorpusConfig(
            folder=settings.data.folder,
            datasets=(settings.data.train,),
            columns=settings.data.columns,
            splits=settings.data.sources,
            sides=("query",) if side == "queries" else ("positive", "negatives"),
            texts=(settings.data.corpus,) if side == "candidates" and settings.data.corpus else (),
            max_bad_share=settings.data.max_bad_share,
        ),
        output=settings.output,
    )


def _guide_provenance(folder: str) -> dict[str, Any]:
    """What the vectors of a guide were made by."""
    if not folder:
        return {}
    stores = {side: open_embeddings(files.as_path(folder) / side) for side in PROMPTS}
    keys = ("model", "prefix", "suffix")
    return {
        side: {key: store.provenance.get(key) for key in keys} for side, store in stores.items()
    }


def _prefix(settings: config.MineConfig, backbone: Backbone, side: str) -> str:
    """The instruction before texts: given, the folder's for this side, or its default."""
    given = settings.query_prefix if side == "queries" else settings.candidate_prefix
    name = PROMPTS[side] if given is None and PROMPTS[side] in backbone.defaults.prompts else None
    return backbone.defaults.prompt(given, name)


def _embed_both(
    settings: config.MineConfig, workdir: files.Path, backbone: Backbone, rows: MiningRows
) -> None:
    """Vectors of queries and candidates, of all processes; the weights are read once, if at all."""
    embedder = functools.cache(lambda: embed.make_embedder(works[0]))
    works = []
    for side, items in (("queries", rows.queries), ("candidates", rows.candidates)):
        own = embedding(settings, backbone, side)
        works.append(embed.begin(own, workdir / side, backbone=backbone, items=items))
    for work in works:
        embed.embed(
            work,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            embedder=lambda _: embedder(),
        )
    for work in works:
        _wait(work.writer.finish)
    embedder.cache_clear()  # the search needs the devices' memory


def _wait(finish: Callable[[], bool]) -> None:
    """Until all processes' parts are there."""
    while not finish():
        time.sleep(embed.POLL_SECONDS)


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


def _summary(writer: Writer) -> str:
    """Rows, and how many negatives they have."""
    counts: Any = np.zeros(writer.layout.count + 1, int)
    for rows in writer.read_blocks():
        found = (rows["number"] >= 0).sum(axis=1)[~np.isnan(rows["positive"])]
        counts += np.bincount(found, minlength=len(counts))
    mean = float(np.arange(len(counts)) @ counts) / max(1, counts.sum())
    return (
        f"{counts.sum()} rows have {mean:.3g} negatives on average, {counts[-1]} all "
        f"{len(counts) - 1}, {counts[0]} none"
    )
