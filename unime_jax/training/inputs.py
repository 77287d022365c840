"""Training data: generated where they are missing, checked against the config, cut into batches."""

import functools
import importlib
import time
from collections.abc import Callable, Mapping

import grain
import jax
from absl import logging

from unime_jax import config, files
from unime_jax.data import formats, heads, loader, mined_rows, mixture, sampling, schema
from unime_jax.data.pairs import open_pairs
from unime_jax.operations import processes
from unime_jax.training.batch_clusters import BatchClusters
from unime_jax.training.setup import Setup


def prepare(settings: config.PrepareConfig, folder: files.Path) -> None:
    """Generates the data of `data.prepare` where they are missing."""
    if not settings.module:
        return
    if jax.process_index() == 0:
        started = time.perf_counter()
        importlib.import_module(settings.module).prepare(
            folder,
            seed=settings.seed,
            train_rows=settings.train_rows,
            eval_rows=settings.eval_rows,
        )
        logging.info("data in %s ready after %.1f s", folder, time.perf_counter() - started)
    processes.barrier("data prepared")


def open_rows(data: config.DataConfig) -> dict[str, formats.Source]:
    """The pairs of `data.train` by source, as many of each as are to be used.

    Raises:
      FileNotFoundError: as `open_pairs`.
      ValueError: as `open_pairs`, `heads.heads` and `mined_rows.join`.
    """
    folder = files.as_path(data.folder)
    sources = open_pairs(folder / data.train, data.columns)
    rows = heads.heads(sources, data.first_rows, data.first_rows_by_source)
    if not data.mined:
        return rows
    schema.check_names(data.weights, rows)
    used = {name: len(rows[name]) for name in data.weights or rows}
    joined = mined_rows.join(sources, used, data.mined, folder, data.columns, data.mined_use)
    return {**rows, **joined}


def fingerprint(
    rows: Mapping[str, formats.Source], clusters: BatchClusters | None = None
) -> dict[str, object]:
    """Of a checkpoint's data: rows of each source, what was mined for them, and their clusters."""
    counts: dict[str, object] = {name: len(source) for name, source in rows.items()}
    tables = mined_rows.tables(rows)
    of_clusters = {"clusters of rows": clusters.content} if clusters else {}
    return counts | ({"mined negatives": tables} if tables else {}) | of_clusters


def weights_of(data: config.DataConfig, rows: Mapping[str, formats.Source]) -> dict[str, float]:
    """How often each source is drawn: by the config's weights, by size, or equally."""
    sizes = {name: len(source) for name, source in rows.items()}
    return sampling.weights_of(sizes, data.weights, data.size_temperature)


def make_batches(
    setup: Setup, rows: Mapping[str, formats.Source], clusters: BatchClusters | None = None
) -> Callable[..., grain.DatasetIterator]:
    """A function from the number of the first batch, `first_batch`, to an iterator over batches.

    Raises:
      ValueError: the config's weights, runs of a source or split by modality do not fit the data.
    """
    settings, count = setup.settings, jax.process_count()
    weights = weights_of(settings.data, rows)
    check_mixture(settings, rows, weights)
    _log_passes(settings, sum(len(rows[name]) for name in weights))
    return functools.partial(
        loader.make_loader,
        rows,
        weights,
        batch_size=settings.batch_size,
        source_run=settings.data.source_run,
        seed=settings.seed,
        preprocess=setup.preprocess,
        shapes=setup.shapes,
        workers=settings.data.workers,
        process_index=jax.process_index(),
        process_count=count,
        groups=sampling.query_modalities(rows, weights) if settings.data.split_modalities else None,
        clusters=clusters.order if clusters else None,
        cluster_size=clusters.size if clusters else 0,
    )


def check_mixture(
    settings: config.TrainConfig,
    rows: Mapping[str, formats.Source],
    weights: Mapping[str, float],
) -> None:
    """Raises ValueError as `mixture.mixture` does, for the config's sizes and all processes."""
    data = settings.data
    mixture.check(
        rows, weights, settings.batch_size, data.source_run, jax.process_count(), data.cluster_size
    )


def _log_passes(settings: config.TrainConfig, rows: int) -> None:
    """Logs how often the run sees its data, and that a batch repeats rows if there are so few."""
    steps, size = settings.steps, settings.batch_size
    passes = steps * size / rows
    logging.info("%d steps of %d pairs: %.3g passes over %d rows", steps, size, passes, rows)
    if size > rows:
        logging.warning(
            "config.batch_size=%d is more than the %d rows that there are: every batch repeats "
            "them, and a query has %d negatives of other rows at most",
            size,
            rows,
            rows - 1,
        )
