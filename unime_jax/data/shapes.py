"""Shapes of a batch: buckets, the form of their rows, and how many there are."""

import dataclasses
import math
from collections.abc import Sequence

from unime_jax.data.settings import Bucket


@dataclasses.dataclass(frozen=True)
class Layout:
    """The form of the rows of a model family; 0 patches: no images.

    `vocabulary`, `learned_positions` and `table` bound the numbers that rows look up on a device,
    where one beyond the end reads NaN; None: there is no bound. A row of n tiles has
    `table[0]` + n * `table[1]` vectors for its image tokens to choose from.

    A patch of a clip may span several `frames`, and its tokens blend more of the table's rows. Rows
    of images have bytes of one frame and their own S, unless `clips` may be among them: then all of
    a batch have as many as a clip's.
    """

    axes: int = 1  # A
    slots: int = 1  # S of images
    blended: bool = False  # rows have slot_weight
    patches: int = 0  # P
    patch_bytes: int = 0  # F of an image
    frames: int = 1  # that a clip's patch spans
    clips: bool = False  # rows may have clips
    clip_slots: int = 0  # S where they may, and rows have slot_weight; 0: as of images
    # of a frame of a clip, at least, where they are fewer than those of an image's tile; 0: as many
    frame_tokens: int = 0
    positioned: bool = False  # rows have patch_position
    pooled: bool = False  # rows have pool_start
    teacher: int = 0  # width of a row's teacher embedding
    vocabulary: int | None = None
    learned_positions: int | None = None
    table: tuple[int, int] | None = None
    unpadded: bool = False  # tokens of an image leave out what is padding in its tiles
    separate: bool = False  # texts and images have towers of their own: tiles take no tokens
    segments: int = 0  # sequences that a row has room for beside the prefix they share; 0: one only

    @property
    def features(self) -> int:
        """F of a batch."""
        return self.patch_bytes * (self.frames if self.clips else 1)

    @property
    def blend(self) -> int:
        """S of a batch."""
        return self.clip_slots if self.clips and self.clip_slots else self.slots

    @property
    def weighted(self) -> bool:
        """Whether a batch has weights of slots."""
        return self.blended or self.blend > self.slots

    @property
    def takes_clips(self) -> bool:
        """Whether rows of the family can have clips at all."""
        return self.frames > 1 or self.frame_tokens > 0

    def with_clips(self) -> "Layout":
        """The layout of the family's rows where some may have clips."""
        return dataclasses.replace(self, clips=bool(self.patches))

    def without_images(self) -> "Layout":
        """The layout of the family's rows where no model part reads images."""
        return dataclasses.replace(
            self, patches=0, patch_bytes=0, frames=1, clips=False, positioned=False
        )


@dataclasses.dataclass(frozen=True)
class BatchShapes:
    """Everything the shapes of a batch follow from. Sizes are of the whole batch, all processes.

    Buckets go from small to large; the last holds every row that is let in, so it has room for
    all `rows`. `chunk_size` rows of it are encoded at once; a smaller bucket takes as many times
    more as it fits into the largest, by tokens and by tiles, so that every chunk costs about the
    same memory. `Bucket.rows` makes its chunks smaller, and less of its last one padding.

    `shards`: what divides the rows of every chunk, as devices and processes each have a part.
    """

    buckets: tuple[Bucket, ...]
    layout: Layout
    chunk_size: int
    rows: int
    negatives: int = 0  # H
    scored: bool = False  # a batch has a judge's scores of candidates, and every row must have them
    graded: tuple[str, ...] = ()  # sources of graded pairs, whose rows must have a grade
    shards: int = 1

    def __post_init__(self):
        if not self.buckets or self.chunk_size < 1 or self.rows < 1:
            raise ValueError(f"a batch needs buckets, chunk_size and rows of at least 1: {self}")
        largest = self.buckets[-1]
        sizes = [(bucket.tokens, bucket.tiles) for bucket in self.buckets if bucket.texts == 1]
        packed = [bucket for bucket in self.buckets if bucket.texts != 1]
        if any(bucket.texts < 1 or bucket.tiles or not bucket.tokens for bucket in packed):
            raise ValueError("a bucket of rows of several texts has tokens and no tiles")
        if packed != list(self.buckets[: len(packed)]) or len(packed) == len(self.buckets):
            raise ValueError(
                "buckets of rows of several texts come first, and the largest is none of them, as "
                "it has room for all rows"
            )
        if sorted(set(sizes)) != sizes or largest.tiles < max(tiles for _, tiles in sizes):
            raise ValueError(
                "buckets must go from small to large, the last with the most tokens and tiles, "
                f"not {sizes} (tokens, tiles)"
            )
        if largest.share != 1 or not all(0 < bucket.share <= 1 for bucket in self.buckets):
            raise ValueError("a bucket's share is in (0, 1]; the largest has room for all rows: 1")
        if min(bucket.rows for bucket in self.buckets) < 0:
            raise ValueError("a bucket's rows of a chunk are 1 or more; 0: as many as fit")

    def with_clips(self) -> "BatchShapes":
        """The same of rows that may have clips."""
        return dataclasses.replace(self, layout=self.layout.with_clips())

    def chunk_rows(self, bucket: Bucket) -> int:
        """R: rows of a chunk over all processes, a multiple of chunk_size, or of `shards`."""
        largest = self.buckets[-1]
        times = [math.ceil(self.rows / self.chunk_size)]
        if bucket.tokens:
            times.append(largest.tokens // bucket.tokens)
        if bucket.tiles:
            times.append(largest.tiles // bucket.tiles)
        most = self.chunk_size * min(times)
        if not most:  # rows of several texts may be longer than the largest's
            most = self.shards * max(
                1, self.chunk_size * largest.tokens // bucket.tokens // self.shards
            )
        if not bucket.rows:
            return most
        return min(most, self.shards * math.ceil(bucket.rows / self.shards))

    def chunks(self, bucket: Bucket) -> int:
        """C: enough chunks for the bucket's share of all rows, each of one text or several."""
        return math.ceil(bucket.share * self.rows / self.chunk_rows(bucket))


def segments_of(layout: Layout, bucket: Bucket) -> int:
    """Sequences that a row of the bucket has room for; 0: it is one itself."""
    return layout.segments or (bucket.texts if bucket.texts > 1 else 0)


def described(buckets: Sequence[Bucket]) -> str:
    """Buckets for people: "20, 52 tokens, 0, 2 tiles"."""
    tokens, tiles = zip(*((bucket.tokens, bucket.tiles) for bucket in buckets), strict=True)
    images = f", {', '.join(map(str, tiles))} tiles" if any(tiles) else ""
    return f"{', '.join(map(str, tokens))} tokens{images}"


def pair_shapes(
    buckets: Sequence[Bucket],
    layout: Layout,
    *,
    batch_size: int,
    negatives: int = 0,
    chunk_size: int,
    scored: bool = False,
    graded: Sequence[str] = (),
    shards: int = 1,
) -> BatchShapes:
    """The shapes of a batch of pairs: in the worst case all queries and candidates are distinct."""
    rows = batch_size * (2 + negatives)
    return BatchShapes(
        tuple(buckets), layout, chunk_size, rows, negatives, scored, tuple(graded), shards
    )
