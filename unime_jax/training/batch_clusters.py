"""Clusters of a run's rows: computed once, kept in its work directory, and measured.

clusters.npy   int32 [rows], source after source: `clusters.partition`
clusters.json  what they were made of, a hash of them, and how much harder they make batches
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Int32

from unime_jax import config, files
from unime_jax.data import clusters, mined_rows
from unime_jax.data.embedding_store import Embeddings, open_embeddings
from unime_jax.data.formats import Source
from unime_jax.data.mined_rows import MinedRows
from unime_jax.data.mixture import source_seed
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import to_example
from unime_jax.operations import processes

RECORD, ARRAY = "clusters.json", "clusters.npy"
SAMPLE = 256  # rows whose similarities are measured, over all sources


@dataclasses.dataclass(frozen=True)
class BatchClusters:
    """Clusters of every source.

    Attributes:
      order: by source, int32 [rows]: `size` rows in a row are a cluster.
      content: a hash of all of it.
    """

    size: int
    order: Mapping[str, Int32[np.ndarray, " rows"]]
    content: str


def open_clusters(
    settings: config.TrainConfig, rows: Mapping[str, Source], workdir: files.Path
) -> BatchClusters | None:
    """The clusters of a run, which process 0 computes where the work directory has none.

    Args:
      rows: the training data by source; those that are used are `MinedRows`.

    Returns:
      None: `data.cluster_size` is 0.

    Raises:
      ValueError: as `check`.
    """
    size = settings.data.cluster_size
    if not size:
        return None
    used = mined_sources(rows)
    made_of = _made_of(settings, used)
    if jax.process_index() == 0 and _read(workdir, made_of) is None:
        _write(settings, used, workdir, made_of)
    processes.barrier("clusters of rows")
    content = _read(workdir, made_of)
    if content is None:
        raise ValueError(
            f"{workdir / RECORD} is not what process 0 has written: the work directory must be one"
            " folder that all processes see"
        )
    logging.info("%s", _summary(size, files.read_object(workdir / RECORD)))
    array = _load(workdir)
    ends = np.cumsum([len(source) for source in used.values()])[:-1]
    order = dict(zip(used, np.split(array, ends), strict=True))
    return BatchClusters(size, order, content)


def check(rows: Mapping[str, Source]) -> None:
    """Raises ValueError where mined tables do not say whose positives their candidates are."""
    for name, source in mined_sources(rows).items():
        source.mined.positives(name)


def mined_sources(rows: Mapping[str, Source]) -> dict[str, MinedRows]:
    """The sources that were joined with mined negatives, by name in order."""
    ordered = [(name, rows[name]) for name in sorted(rows)]
    return {name: source for name, source in ordered if isinstance(source, MinedRows)}


def _made_of(settings: config.TrainConfig, used: Mapping[str, MinedRows]) -> dict[str, Any]:
    return {
        "cluster_size": settings.data.cluster_size,
        "cluster_ranks": list(settings.data.cluster_ranks),
        "seed": settings.seed,
        "mined": sorted(mined_rows.tables(used)),
        "rows": {name: len(source) for name, source in used.items()},
    }


def _read(workdir: files.Path, made_of: Mapping[str, Any]) -> str | None:
    """The hash of what is there; None: nothing, something else, or half of it."""
    try:
        record = files.read_object(workdir / RECORD)
        content = _hash(_load(workdir))
    except (OSError, ValueError, EOFError):
        return None
    whole = record.get("content") == content and record.get("made_of") == made_of
    return content if whole else None


def _load(workdir: files.Path) -> np.ndarray:
    return np.load(io.BytesIO((workdir / ARRAY).read_bytes()), allow_pickle=False)


def _hash(array: np.ndarray) -> str:
    return hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()


def _write(
    settings: config.TrainConfig,
    used: Mapping[str, MinedRows],
    workdir: files.Path,
    made_of: Mapping[str, Any],
) -> None:
    """Computes and measures the clusters, and leaves both files, the record last."""
    size, ranks = settings.data.cluster_size, settings.data.cluster_ranks
    orders, measures = [], {}
    vectors = _vectors(settings.data.mined)
    for name, source in used.items():
        seed, mined = source_seed(settings.seed, name), source.mined
        logging.info("clusters of %d rows of the %d of source %s", size, len(source), name)
        edges = clusters.neighbours(mined, name, len(source), ranks, seed)
        positive = np.asarray(mined.positives(name)[: len(source)])
        order = clusters.partition(edges, positive, size, seed)
        inside, by_chance = clusters.share_inside(edges, order, size)
        measures[name] = {"neighbours": inside, "neighbours_by_chance": by_chance}
        if vectors is not None:
            sample = max(1, SAMPLE // len(used))
            measures[name] |= _similarities(source, order, size, sample, seed, vectors)
        orders.append(order)
    if not any(measure["neighbours"] for measure in measures.values()):
        raise ValueError(
            f"config.data.cluster_size={size}, but of the candidates {ranks[0]} to {ranks[1]} in "
            f"config.data.mined={settings.data.mined!r} none is the positive of a row of the same "
            "source, as where a corpus named apart was mined. Mine the rows' own positives "
            "(config.data.corpus='' and config.search.pool='source' there), widen "
            "config.data.cluster_ranks, or set config.data.cluster_size to 0."
        )
    array = np.concatenate(orders)
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    files.write_whole(workdir / ARRAY, content.getbuffer())
    record = {"made_of": made_of, "content": _hash(array), "measured": measures}
    files.write_whole(workdir / RECORD, json.dumps(record, indent=2) + "\n")


def _vectors(workdir: str) -> tuple[Embeddings, Embeddings] | None:
    """Those of queries and candidates that the table was mined with; None: not here."""
    folder = files.as_path(workdir)
    if files.is_remote(folder):  # they would all be copied for a sample
        return None
    try:
        return open_embeddings(folder / "queries"), open_embeddings(folder / "candidates")
    except (OSError, ValueError):  # removed, or not taken along with the table
        return None


def _similarities(
    source: MinedRows,
    order: np.ndarray,
    size: int,
    sample: int,
    seed: int,
    vectors: tuple[Embeddings, Embeddings],
) -> dict[str, float]:
    """Mean cosine of queries with the other targets of their cluster, and of as many random rows'.

    {} where none of the sampled rows has other rows to be compared with.
    """
    queries, candidates = vectors
    rng = np.random.default_rng(seed)
    positive = source.mined.positives(source.name)
    inside: list[float] = []
    random: list[float] = []
    for place in rng.permutation(len(order))[:sample].tolist():
        row, start = int(order[place]), place - place % size
        try:
            example = to_example(source.name, source[row], str(row), draw=lambda count: ())
            query = queries.vector_of(example.query)
        except (BadExample, KeyError):  # which training or mining left out
            continue
        others = order[start : start + size]
        drawn = order[rng.integers(len(order), size=len(others))]
        for rows, mean in ((others, inside), (drawn, random)):
            number = positive[rows[rows != row]]
            number = number[(number >= 0) & (number != positive[row])]
            known = candidates.rows_of(source.mined.ids[number])
            known = known[known >= 0]
            if len(known):
                mean.append(float((candidates.at(known) @ query).mean()))
    if not inside or not random:
        return {}
    return {"similarity": float(np.mean(inside)), "similarity_by_chance": float(np.mean(random))}


def _summary(size: int, record: Mapping[str, Any]) -> str:
    """Lines that say how hard the clusters are."""
    lines = [
        f"clusters of {size} rows (a row's mined candidates among the targets of its cluster; "
        "cosine of its query with these targets; both beside random rows):"
    ]
    for name, measured in record["measured"].items():
        line = f"  {name}: {measured['neighbours']:.3g}, {measured['neighbours_by_chance']:.3g}"
        if "similarity" in measured:
            line += f"; {measured['similarity']:.3f}, {measured['similarity_by_chance']:.3f}"
        lines.append(line)
    return "\n".join(lines)
