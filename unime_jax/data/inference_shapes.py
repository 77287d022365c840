"""Shape buckets for inference, bounding compilations and padding.

Each shape compiles once. Lengths are rounded up to a ladder of rungs, of texts and of items with
images apart, so that texts keep the vision tower out. The tiles of an image rung follow from its
tokens: as many as a row of that length has. For one batch size a corpus compiles at most
`TEXT_RUNGS + IMAGE_RUNGS` programs, whatever it mixes.
"""

import dataclasses
import functools
import math

from unime_jax.data.inference_batches import Shapes
from unime_jax.data.shapes import BatchShapes, Bucket, Layout

CHUNK_TOKENS = 4096  # of a device at once: keeps it busy, and attention scores small
LEAST_TOKENS = 32  # of a compiled shape of texts
LEAST_TILE_TOKENS = 64  # of one with images
LEAST_IMAGE_TOKENS = 256  # of one with images, where rows may be 16 times as long
TEXT_RUNGS, IMAGE_RUNGS = 8, 5
TEXT_GROWTH, IMAGE_GROWTH = 2.0, math.sqrt(2)  # from rung to rung, at least
MULTIPLE = 64  # of a rung's tokens, but for the last, and for texts of fewer
# Tiles of a rung of a family that leaves tiles partly out, as a multiple of what its tokens fill.
UNPADDED_TILES = 1.5


@dataclasses.dataclass(frozen=True)
class Ladder:
    """The shapes of a batch of about so many rows, see `inference_batches.Shapes`."""

    layout: Layout
    shards: int
    rows: int
    max_length: int

    def __call__(self, tokens: int, tiles: int, clips: bool = False) -> BatchShapes:
        layout = self.layout.with_clips() if clips else self.layout
        bucket = bucket_of(tokens, tiles, layout, self.max_length)
        return plan_of(bucket, layout, self.shards, self.rows)


def shapes_of(layout: Layout, *, shards: int, batch_size: int, max_length: int) -> Shapes:
    """A function from a row's size to the shapes of its batch."""

    @functools.cache
    def batch_shapes(bucket: Bucket, clips: bool) -> BatchShapes:
        return plan_of(bucket, layout.with_clips() if clips else layout, shards, batch_size)

    def by_size(tokens: int, tiles: int, clips: bool = False) -> BatchShapes:
        own = layout.with_clips() if clips else layout
        return batch_shapes(bucket_of(tokens, tiles, own, max_length), clips)

    return by_size


def plan_of(bucket: Bucket, layout: Layout, shards: int, batch_size: int) -> BatchShapes:
    """At least `batch_size` rows, in chunks of `CHUNK_TOKENS` a device.

    Of towers of their own, patches count, too. Chunks without rows are not computed, so a part of
    a batch costs a part of its time.
    """
    most = math.ceil(batch_size / shards)
    tokens = bucket.tokens + (bucket.tiles * layout.patches if layout.separate else 0)
    if layout.segments and layout.table:
        tokens = max(tokens, bucket.tiles * layout.table[1])
    chunk = shards * min(most, max(1, CHUNK_TOKENS // tokens))
    return BatchShapes((bucket,), layout, chunk, chunk * math.ceil(batch_size / chunk))


def bucket_of(tokens: int, tiles: int, layout: Layout, max_length: int) -> Bucket:
    """The compiled shape of a row: the smallest rung that it fits.

    A row with more tiles than the longest rung has gets twice as many tiles, or four times, and so
    on: no row is refused for its tiles. Of rows of several segments, which may be long for their
    texts alone, and of rows with clips whose frames have few tokens each, tiles have rungs of their
    own, the powers of two: more programs, less padding.
    """
    ladder = image_rungs(layout, max_length) if tiles else text_rungs(layout, max_length)
    if tiles and (layout.segments or layout.clips and layout.frame_tokens):
        rungs = (bucket.tokens for bucket in ladder if tokens <= bucket.tokens)
        return Bucket(next(rungs, max_length), power_of_two(tiles))
    for bucket in ladder:
        if tokens <= bucket.tokens and tiles <= bucket.tiles:
            return bucket
    longest = ladder[-1]
    return Bucket(max_length, longest.tiles * power_of_two(-(-tiles // max(longest.tiles, 1))))


@functools.cache
def text_rungs(layout: Layout, max_length: int) -> tuple[Bucket, ...]:
    """Buckets without tiles; a row is less than half padding up to 4096 tokens.

    Longer rows are on a ladder with wider steps, but where there are no images beside them.
    """
    most = TEXT_RUNGS if layout.patches else TEXT_RUNGS + IMAGE_RUNGS
    return tuple(Bucket(n, 0) for n in _ladder(LEAST_TOKENS, max_length, most, TEXT_GROWTH))


@functools.cache
def image_rungs(layout: Layout, max_length: int) -> tuple[Bucket, ...]:
    """Buckets with tiles, from the tokens of one whole tile on.

    A family whose images fill their tiles cannot have more tiles than tokens fill. One that leaves
    out what is padding has more: the usual ones fit, those of very long and narrow images are on a
    higher rung. Where tiles take no tokens, rows have one tile, and no tokens or any number.
    """
    if layout.separate:
        return Bucket(0, 1), Bucket(max_length, 1)
    _, per_tile = layout.table or (0, 1)
    least = min(LEAST_IMAGE_TOKENS, max_length // 16)
    least = max(LEAST_TILE_TOKENS, least, power_of_two(per_tile))
    rungs = _ladder(least, max_length, IMAGE_RUNGS - layout.unpadded, IMAGE_GROWTH)
    slack = UNPADDED_TILES if layout.unpadded else 1
    return tuple(Bucket(n, math.ceil(slack * n / per_tile)) for n in rungs)


def clip_rungs(layout: Layout, max_length: int) -> tuple[Bucket, ...]:
    """Buckets of rows that are a clip and few words: `bucket_of` has others for more words."""
    layout = layout.with_clips()
    ladder = image_rungs(layout, max_length)
    if not layout.frame_tokens:
        return ladder
    rungs, below = [], 0
    for bucket in ladder:
        least, most = below // layout.frame_tokens, bucket.tokens // layout.frame_tokens
        tiles = {power_of_two(n) for n in range(max(least, 1), most + 1)}
        rungs += [Bucket(bucket.tokens, n) for n in sorted(tiles)]
        below = bucket.tokens
    return tuple(rungs)


def power_of_two(n: int) -> int:
    """The least that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def _ladder(least: int, most: int, rungs: int, growth: float) -> list[int]:
    """At most so many lengths from `least` to `most`, each `growth` times the last, or more."""
    if most <= least:
        return [most]
    growth = max(growth, (most / least) ** (1 / (rungs - 1)))
    steps = math.ceil(math.log(most / least, growth) - 1e-9)
    multiple = min(least, MULTIPLE)
    lengths = {multiple * math.ceil(least * growth**n / multiple - 1e-9) for n in range(steps)}
    return [*sorted(n for n in lengths if n < most), most]
