"""Retrieval sets on disk: a data set of pairs, or folders in BEIR's layout."""

from collections.abc import Mapping

from unime_jax import files
from unime_jax.data.formats import Source, open_dataset
from unime_jax.data.pairs import open_pairs
from unime_jax.evaluation.retrieval.data import Judged, Pairs, RetrievalData

SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv")  # of queries, corpus and qrels
HELD_OUT = "test"  # of several files of qrels


def open_sets(path: files.Path, columns: Mapping[str, str]) -> list[RetrievalData]:
    """The sets of a path, of which no row of pairs is read yet.

    A folder with queries, corpus and qrels is one set, and a folder of such folders is a set each,
    by their names. Everything else is pairs, each source of `open_pairs` a set.

    Args:
      columns: of pairs, see `open_pairs`.

    Raises:
      FileNotFoundError: there is no data, or a part of it is missing.
      ValueError: there are two files of one part, or columns in which no pair is recognised.
    """
    if _is_judged(path):
        return [_open_judged(path)]
    folders = sorted(path.iterdir()) if path.is_dir() else []
    if judged := [folder for folder in folders if folder.is_dir() and _is_judged(folder)]:
        return [_open_judged(folder) for folder in judged]
    folder = path if path.is_dir() else path.parent
    return [Pairs(name, rows, folder) for name, rows in open_pairs(path, columns).items()]


def _is_judged(folder: files.Path) -> bool:
    return any((folder / f"queries{suffix}").exists() for suffix in SUFFIXES)


def _open_judged(folder: files.Path) -> Judged:
    queries, corpus = (_rows(_file(folder, part)) for part in ("queries", "corpus"))
    qrels = folder / "qrels"
    file = _file(qrels, HELD_OUT) if qrels.is_dir() else _file(folder, "qrels")
    return Judged(folder.name, queries, corpus, _rows(file), folder)


def _rows(file: files.Path) -> Source:
    """The rows of a file as they are, by column."""
    (rows,) = open_dataset(file).values()
    return rows


def _file(folder: files.Path, part: str) -> files.Path:
    """The file of one part, whatever its format."""
    known = [folder / f"{part}{suffix}" for suffix in SUFFIXES]
    there = [file for file in known if file.exists()]
    if not there:
        raise FileNotFoundError(
            f"{folder} has no {part}: one of {', '.join(file.name for file in known)} is expected"
        )
    if len(there) > 1:
        raise ValueError(f"{folder} has {' and '.join(f.name for f in there)}: remove all but one")
    return there[0]
