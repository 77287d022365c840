"""Tables of annotations in a raw folder: CSV, parquet, JSON lines, or a JSON list of objects."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unime_jax.data.formats import open_dataset


def first_file(raw: Path, globs: Sequence[str]) -> Path:
    """The only file of the first glob that matches any.

    Raises:
      FileNotFoundError: none matches.
      ValueError: several files match one.
    """
    for pattern in globs:
        matching = sorted(raw.glob(pattern))
        if len(matching) > 1:
            raise ValueError(f"{raw} has {', '.join(p.name for p in matching)}: leave one of them")
        if matching:
            return matching[0]
    raise FileNotFoundError(f"{raw} has no annotations: {' or '.join(globs)} is expected")


def rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each row of a table stands, for errors, and the row.

    Raises:
      ValueError: it is damaged, or a JSON file is no list of objects.
    """
    if file.suffix == ".json":
        try:
            listed = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON: {error}") from error
        if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
            raise ValueError(f"{file} is no list of objects")
        yield from ((f"{file}, row {number}", row) for number, row in enumerate(listed))
        return
    (source,) = open_dataset(file).values()
    for number in range(len(source)):
        yield f"{file}, row {number}", source[number]
