"""Dynamic resolution of Qwen's families: an image's size, its patches and their places.

Integers of the host. An image keeps its aspect, and its size if that is within bounds; merge x
merge neighbouring patches become one token. A grid is (height, width) in patches. Prompts are not
handled here, see `rows`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

Size = tuple[int, int]
LINE = 200  # times the short side, that the long one may be at most


class Place(NamedTuple):
    """The tokens of an image, or of a clip's block, in a prompt.

    `times`: positions of its time steps, from 0 on, each of which has rows x columns tokens.
    """

    rows: int
    columns: int
    times: tuple[int, ...] = (0,)


def smart_resize(
    height: int, width: int, side: int, least: int, most: int, *, what: str = "an image"
) -> Size:
    """The size at which an image is seen: aspect about kept, `least` to `most` pixels.

    Both sides are multiples of `side`. The order of the float operations is transformers 5's:
    sizes are cut to integers after them, so another order gives other sizes. `what` is what an
    error calls it.

    Raises:
      ValueError: one side is more than 200 times the other.
    """
    check_aspect(height, width, what)
    new_height, new_width = round(height / side) * side, round(width / side) * side
    if new_height * new_width > most:
        shrinkage = math.sqrt((height * width) / most)
        return (
            max(side, math.floor(height / shrinkage / side) * side),
            max(side, math.floor(width / shrinkage / side) * side),
        )
    if new_height * new_width < least:
        growth = math.sqrt(least / (height * width))
        return math.ceil(height * growth / side) * side, math.ceil(width * growth / side) * side
    return new_height, new_width


def largest_area(side: int, least: int, most: int) -> int:
    """Pixels that no size of `smart_resize` goes beyond.

    That can be more than `most`, of an image whose short side becomes `side`, or that is enlarged.
    """
    shrunk = max(most, side * math.sqrt(LINE * most))
    enlarged = least + side * (math.sqrt(LINE * least) + math.sqrt(least)) + side**2
    return math.ceil(max(shrunk, enlarged))


def check_aspect(height: int, width: int, what: str) -> None:
    """Raises ValueError for a size that is a mere line; `what` is what has it."""
    if max(height, width) / min(height, width) > LINE:
        raise ValueError(
            f"{what} of {height} x {width} pixels is a line: one side is more than {LINE} times the"
            f" other, which Qwen's models do not take; crop it"
        )


def cut_patches(
    image: Image.Image, grid: Size, *, patch: int, merge: int, resample: int
) -> UInt8[np.ndarray, "patches F"]:
    """An image, resized to its grid, as patches; those of one token follow each other.

    A patch's bytes are in the order (channel, y, x).
    """
    height, width = grid
    resized = image.resize((width * patch, height * patch), Image.Resampling(resample))
    pixels = np.asarray(resized).reshape(
        height // merge, merge, patch, width // merge, merge, patch, 3
    )
    return pixels.transpose(0, 3, 1, 4, 6, 2, 5).reshape(height * width, 3 * patch**2)


def patch_places(grid: Size, merge: int) -> Int32[np.ndarray, "patches 2"]:
    """Row and column of each of `cut_patches`."""
    height, width = grid
    places = np.indices(grid, np.int32).reshape(2, height // merge, merge, width // merge, merge)
    return places.transpose(1, 3, 2, 4, 0).reshape(-1, 2)


def window_order(size: Size, side: int) -> Int32[np.ndarray, " tokens"]:
    """Numbers of an image's tokens, row after row, in the order of its windows (Qwen2.5-VL).

    Windows are side x side tokens, at the lower and right edge what is left of them; with 0 all
    of the image is one.
    """
    numbers = np.arange(math.prod(size), dtype=np.int32)
    if not side:
        return numbers
    row, column = np.divmod(numbers, size[1])
    return numbers[np.lexsort((numbers, column // side, row // side))]


def positions(places: Iterable[Place | None], gridded: Sequence[bool]) -> Int32[np.ndarray, "t 3"]:
    """Time, row and column of every token (M-RoPE, Qwen2-VL, section 2.1).

    Args:
      places: of a text token None, of an image or a clip its place.
      gridded: whether an image or clip lies in rows and columns. If so, all of an image is at one
        time, and text goes on after the longer side, however long a clip is; if not, its tokens are
        numbered as text is.
    """
    pieces, start = [], 0
    for place, in_grid in zip(places, gridded, strict=True):
        rows, columns, times = place or Place(1, 1)
        if place and in_grid:
            step, row, column = np.indices((len(times), rows, columns)).reshape(3, -1)
            piece = np.stack([np.asarray(times)[step], row, column], axis=1)
            after = max(rows, columns)
        else:
            after = len(times) * rows * columns
            piece = np.repeat(np.arange(after)[:, None], 3, axis=1)
        pieces.append(start + piece)
        start += after
    return np.concatenate(pieces).astype(np.int32)
