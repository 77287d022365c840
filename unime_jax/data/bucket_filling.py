"""Rows in length buckets of constant shape: where each lies, and its arrays there."""

from collections.abc import Sequence

import jax
import numpy as np

from unime_jax.batch import Inputs, Row
from unime_jax.data.frames import blended, repeated
from unime_jax.data.shapes import BatchShapes, Bucket, Layout, segments_of
from unime_jax.data.text_rows import rows_of_texts


def fill_buckets(
    rows: Sequence[Row], shapes: BatchShapes, *, process_index: int = 0, process_count: int = 1
) -> tuple[tuple[Inputs, ...], np.ndarray]:
    """Rows in this process's part of every bucket, in order, each in the smallest with room.

    Returns the groups, which depend on `shapes` alone in their shapes, and the place of each row:
    int32 [rows, 3] of group, chunk and row within this process's part of the chunk, where rows of
    several texts count once for each that they have room for.

    Raises:
      TypeError: a row has another form than the layout, or neither tokens nor tiles.
      ValueError: there are too many rows, or one would look up what the model does not have.
    """
    if shapes.chunk_size % process_count:
        raise ValueError(
            f"chunk_size = {shapes.chunk_size} rows cannot be spread over {process_count} "
            "processes: make it a multiple"
        )
    if len(rows) > shapes.rows // process_count:
        raise ValueError(
            f"{len(rows)} rows in process {process_index}, the batch has room for "
            f"{shapes.rows} in {process_count} processes"
        )
    if shapes.layout.clips:
        rows = [blended(row, shapes.layout.blend) for row in rows]
    groups = tuple(_empty(shapes, bucket, process_count) for bucket in shapes.buckets)
    for row in rows:
        _check_layout(row, shapes.layout)
        _check_bounds(row, shapes.layout)
    places = np.full((len(rows), 3), -1, np.int32)
    for g, bucket in enumerate(shapes.buckets):
        if bucket.texts > 1:
            _fill_with_texts(rows, bucket, groups[g], g, places)
    used = [0] * len(groups)
    for i, row in enumerate(rows):
        if places[i, 0] >= 0:
            continue
        room = (g for g in fitting(row, shapes) if used[g] < groups[g].length.size)
        g = next(room)
        chunk, place = divmod(used[g], groups[g].length.shape[1])
        used[g] += 1
        places[i] = g, chunk, place
        _write(row, groups[g], chunk, place)
    return groups, places


def _fill_with_texts(
    rows: Sequence[Row], bucket: Bucket, group: Inputs, number: int, places: np.ndarray
) -> None:
    """Writes texts that have no place yet into rows of several, and notes their places."""
    waiting = [
        i
        for i, row in enumerate(rows)
        if places[i, 0] < 0 and not _tiles(row) and 0 < len(row.tokens) <= bucket.tokens
    ]
    length, live = group.length.reshape(-1), group.live.reshape(-1)  # views, as of all arrays
    sizes = [len(rows[i].tokens) for i in waiting]
    together = rows_of_texts(sizes, bucket.tokens, bucket.texts)
    for place, texts in enumerate(together[: length.size]):
        chunk, row = divmod(place, group.length.shape[1])
        for count, text in enumerate(texts):
            i = waiting[text]
            _write_text(rows[i], group, chunk, row, int(length[place]), count)
            places[i] = number, chunk, row * bucket.texts + count
            length[place] += sizes[text]
        live[place] = True


def row_numbers(
    places: np.ndarray, shapes: BatchShapes, *, process_index: int = 0, process_count: int = 1
) -> np.ndarray:
    """Numbers of rows in the assembled batch, int32 [rows]; `places` as from `fill_buckets`."""
    width = np.array([shapes.chunk_rows(bucket) * bucket.texts for bucket in shapes.buckets])
    size = width * [shapes.chunks(bucket) for bucket in shapes.buckets]
    group, chunk, row = np.moveaxis(places, -1, 0)
    local = width // process_count
    first = (np.cumsum(size) - size)[group] + chunk * width[group]
    return (first + process_index * local[group] + row).astype(np.int32)


def smallest_bucket(row: Row, shapes: BatchShapes) -> int:
    """Index of the first bucket that the row goes to; ValueError if it fits none."""
    return fitting(row, shapes)[0]


def fitting(row: Row, shapes: BatchShapes) -> list[int]:
    """Indices of the buckets that the row fits, in the order in which it looks for room.

    It goes from small to large, and a row without tiles to buckets without tiles first, as they
    keep the vision tower out. Buckets of rows of several texts are not among them: a text that
    finds no room there must fit another.

    Raises:
      ValueError: it fits none.
    """
    single = (i for i, bucket in enumerate(shapes.buckets) if bucket.texts == 1)
    fits = [i for i in single if _fits(row, shapes.buckets[i])]
    if fits:
        return fits if _tiles(row) else sorted(fits, key=lambda i: shapes.buckets[i].tiles > 0)
    largest = shapes.buckets[-1]
    raise ValueError(
        f"{len(row.tokens)} tokens and {_tiles(row)} tiles do not fit the largest bucket of "
        f"{largest.tokens} tokens and {largest.tiles} tiles"
    )


def _tiles(row: Row) -> int:
    return 0 if row.patches is None else len(row.patches)


def _fits(row: Row, bucket: Bucket) -> bool:
    return len(row.tokens) <= bucket.tokens and _tiles(row) <= bucket.tiles


