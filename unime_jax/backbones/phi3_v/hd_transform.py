"""Phi-3.5-Vision's view of an image: a canvas of crops, and what every token of it reads.

Sizes are (height, width). The pixels stay bytes, exactly those of the original's canvas; the global
view is no image of bytes, and is left for the device to make (`models.global_view`).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8
from PIL import Image

from unime_jax.models.phi3_v import MERGE

Size = tuple[int, int]

LINE_END, CROPS_END, FIRST = 0, 1, 2  # rows of an image table: the separators, then patches
WHITE = (255, 255, 255)


class Canvas(NamedTuple):
    """The crops down and across, and the size that the image is resized to within them."""

    grid: Size
    image: Size


def canvas_of(size: Size, *, crops: int, tile: int) -> Canvas:
    """The widest canvas of at most `crops` crops that an image fills from side to side.

    A portrait is laid out as its transpose.

    Raises:
      ValueError: the image is a mere line, no pixel of which would be left.
    """
    height, width = size
    if width < height:
        grid, image = canvas_of((width, height), crops=crops, tile=tile)
        return Canvas(grid[::-1], image[::-1])
    ratio = width / height
    across = 1
    while (across + 1) * math.ceil((across + 1) / ratio) <= crops:
        across += 1
    new_width = across * tile
    new_height = int(new_width / ratio)
    if not new_height:
        raise ValueError(
            f"an image of {width} x {height} pixels (or its transpose) cannot be shrunk to"
            f" {new_width} pixels of width: nothing of its height would be left"
        )
    return Canvas((math.ceil(new_height / tile), across), (new_height, new_width))


def cut_crops(image: Image.Image, canvas: Canvas, tile: int) -> UInt8[np.ndarray, "n tile tile 3"]:
    """The crops of an RGB image row by row: resized bilinearly, white around it."""
    portrait = image.width < image.height
    # A portrait is turned before it is resized: Pillow's two passes do not commute.
    sizes = [side[::-1] if portrait else side for side in (canvas.grid, canvas.image)]
    (rows, columns), (height, width) = sizes
    if portrait:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    whole = Image.new("RGB", (columns * tile, rows * tile), WHITE)
    whole.paste(
        image.resize((width, height), Image.Resampling.BILINEAR), (0, (rows * tile - height) // 2)
    )
    if portrait:
        whole = whole.transpose(Image.Transpose.TRANSPOSE)
    rows, columns = canvas.grid
    pixels = np.asarray(whole).reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    return pixels.reshape(rows * columns, tile, tile, 3)


def slots(grid: Size, side: int, first: int) -> Int32[np.ndarray, " t"]:
    """Table rows of an image's tokens: crops as one map, a separator, the global view.

    Args:
      grid: crops down and across.
      side: patches along a side of a tile.
      first: number of the image's first tile among those of its row; it is the global view.
    """
    side //= MERGE
    rows, columns = grid
    row, column = np.indices((rows * side, columns * side))
    tile = 1 + row // side * columns + column // side
    crops = tile * side**2 + row % side * side + column % side
    view = np.arange(side**2).reshape(side, side)
    start = FIRST + first * side**2
    table_rows = np.concatenate([_lines(start + crops), [CROPS_END], _lines(start + view)])
    return table_rows.astype(np.int32)


def _lines(rows: Int[np.ndarray, "height width"]) -> Int[np.ndarray, " t"]:
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=LINE_END).ravel()


def patch_places(grid: Size, side: int, number: int) -> Int32[np.ndarray, "n P 3"]:
    """Of every patch of an image's tiles, `number`, row and column; -1 in the global view."""
    rows, columns = grid
    row, column = (
        x.reshape(rows, side, columns, side) for x in np.indices((rows * side, columns * side))
    )
    crops = np.stack([row, column], axis=-1).swapaxes(1, 2).reshape(rows * columns, side**2, 2)
    places = np.concatenate([np.full((1, side**2, 2), -1), crops])
    return np.pad(places, ((0, 0), (0, 0), (1, 0)), constant_values=number).astype(np.int32)
