"""Which row comes next: a deterministic mixture of sources, as a function of the index only.

It deals in row numbers, not rows, so any process can find any example of any batch at no cost.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from unime_jax.data.cluster_order import ClusterOrder
from unime_jax.data.formats import Source
from unime_jax.data.schema import check_names

ENDLESS = 1 << 48  # examples; more than anybody trains on, and index arithmetic stays exact


class Pick(NamedTuple):
    """A row of a source."""

    source: str
    row: int
    epoch: int = 0  # passes over the source before this one


def mixture(
    sources: Mapping[str, Source],
    weights: Mapping[str, float],
    *,
    batch_size: int,
    source_run: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    first_batch: int = 0,
    groups: Mapping[str, str] | None = None,
    clusters: Mapping[str, np.ndarray] | None = None,
    cluster_size: int = 0,
) -> grain.MapDataset:
    """Endless picks for one process; every batch_size / process_count of them are a batch.

    Each source is shuffled anew every epoch and cut into runs of `source_run` rows; the runs are
    mixed evenly in proportion to the weights, to within 1 % (VLM2Vec-V2's sub-batches, arXiv
    2507.04590 section 3.4). 0: every example is drawn on its own; batch_size: one source a batch.
    The sources used are those of `weights`.

    With `groups`, the name of a group by source, all of a batch is of one group: batches are dealt
    to groups evenly in proportion to the weights of their sources, and mixed within.

    With `clusters`, the order of each source's rows by `clusters.partition`, each source's clusters
    are shuffled anew every epoch and stay whole, see `ClusterOrder`; then runs have whole clusters,
    or are one each.

    The global order does not depend on the processes: process p takes the p-th equal part of each
    global batch. `first_batch` global batches are left out at the beginning, at no cost.

    Raises ValueError for unknown or empty sources, weights that are not positive, and sizes that
    do not divide.
    """
    check(sources, weights, batch_size, source_run, process_count, cluster_size)
    names = sorted(weights)
    counts = {name: len(sources[name]) for name in names}
    run = max(source_run, cluster_size, 1)
    rows: dict[str, Any] = {
        name: ClusterOrder(clusters[name], cluster_size, source_seed(seed, name))
        if clusters
        else grain.MapDataset.range(counts[name]).shuffle(seed=source_seed(seed, name)).repeat()
        for name in names
    }
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(groups[name] if groups else "", []).append(name)
    runs = {
        group: _mixed({name: weights[name] for name in of_group})
        for group, of_group in members.items()
    }
    batches = _mixed({group: sum(weights[name] for name in members[group]) for group in members})
    local = batch_size // process_count

    def pick(position: int) -> Pick:
        batch, offset = divmod(position, local)
        group, number = batches[first_batch + batch]
        example = number * batch_size + process_index * local + offset
        name, number = runs[group][example // run]
        place = number * run + example % run
        return Pick(name, int(rows[name][place]), place // counts[name])

    return grain.MapDataset.range(ENDLESS // process_count).map(pick)


def _mixed(weights: Mapping[str, float]) -> grain.MapDataset:
    """Names in proportion to their weights, each with how often it has come before."""
    return grain.MapDataset.mix(
        [grain.MapDataset.range(ENDLESS).map(_numbered(name)) for name in weights],
        list(weights.values()),
    )


def _numbered(name: str):
    return lambda number: (name, number)


def source_seed(seed: int, name: str) -> int:
    """Sources of equal length must not share a permutation, nor depend on each other's presence."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def check(
    sources: Mapping[str, Source],
    weights: Mapping[str, float],
    batch_size: int,
    source_run: int,
    process_count: int,
    cluster_size: int = 0,
) -> None:
    """Raises ValueError as `mixture` does."""
    if not weights:
        raise ValueError("no sources: weights is empty")
    check_names(weights, sources)
    for name, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight of source {name!r} is {weight}; it must be positive")
        if not len(sources[name]):
            raise ValueError(f"source {name!r} is empty")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"a batch of {batch_size} pairs cannot be shared by {process_count} processes: make "
            "batch_size a multiple of the process count"
        )
    if source_run < 0 or (source_run and batch_size % source_run):
        raise ValueError(
            f"source_run = {source_run} must divide batch_size = {batch_size} (or be 0: every "
            "example drawn on its own)"
        )
    if cluster_size and (batch_size % cluster_size or source_run % cluster_size):
        raise ValueError(
            f"cluster_size = {cluster_size} must divide batch_size = {batch_size} and source_run ="
            f" {source_run} (or be 0: rows are drawn without clusters)"
        )
