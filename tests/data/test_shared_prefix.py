"""Packing of rows that begin alike: each of them is still there, with its own positions."""

import dataclasses

import numpy as np

from unime_jax.batch import Row
from unime_jax.data.shapes import Layout
from unime_jax.data.shared_prefix import pack

# Three patches to a tile of which each is a token; a family whose patches see their whole image.
SEEING = Layout(patches=3, patch_bytes=2, positioned=True, table=(0, 3), segments=3)
# And one whose tiles stand alone, with two tokens of the model's own before them and blended slots.
APART = Layout(slots=2, blended=True, patches=3, patch_bytes=2, table=(2, 3), segments=3)


def make_row(layout, *parts):
    """A row of texts (token ids) and images (a byte for each patch), in order."""
    first, per_tile = layout.table
    tokens, slots, tiles, places = [], [], [], []
    images = 0
    for part in parts:
        if isinstance(part, list):
            tokens += part
            slots += [-1] * len(part)
            continue
        tokens += [99] * len(part)
        slots += range(first + len(tiles) * per_tile, first + len(tiles) * per_tile + len(part))
        for start in range(0, len(part), 3):
            own = part[start : start + 3].ljust(3, b"\0")
            tiles.append(np.repeat(np.frombuffer(own, np.uint8), 2).reshape(3, 2))
            number = np.where(np.arange(start, start + 3) < len(part), images, -1)
            places.append(np.repeat(number[:, None], 3, axis=1))
        images += 1
    slot = np.array(slots, np.int32)[:, None]
    weight = None
    if layout.blended:
        slot = np.concatenate([slot, np.where(slot < 0, slot, 0)], axis=1).astype(np.int32)
        weight = np.full(slot.shape, 0.5, np.float32)
    return Row(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(len(tokens), dtype=np.int32)[:, None] * 2,
        slot=slot,
        slot_weight=weight,
        patches=np.array(tiles, np.uint8) if tiles else None,
        patch_position=np.array(places, np.int32) if tiles and layout.positioned else None,
    )


def seen(row, layout, at):
    """What each token says: itself, its position, and what its image patches are and see."""
    first, per_tile = layout.table
    told = []
    for t in at:
        views = []
        for slot in row.slot[t]:
            if slot < first:
                views.append(int(slot))
                continue
            tile, patch = divmod(int(slot) - first, per_tile)
            view = row.patches[tile].tobytes()
            if layout.positioned:
                number = row.patch_position[tile, patch, 0]
                view = row.patches[row.patch_position[..., 0] == number].tobytes()
            views.append((view, row.patches[tile, patch].tobytes()))
        told.append((int(row.tokens[t]), int(row.positions[t, 0]), views))
    return told


def test_each_row_is_there_and_what_all_begin_with_is_there_once():
    for layout in (SEEING, APART):
        rows = [
            make_row(layout, [1, 2], b"abcd", [3, 4], b"xy", [5]),
            make_row(layout, [1, 2], b"abcd", [3, 4], b"xz", [5, 6]),  # an image of the same size
            make_row(layout, [1, 2], b"abcd", [3, 7, 8, 9]),
            make_row(layout, [1, 2], b"abcd", [3, 4], b"xy", [5, 9]),
            make_row(layout, [1, 2], b"abce", [3, 4]),  # the second tile is another
            make_row(layout, [1, 2], b"abc", [3, 4]),  # the first tile is the whole image
            make_row(layout, [1]),  # all of it is what others begin with
        ]
        packed = pack(rows, layout, max_tokens=100, max_patches=21)
        assert [p.numbers for p in packed] == [(0, 1, 2), (3, 4, 5), (6,)]
        lengths = [(p.row.segment == 0).sum() for p in packed]
        # Without a place a tile counts alone: of the third image its first tile is shared.
        assert lengths == [7, 2 if layout.positioned else 5, 0]
        assert [len(p.row.patches) for p in packed[:2]] == [4, 6 if layout.positioned else 4]
        for numbers, row in packed:
            assert row.segment_end.shape == (3,)
            for n, number in enumerate(numbers, 1):
                own = np.flatnonzero((row.segment == 0) | (row.segment == n))
                alone = seen(rows[number], layout, range(len(rows[number].tokens)))
                assert seen(row, layout, own) == alone
                assert row.segment_end[n - 1] == own[-1]
            assert (row.segment_end[len(numbers) :] == len(row.tokens) - 1).all()
        few = pack(rows[:3], layout, max_tokens=100, max_patches=9)
        assert [p.numbers for p in few] == ([(0, 2), (1,)] if layout.positioned else [(0, 1, 2)])

    # Rows of what `max_tokens` allows, and none that saves nothing.
    texts = [make_row(APART, [1, 2, 3, n]) for n in (4, 5, 6)] + [make_row(APART, [7, 8])]
    assert [p.numbers for p in pack(texts, APART, max_tokens=5, max_patches=0)] == [
        (0, 1),
        (2,),
        (3,),
    ]
    narrow = dataclasses.replace(APART, segments=1)
    assert [p.numbers for p in pack(texts, narrow, max_tokens=9, max_patches=0)] == [
        (0,),
        (1,),
        (2,),
        (3,),
    ]
