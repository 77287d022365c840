"""Choice of buckets by the data: a few shapes that hold a sample of rows with little padding."""

import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from jaxtyping import Int

from unime_jax.batch import Item
from unime_jax.data.ahead import THREADS, map_ahead
from unime_jax.data.formats import Source
from unime_jax.data.packing import Preprocess
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import check_names, to_example
from unime_jax.data.settings import Bucket

ITEMS = 512  # that are measured, negatives aside
MARGIN = 1.25  # of the largest bucket over the longest row that was seen
CANDIDATES = 16  # lengths of texts, and of rows with images, that are tried
LEAST_GAIN = 1.1  # a bucket more is compiled, so it must save so much work


def measured(
    rows: Mapping[str, Source],
    sources: Iterable[str],
    preprocess: Preprocess,
    *,
    negatives: int,
    seed: int,
) -> Int[np.ndarray, "n 2"]:
    """Tokens and tiles of the items of a sample of rows, drawn from each source alike.

    They follow from the data and `seed` alone. What training would leave out is left out here, too.

    Args:
      negatives: explicit negatives of an example that are looked at, at most.

    Raises:
      ValueError: there is no such source, or none of the rows can be used.
    """
    names = sorted(sources)
    check_names(names, rows)
    each = math.ceil(ITEMS / (2 * len(names)))
    picks = [(name, row) for name in names for row in _sample(name, len(rows[name]), each, seed)]

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

    sizes: list[tuple[int, int]] = []
    reasons: list[str] = []
    for result in map_ahead(measure, picks, ahead=2 * THREADS):
        if isinstance(result, str):
            reasons.append(result)
        else:
            sizes += result
    if not sizes:
        raise ValueError(
            f"config.data.train: none of the {len(picks)} rows whose lengths were to be measured "
            f"can be used. The first: {reasons[0]}"
        )
    return np.array(sizes)


def chosen(sizes: Int[np.ndarray, "n 2"], *, patches: int, limit: int) -> tuple[Bucket, ...]:
    """Up to two buckets for texts, one for images, and the largest, for rows of such sizes.

    The largest has room for rows that are a quarter longer than any of these, up to `limit` tokens.
    For the others, those of the rows' lengths are chosen that leave the least work, which is
    counted in tokens and patches, padding included; none where it would save little.

    Args:
      patches: of a tile.
      limit: the most tokens of a row.
    """
    tokens, tiles = sizes[:, 0], sizes[:, 1]
    last = Bucket(_rounded(MARGIN * tokens.max(), limit), _most_tiles(tiles))
    texts = [Bucket(length, 0) for length in _candidates(tokens[tiles == 0], limit)]
    pictured = [
        Bucket(length, int(tiles[tokens <= length].max()))
        for length in _candidates(tokens[tiles > 0], limit)
    ]

    def work(buckets: tuple[Bucket, ...]) -> float:
        shapes = np.array([(bucket.tokens, bucket.tiles) for bucket in buckets])
        fits = (tokens[:, None] <= shapes[:, 0]) & (tiles[:, None] <= shapes[:, 1])
        taken = shapes[np.argmax(fits, axis=1)]  # the first, as when a batch is packed
        return float(taken.sum(axis=0) @ (1, patches)) * LEAST_GAIN ** len(buckets)

    choices = (
        (*_below(last, *few, *one), last)
        for few in _subsets(texts, 2)
        for one in _subsets(pictured, 1)
    )
    return min(dict.fromkeys(choices), key=work)


def _sample(name: str, count: int, size: int, seed: int) -> list[int]:
    """Numbers of so many different rows of a source, or of all; they follow from name and seed."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.choice(count, min(size, count), replace=False).tolist()


def _size(preprocess: Preprocess, item: Item) -> tuple[int, int]:
    row = preprocess(item)
    return len(row.tokens), 0 if row.patches is None else len(row.patches)


def _rounded(length: float, limit: int) -> int:
    """The length, rounded up by an eighth at most, or to a multiple of 8."""
    power = 1 << (math.ceil(length) - 1).bit_length()
    step = max(8, power // 8)
    return min(limit, step * math.ceil(length / step))


def _most_tiles(tiles: Int[np.ndarray, " n"]) -> int:
    """The most tiles of a row; a quarter more where rows with images differ in them."""
    most = int(tiles.max())
    differ = most > 0 and int(tiles[tiles > 0].min()) < most
    return math.ceil(MARGIN * most) if differ else most


def _candidates(lengths: Int[np.ndarray, " n"], limit: int) -> list[int]:
    """At most `CANDIDATES` lengths for buckets: quantiles, the longest among them."""
    if not len(lengths):
        return []
    quantiles = np.quantile(lengths, np.linspace(0, 1, CANDIDATES + 1)[1:], method="higher")
    return sorted({_rounded(length, limit) for length in quantiles.tolist()})


def _subsets(buckets: list[Bucket], most: int) -> Iterator[tuple[Bucket, ...]]:
    for size in range(most + 1):
        yield from itertools.combinations(buckets, size)


def _below(last: Bucket, *buckets: Bucket) -> list[Bucket]:
    """The others, in order."""
    sizes = {(bucket.tokens, bucket.tiles) for bucket in buckets} - {(last.tokens, last.tiles)}
    return [Bucket(tokens, tiles) for tokens, tiles in sorted(sizes)]
