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

import jax
from absl import logging
from ml_collections import ConfigDict

from unime_jax import config, config_reader, files
from unime_jax.backbones import Backbone
from unime_jax.data import heads, mined_table, mining_guide, mining_rows
from unime_jax.data.embedding_store import open_embeddings
from unime_jax.data.formats import Source
from unime_jax.data.mined_table import Layout, Writer
from unime_jax.data.mining_corpus import open_corpus
from unime_jax.data.mining_rows import MiningRows
from unime_jax.data.pairs import open_pairs
from unime_jax.evaluation.mining import blocks as mined_blocks
from unime_jax.jobs import embed, preflight, preflight_models
from unime_jax.operations import compilation_cache, disk_errors, workdir_lock
from unime_jax.operations.config_file import write_config

PROMPTS = {"queries": "query", "candidates": "document"}  # of sentence-transformers, by folder


@dataclasses.dataclass(frozen=True)
class Data:
    """What is mined: rows by source, before and after the cut to first rows, and a corpus."""

    total: dict[str, int]
    sources: dict[str, Source]
    corpus: dict[str, Source]


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
        mining = mined_blocks.Mining(
            settings=settings,
            rows=rows,
            queries=open_embeddings(workdir / "queries"),
            candidates=open_embeddings(workdir / "candidates"),
            writer=writer,
            mesh=mesh,
            guide=mining_guide.open_guide(
                settings.search.guide, settings.search.guide_margin, rows
            ),
        )
        mined_blocks.mine(
            mining, process_index=jax.process_index(), process_count=jax.process_count()
        )
        _wait(writer.finish)
        logging.info("%s is complete: %s", workdir, mined_table.summary(writer))


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
            "guide": mining_guide.provenance(settings.search.guide),
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