def bucket_shapes(shapes: BatchShapes, bucket: Bucket, *, process_count: int = 1) -> Inputs:
    """Shapes and dtypes of one process's part of a bucket."""
    layout = shapes.layout
    grid = shapes.chunks(bucket), shapes.chunk_rows(bucket) // process_count
    tokens = *grid, bucket.tokens
    pixels = *grid, bucket.tiles, layout.patches, layout.features
    positioned = bucket.tiles and layout.positioned
    segments, packed = segments_of(layout, bucket), bucket.texts > 1
    texts = grid[0], grid[1] * bucket.texts

    def array(dtype: type, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    return Inputs(
        tokens=array(np.int32, *tokens),
        length=array(np.int32, *grid),
        live=array(np.bool_, *grid),
        positions=array(np.int32, *tokens, layout.axes),
        slot=array(np.int32, *tokens, layout.blend),
        slot_weight=array(np.float32, *tokens, layout.blend) if layout.weighted else None,
        patches=array(np.uint8, *pixels) if bucket.tiles else None,
        patch_position=array(np.int32, *pixels[:-1], 3) if positioned else None,
        pool_start=array(np.int32, *grid) if layout.pooled else None,
        teacher=array(np.float32, *texts, layout.teacher) if layout.teacher else None,
        segment=array(np.int32, *tokens) if segments else None,
        segment_end=array(np.int32, *grid, segments) if segments else None,
        segment_live=array(np.bool_, *grid, segments) if packed else None,
    )


def _empty(shapes: BatchShapes, bucket: Bucket, process_count: int) -> Inputs:
    abstract = bucket_shapes(shapes, bucket, process_count=process_count)
    group = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    group.slot[...] = -1
    for absent in (group.patch_position, group.segment):
        if absent is not None:
            absent[...] = -1
    return group


def _write(row: Row, group: Inputs, chunk: int, place: int) -> None:
    length = len(row.tokens)
    group.length[chunk, place] = length
    group.live[chunk, place] = True
    group.tokens[chunk, place, :length] = row.tokens
    group.positions[chunk, place, :length] = row.positions
    group.slot[chunk, place, :length] = row.slot
    if group.slot_weight is not None:
        group.slot_weight[chunk, place, :length] = row.slot_weight
    if group.patches is not None and row.patches is not None:
        patches = repeated(row.patches, group.patches.shape[-1])
        group.patches[chunk, place, : len(patches)] = patches
        if group.patch_position is not None:
            group.patch_position[chunk, place, : len(row.patches)] = row.patch_position
    if group.pool_start is not None:
        group.pool_start[chunk, place] = row.pool_start
    if group.teacher is not None:
        group.teacher[chunk, place] = row.teacher
    if group.segment is not None and group.segment_end is not None:
        group.segment[chunk, place, :length] = row.segment
        group.segment_end[chunk, place] = row.segment_end


def _write_text(row: Row, group: Inputs, chunk: int, place: int, start: int, number: int) -> None:
    """Writes a text as segment `number` + 1 of a row, behind the tokens that are there."""
    assert group.segment is not None and group.segment_end is not None
    assert group.segment_live is not None
    at = chunk, place, slice(start, start + len(row.tokens))
    group.tokens[at] = row.tokens
    group.positions[at] = row.positions
    group.slot[at] = row.slot
    if group.slot_weight is not None:
        group.slot_weight[at] = row.slot_weight
    group.segment[at] = number + 1
    group.segment_end[chunk, place, number] = start + len(row.tokens) - 1
    group.segment_live[chunk, place, number] = True
    if group.teacher is not None:
        group.teacher[chunk, place * group.segment_live.shape[-1] + number] = row.teacher


def _check_layout(row: Row, layout: Layout) -> None:
    """A row of another form than the layout's is an error in the program, not in the data."""
    length = len(row.tokens)
    form = [np.shape(row.positions), np.shape(row.slot), row.slot_weight is not None]
    wanted = [(length, layout.axes), (length, layout.blend), layout.weighted]
    if layout.teacher:
        form.append(None if row.teacher is None else row.teacher.shape)
        wanted.append((layout.teacher,))
    form += [None if x is None else np.shape(x) for x in (row.segment, row.segment_end)]
    wanted += [(length,), (layout.segments,)] if layout.segments else [None, None]
    if row.patches is not None and len(row.patches):
        form += [np.shape(row.patches)[1:], row.patch_position is not None]
        wanted += [(layout.patches, layout.features), layout.positioned]
        if form[-2] == (layout.patches, layout.patch_bytes):  # of a still image
            wanted[-2] = form[-2]
    if form != wanted:
        raise TypeError(
            f"a row of {length} tokens has positions, slot, slot_weight given, teacher (if any), "
            f"segment, segment_end, patches of a tile, patch_position given {form}; the layout says"
            f" {wanted}"
        )
    if not length and not _tiles(row):
        raise TypeError("a row has neither tokens nor tiles; there is nothing to encode")


def _check_bounds(row: Row, layout: Layout) -> None:
    """Raises ValueError for a token, position or slot beyond the table that a device looks up."""
    first, per_tile = layout.table or (0, 0)
    bounds = {
        "token": (row.tokens, layout.vocabulary),
        "position": (row.positions, layout.learned_positions),
        "slot": (row.slot, layout.table and (first + _tiles(row) * per_tile) * bool(_tiles(row))),
    }
    least = {"token": 0, "position": 0, "slot": -1}
    for name, (numbers, bound) in bounds.items():
        if bound is None or not np.size(numbers):
            continue
        if np.max(numbers) >= bound or np.min(numbers) < least[name]:
            raise ValueError(
                f"a row of {len(row.tokens)} tokens and {_tiles(row)} tiles has {name}s from"
                f" {np.min(numbers)} to {np.max(numbers)}; they must be from {least[name]} to"
                f" {bound - 1}: its preprocessing does not fit the model"
            )
