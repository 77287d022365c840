"""Generated rows of an assumed load, in the form that a family's preprocessing gives them."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from unime_jax.backbones import Backbone
from unime_jax.batch import Batch, Inputs, Item, Media, Row
from unime_jax.data.packing import Prepared, fill_buckets, pack
from unime_jax.data.shapes import BatchShapes, Bucket, Layout
from unime_jax.planning.estimate import Load

SOURCE = "generated"
IMAGE_TEXT = "<|image_1|>\n"


def rows_of(
    backbone: Backbone, shapes: BatchShapes, load: Load, *, image: tuple[int, int], seed: int
) -> list[Row]:
    """Rows of a load, largest bucket first: random tokens, and images of random pixels.

    A row of a bucket with tiles is that of one image through the family's own preprocessing, with
    random tokens after it up to its length and bytes of its own. `image`: pixels (height, width).

    Raises:
      ValueError: an image does not fit the bucket or its tokens.
    """
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for bucket, count, tokens in reversed(list(zip(shapes.buckets, load.rows, load.tokens))):
        if not count:
            continue
        base = _image_row(backbone, bucket, image, tokens, random) if bucket.tiles else None
        rows += [_row(shapes.layout, base, tokens, random) for _ in range(count)]
    return rows


def train_batch(
    rows: Sequence[Row], shapes: BatchShapes, batch_size: int, load: Load
) -> tuple[Batch, Sequence[int]]:
    """A batch of pairs whose items are all distinct, as numpy arrays, and its live chunks.

    Queries come first in `rows`, then positives, then negatives.

    Raises:
      ValueError: rows fall into other buckets than the load says.
    """
    prepared = []
    for pair in range(batch_size):
        numbers = range(pair, len(rows), batch_size)
        keys = tuple((str(number), "") for number in numbers)
        scores = tuple(float(-n) for n in range(len(keys) - 1)) if shapes.scored else ()
        prepared.append(Prepared(SOURCE, keys, tuple(rows[n] for n in numbers), scores=scores))
    batch, info = pack(prepared, shapes, [SOURCE])
    _check_load(info.rows, load)
    return batch, info.chunks


def encode_groups(
    rows: Sequence[Row], shapes: BatchShapes, load: Load
) -> tuple[tuple[Inputs, ...], Sequence[int]]:
    """The same for rows without partners.

    Raises:
      ValueError: rows fall into other buckets than the load says.
    """
    groups, _ = fill_buckets(rows, shapes)
    _check_load([int(group.embedded.sum()) for group in groups], load)
    return groups, [int(group.live.any(axis=1).sum()) for group in groups]


def _check_load(rows: Sequence[int], load: Load) -> None:
    if tuple(rows) != load.rows:
        raise ValueError(
            f"rows by bucket are {tuple(rows)}, but should be {load.rows}: rows of "
            f"{load.tokens} tokens also fit smaller buckets, or these have no room; change "
            "config.cases.<name>.rows or tokens"
        )


def _image_row(
    backbone: Backbone,
    bucket: Bucket,
    size: tuple[int, int],
    tokens: int,
    random: np.random.Generator,
) -> Row:
    """The row of an image of random pixels, with as little text as the family's prompt allows."""
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(buffer, "png")
    text = "" if backbone.layout.separate else IMAGE_TEXT
    row = backbone.preprocess(Item(text, (Media("generated.png", buffer.getvalue()),)))
    tiles = 0 if row.patches is None else len(row.patches)
    least = 0 if backbone.layout.separate else len(row.tokens)
    if tiles > bucket.tiles or least > tokens:
        raise ValueError(
            f"an image of {size[0]} x {size[1]} pixels has {tiles} tiles and a row of {least} "
            f"tokens with its prompt; the case has room for {bucket.tiles} tiles and {tokens} "
            "tokens. Change config.cases.<name>.image, or rows, tokens and buckets"
        )
    return row


def _row(layout: Layout, base: Row | None, tokens: int, random: np.random.Generator) -> Row:
    """A row of so many tokens; the first are those of `base`, if there is one."""
    kept = 0 if base is None else min(len(base.tokens), tokens)
    count = tokens - kept
    # Special tokens have the highest numbers, or the first after a small alphabet's.
    ordinary = (layout.vocabulary or 200) // 2
    new = random.integers(ordinary // 2, ordinary, count).astype(np.int32)
    first = 0 if base is None or not kept else int(np.max(base.positions)) + 1
    positions = np.repeat(first + np.arange(count, dtype=np.int32)[:, None], layout.axes, axis=1)
    slot = np.full((count, layout.slots), -1, np.int32)
    weight = np.zeros((count, layout.slots), np.float32) if layout.blended else None
    teacher = random.standard_normal(layout.teacher, np.float32) if layout.teacher else None
    if base is None:
        return Row(new, positions, slot, weight, teacher=teacher)
    assert base.patches is not None
    patches = random.integers(0, 256, base.patches.shape, np.uint8)
    if weight is not None and base.slot_weight is not None:
        weight = np.concatenate([base.slot_weight[:kept], weight])
    return Row(
        tokens=np.concatenate([base.tokens[:kept], new]),
        positions=np.concatenate([base.positions[:kept], positions]),
        slot=np.concatenate([base.slot[:kept], slot]),
        slot_weight=weight,
        patches=patches,
        patch_position=base.patch_position,
        teacher=teacher,
    )
