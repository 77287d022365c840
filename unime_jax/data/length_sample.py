"""Lengths of a sample of training rows, in tokens and tiles, which buckets are chosen by."""

import csv
import io
import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from unime_jax import files
from unime_jax.batch import Item
from unime_jax.data.ahead import THREADS, map_ahead
from unime_jax.data.formats import Source
from unime_jax.data.packing import Preprocess
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import check_names, to_example

ITEMS = 512  # that are measured, negatives aside
COLUMNS = ("pair", "tokens", "tiles")  # of a file of lengths


class Sample(NamedTuple):
    """Tokens and tiles of rows, and the example of each, from 0 on."""

    sizes: Int[np.ndarray, "n 2"]
    example: Int[np.ndarray, " n"]


def measured(
    rows: Mapping[str, Source],
    weights: Mapping[str, float],
    preprocess: Preprocess,
    *,
    negatives: int,
    seed: int,
) -> Sample:
    """Sizes of the items of a sample of rows, drawn from each source by its weight.

    They follow from data, weights and `seed` alone. What training would leave out is left out
    here, too.

    Args:
      weights: how often each source is drawn.
      negatives: explicit negatives of an example that are looked at, at most.

    Raises:
      ValueError: there is no such source, or none of the rows can be used.
    """
    names, total = sorted(weights), sum(weights.values())
    check_names(names, rows)
    each = {name: math.ceil(ITEMS / 2 * weights[name] / total) for name in names}
    picks = [(n, row) for n in names for row in sample_rows(n, len(rows[n]), each[n], seed)]

    def measure(pick: tuple[str, int]) -> list[tuple[int, int]] | str:
        name, row = pick
        try:
            example = to_example(name, rows[name][row], str(row))
            items = (example.query, example.positive, *example.negatives[:negatives])
            return [_size(preprocess, item) for item in items]
        except BadExample as error:
            return error.item.reason
        except ValueError as error:
            return str(error)

    sizes: list[list[tuple[int, int]]] = []
    reasons: list[str] = []
    for result in map_ahead(measure, picks, ahead=2 * THREADS):
        if isinstance(result, str):
            reasons.append(result)
        else:
            sizes.append(result)
    if not sizes:
        raise ValueError(
            f"config.data.train: none of the {len(picks)} rows whose lengths were to be measured "
            f"can be used. The first: {reasons[0]}"
        )
    counts = [len(items) for items in sizes]
    return Sample(np.concatenate(sizes), np.repeat(np.arange(len(sizes)), counts))


def read(file: str) -> Sample:
    """A sample out of a CSV file with a line for each item: its pair, tokens and tiles.

    Raises:
      ValueError: there is no such file, or it does not hold such lines; the message says which.
    """
    try:
        lines = list(csv.reader(io.StringIO(files.as_path(file).read_text())))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"there is no file of lengths {file!r}") from error
    if not lines or tuple(lines[0]) != COLUMNS or len(lines) < 2:
        raise ValueError(
            f"{file}: a file of lengths is CSV, its first line {','.join(COLUMNS)}, then a line "
            "for each query, positive and negative"
        )
    values = []
    for number, line in enumerate(lines[1:], 2):
        try:
            pair, tokens, tiles = map(int, line)
        except ValueError as error:
            raise ValueError(f"{file}: line {number} is not three whole numbers: {line}") from error
        if min(pair, tokens, tiles) < 0 or not tokens + tiles:
            raise ValueError(f"{file}: line {number} is no item of a pair: {line}")
        values.append((pair, tokens, tiles))
    table = np.array(values)
    pairs, example = np.unique(table[:, 0], return_inverse=True)
    return Sample(table[:, 1:], example.reshape(-1))


def sample_rows(name: str, count: int, size: int, seed: int) -> list[int]:
    """Numbers of so many different rows of a source, or of all; they follow from name and seed."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.choice(count, min(size, count), replace=False).tolist()


def _size(preprocess: Preprocess, item: Item) -> tuple[int, int]:
    row = preprocess(item)
    return len(row.tokens), 0 if row.patches is None else len(row.patches)
