"""A look at prepared sets without a network: numbers of rows, and whether all media are there."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipelines.benchmarks.prepare import SET, check_counts
from data_pipelines.benchmarks.public_set import PublicSet
from data_pipelines.benchmarks.raw_paths import below
from unime_jax import files
from unime_jax.data.formats import Source, open_dataset
from unime_jax.data.formats.parquet import ParquetRows
from unime_jax.data.formats.rows import Shards

NAMED = 3  # missing images that an error names
SPLIT = "/test"  # of the hub's parquet files: `<subset>/test`


def check(public: PublicSet, own: Path) -> None:
    """Compares a prepared set with the catalogue and with itself.

    Raises:
      FileNotFoundError: it is not prepared, or images are missing.
      ValueError: numbers of rows differ, or set.json is damaged.
    """
    try:
        content = files.read_object(own / SET)
        rows, images, counts = content["rows"], own / content["images"], content["counts"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{public.name} is not prepared in {own.parent}") from error
    except KeyError as error:
        raise ValueError(f"{own / SET} has no {error}; remove it, and prepare it again") from error
    check_counts(public, counts)
    sources = {
        name.removesuffix(SPLIT): source for name, source in open_dataset(own / rows).items()
    }
    there = {name: len(source) for name, source in sources.items()}
    if there != counts:
        raise ValueError(
            f"{public.name}: {own / rows} has {there} rows, and {SET} says {counts}; remove "
            f"{own / SET}, and prepare it again"
        )
    missing: dict[str, None] = {}
    with tqdm(
        total=sum(there.values()),
        desc=public.name,
        unit="row",
        disable=not sys.stderr.isatty(),
    ) as bar:
        for source in sources.values():
            missing |= _missing(source, images, bar)
    if missing:
        raise FileNotFoundError(
            f"{public.name}: {len(missing)} images are missing in {images}, such as "
            f"{', '.join(list(missing)[:NAMED])}"
        )


def _missing(source: Source, folder: Path, bar: tqdm) -> dict[str, None]:
    """Paths of images that rows name and that are not there, in order."""
    looked_at: dict[str, bool] = {}
    columns = _path_columns(source)
    if not columns:
        bar.update(len(source))
        return {}
    narrow = source.only(columns) if isinstance(source, ParquetRows | Shards) else source
    for number in range(len(narrow)):
        for path in _paths(narrow[number], columns):
            if path not in looked_at:
                looked_at[path] = below(folder, path).exists()
        bar.update()
    return {path: None for path, is_there in looked_at.items() if not is_there}


def _path_columns(source: Source) -> list[str]:
    """Columns with paths of images: by their names, unless they hold the content itself."""
    if not len(source):
        return []
    return [
        name
        for name, cell in source[0].items()
        if any(word in name for word in ("image", "img", "video"))
        and not isinstance(cell, Mapping | bytes)
    ]


def _paths(row: Mapping[str, Any], columns: list[str]) -> Iterator[str]:
    for name in columns:
        cell = row.get(name)
        for path in [cell] if isinstance(cell, str) else cell or []:
            if isinstance(path, str) and path:
                yield path
