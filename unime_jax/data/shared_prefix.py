"""Rows that begin alike as one row, in which their common beginning is there once.

What a causal decoder makes of a beginning does not depend on what follows. So rows of one query and
several candidates are packed into one row of segments (`Row.segment`), whose tokens keep the
positions that they have alone. The beginning is that of the finished rows: what a tokenizer or an
image processor makes of the whole decides what is common, and equal rows are not needed.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from unime_jax.batch import Row
from unime_jax.data.frames import alike
from unime_jax.data.shapes import Layout


class Packed(NamedTuple):
    """A row of several, by their numbers; segment n + 1 is what numbers[n] has of its own."""

    numbers: tuple[int, ...]
    row: Row


class _Common(NamedTuple):
    """What rows begin with: so many tokens, which read these tiles at most."""

    tokens: int
    tiles: int


@dataclasses.dataclass
class _Open:
    """Rows that will be one."""

    numbers: list[int]
    rows: list[Row]
    common: _Common
    size: int  # tokens of the packed row


def pack(rows: Sequence[Row], layout: Layout, *, max_tokens: int, max_patches: int) -> list[Packed]:
    """Rows of at most `layout.segments` of the given ones, and of `max_tokens` tokens if one may.

    In order, each row goes to the first packed row that has room for it and in which fewer tokens
    are encoded than if it stood alone. Each keeps a token of its own at least, as its last one is
    read. If any has patches of clips, all get as many frames.

    Args:
      layout: of the packed rows.
      max_tokens: of a packed row; a single row may have more.
      max_patches: likewise, where the tower attends over all patches of a row, as those with a
        position do, and memory grows with their square.
    """
    rows = alike(rows)
    packs: list[_Open] = []
    for number, row in enumerate(rows):
        for pack in packs:
            if len(pack.rows) == layout.segments:
                continue
            common = _common(pack.rows[0], row, pack.common, layout)
            own = sum(len(other.tokens) for other in (*pack.rows, row))
            size = own - common.tokens * len(pack.rows)
            tiles = sum(map(_tiles, (*pack.rows, row))) - common.tiles * len(pack.rows)
            if layout.positioned and tiles * layout.patches > max_patches:
                continue
            if size <= max_tokens and size < pack.size + len(row.tokens):
                pack.numbers.append(number)
                pack.rows.append(row)
                pack.common, pack.size = common, size
                break
        else:
            whole = _Common(len(row.tokens) - 1, _tiles(row))
            packs.append(_Open([number], [row], whole, len(row.tokens)))
    return [Packed(tuple(pack.numbers), _merged(pack.rows, pack.common, layout)) for pack in packs]


def _tiles(row: Row) -> int:
    return 0 if row.patches is None else len(row.patches)


def _common(a: Row, b: Row, most: _Common, layout: Layout) -> _Common:
    """The beginning of two rows, at most as long as `most`.

    Slots of image tokens are equal numbers wherever images have equal sizes, so what counts is the
    bytes of the tiles.
    """
    tiles = 0
    while tiles < min(most.tiles, _tiles(a), _tiles(b)) and _same_tile(a, b, tiles):
        tiles += 1
    while tiles and (_splits_image(a, tiles) or _splits_image(b, tiles)):
        tiles -= 1
    end = min(most.tokens, len(a.tokens) - 1, len(b.tokens) - 1)
    same = np.asarray(a.tokens)[:end] == np.asarray(b.tokens)[:end]
    for x, y in ((a.positions, b.positions), (a.slot, b.slot), (a.slot_weight, b.slot_weight)):
        if x is not None and y is not None:
            same &= (x[:end] == y[:end]).all(axis=1)
    same &= ~_reads_others(a, end, tiles, layout)
    return _Common(end if same.all() else int(same.argmin()), tiles)


def _same_tile(a: Row, b: Row, tile: int) -> bool:
    assert a.patches is not None and b.patches is not None
    same = np.array_equal(a.patches[tile], b.patches[tile])
    if a.patch_position is not None and b.patch_position is not None:
        same &= np.array_equal(a.patch_position[tile], b.patch_position[tile])
    return same


def _splits_image(row: Row, tile: int) -> bool:
    """Whether an image goes on over the end of the first `tile` tiles.

    Patches that have a place see all of their image. Others see those of their tile.
    """
    if row.patch_position is None or tile >= len(row.patch_position):
        return False
    numbers = row.patch_position[:, 0, 0]
    return bool(numbers[tile - 1] == numbers[tile])


def _reads_others(row: Row, end: int, tiles: int, layout: Layout) -> Bool[np.ndarray, " end"]:
    """Whether a token's image features come from beyond the first tiles."""
    first, per_tile = layout.table or (0, 0)
    return (row.slot[:end] >= first + tiles * per_tile).any(axis=1)


def _merged(rows: Sequence[Row], common: _Common, layout: Layout) -> Row:
    """One row of the beginning and what each row has of its own, tiles alike."""
    head, (start, shared) = rows[0], common
    first, per_tile = layout.table or (0, 0)
    images = before = _images(head, 0, shared)
    slots, patches, places = [head.slot[:start]], [], []
    if head.patches is not None:
        patches.append(head.patches[:shared])
        if head.patch_position is not None:
            places.append(head.patch_position[:shared])
    tiles = 0  # own ones of the rows so far
    for row in rows:
        slot = row.slot[start:]
        slots.append(np.where(slot >= first + shared * per_tile, slot + tiles * per_tile, slot))
        if row.patches is None:
            continue
        patches.append(row.patches[shared:])
        tiles += len(row.patches) - shared
        if row.patch_position is not None:
            place = row.patch_position[shared:].copy()
            place[place[..., 0] >= 0, 0] += images - before  # patches see those of their number
            places.append(place)
            images += max(0, _images(row, shared, len(row.patches)) - before)
    weights = [row.slot_weight for row in rows if row.slot_weight is not None]
    lengths = [len(row.tokens) - start for row in rows]
    ends = start + np.cumsum(lengths) - 1
    return Row(
        tokens=np.concatenate([head.tokens[:start], *(row.tokens[start:] for row in rows)]),
        positions=np.concatenate(
            [head.positions[:start], *(row.positions[start:] for row in rows)]
        ),
        slot=np.concatenate(slots).astype(np.int32),
        slot_weight=np.concatenate([weights[0][:start], *(weight[start:] for weight in weights)])
        if weights
        else None,
        patches=np.concatenate(patches) if patches else None,
        patch_position=np.concatenate(places) if places else None,
        unmatched_markers=sum(row.unmatched_markers for row in rows),
        clips=sum(row.clips for row in rows),
        segment=np.repeat(np.arange(len(rows) + 1, dtype=np.int32), [start, *lengths]),
        segment_end=np.pad(ends, (0, layout.segments - len(rows)), "edge").astype(np.int32),
    )


def _images(row: Row, start: int, stop: int) -> int:
    """The number after those of the images in these tiles, which are counted from 0 on."""
    if row.patch_position is None or start == stop:
        return 0
    return int(row.patch_position[start:stop, :, 0].max()) + 1
