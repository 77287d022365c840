"""AnyRes of LLaVA on the host: the tiles of an image, and what its tokens read of them.

One image is seen as a base tile (the whole image, stretched) and a grid of tiles (the image, aspect
kept, centred on a black canvas). The model reads the base tile's patches, then the grid's patches
as one map without the rows or columns that are mostly black, with a learned newline after every
row of the map; a map that is too large is shrunk bilinearly. Each frame of a clip is a base tile,
its map always shrunk. All of it depends on the image's size alone, so the host turns it into
integers, rows of a table, and the device only gathers:

    row 0                 the newline vector
    row 1 + n * P + p     patch p of tile n; tile 0 is the base, P = side * side

Sizes are (height, width) throughout, in pixels unless said otherwise. The order of the float
operations is transformers' own: sizes are cut to integers after them, so another order gives other
token counts. Prompts and tokens are not handled here, see `llava_rows`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int32, Shaped, UInt8
from PIL import Image

from unime_jax.data.settings import ClipNewlines

TEXT = -1  # the slot of a token that is not an image's
NEWLINE = 0  # the table row of the newline vector; patch features start at row 1
BLEND = 4  # rows that a token of a shrunk map blends
UNBLENDED = np.array([1, 0, 0, 0], np.float32)  # weights of a token that is one row

Size = tuple[int, int]

# What transformers 4.48 does with tiles one pixel short: it resizes them to a square, or their
# shorter side to the tile's, to cut off what the longer one is then too long by.
Legacy = Literal["stretch", "crop"]


def select_pinpoint(height: int, width: int, pinpoints: Sequence[Size]) -> Size:
    """The canvas that keeps most of the image's pixels; of equals the smallest, then the first."""
    best: tuple[int, int] | None = None
    best_canvas = pinpoints[0]
    for canvas_height, canvas_width in pinpoints:
        scale = min(canvas_width / width, canvas_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = canvas_height * canvas_width - kept
        if best is None or (kept, -wasted) > best:
            best, best_canvas = (kept, -wasted), (canvas_height, canvas_width)
    return best_canvas


def content_size(height: int, width: int, canvas: Size) -> Size:
    """The size of the image on its canvas: aspect kept, one side touches, the other rounds up."""
    scale_height, scale_width = canvas[0] / height, canvas[1] / width
    if scale_width < scale_height:
        return min(math.ceil(height * scale_width), canvas[0]), canvas[1]
    return canvas[0], min(math.ceil(width * scale_height), canvas[1])


def content_margin(height: int, width: int, map_height: int, map_width: int) -> Size:
    """Patch rows dropped above and below, patch columns dropped left and right of the map."""
    if width / height > map_width / map_height:
        content = int(round(height * (map_width / width), 7))
        return (map_height - content) // 2, 0
    content = int(round(width * (map_height / height), 7))
    return 0, (map_width - content) // 2


def resamples(pinpoints: Sequence[Size], *, tile: int, side: int, max_tiles: int | None) -> bool:
    """Whether some image can give a map so large that it is shrunk (its tokens are blends)."""
    return any(
        _shrinkage(h // tile * side, w // tile * side, side=side, max_tiles=max_tiles) > 1.1
        for h, w in pinpoints
    )


def count_tiles(height: int, width: int, *, pinpoints: Sequence[Size], tile: int) -> int:
    """Tiles of one image, the base tile included."""
    canvas_height, canvas_width = select_pinpoint(height, width, pinpoints)
    return 1 + (canvas_height // tile) * (canvas_width // tile)


@functools.lru_cache(maxsize=256)
def image_slots(
    height: int,
    width: int,
    *,
    pinpoints: tuple[Size, ...],
    tile: int,
    side: int,
    max_tiles: int | None,
) -> tuple[Int32[np.ndarray, "t S"], Float32[np.ndarray, "t S"] | None]:
    """The image tokens of one image, as rows of its table and their weights.

    Args:
      height, width: the image's own size.
      pinpoints: the canvases of the checkpoint, multiples of `tile`, in its order.
      tile: the side of a tile, the vision tower's image size.
      side: patches along a side of a tile.
      max_tiles: the 9 of "anyres_max_9": a map of more patches than that many tiles is shrunk.
        None, in LLaVA-NeXT: never.

    Returns:
      slot int32 [t, S] and weight float32 [t, S]: token i is the sum over s of
      weight[i, s] * table[slot[i, s]].
      S is 1 and weight None if no image can need blending under these settings, else S is 4, and a
      token that is one row has weight (1, 0, 0, 0). The arrays are shared between calls: read-only.

    Raises:
      ValueError: the shrunk map has no rows or columns (a line of pixels under a tiny `max_tiles`);
        transformers fails on it too.
    """
    canvas_height, canvas_width = select_pinpoint(height, width, pinpoints)
    rows, columns = canvas_height // tile, canvas_width // tile
    patches = side * side
    tiles = np.arange(1, 1 + rows * columns, dtype=np.int32).reshape(rows, 1, columns, 1)
    within = np.arange(patches, dtype=np.int32).reshape(1, side, 1, side)
    feature_map = (1 + tiles * patches + within).reshape(rows * side, columns * side)
    top, left = content_margin(height, width, *feature_map.shape)
    feature_map = feature_map[top : len(feature_map) - top, left : feature_map.shape[1] - left]

    base = np.arange(1, 1 + patches, dtype=np.int32)
    if not resamples(pinpoints, tile=tile, side=side, max_tiles=max_tiles):
        lines = np.pad(feature_map, ((0, 0), (0, 1)), constant_values=NEWLINE)
        return _read_only(np.concatenate([base, lines.reshape(-1)])[:, None]), None

    map_height, map_width = feature_map.shape
    shrinkage = _shrinkage(map_height, map_width, side=side, max_tiles=max_tiles)
    if shrinkage > 1.1:
        new_height, new_width = int(map_height // shrinkage), int(map_width // shrinkage)
        if not new_height or not new_width:
            raise ValueError(
                f"an image of {height} x {width} pixels has a map of {map_height} x {map_width}"
                f" patches, of which nothing is left when it is shrunk to {max_tiles} tiles;"
                " crop the image, or use fewer image_grid_pinpoints"
            )
    else:
        new_height, new_width = map_height, map_width
    slot, weight = with_newlines(*shrunk(feature_map, new_height, new_width))
    slot = np.concatenate([np.repeat(base[:, None], 4, axis=1), slot.reshape(-1, 4)])
    weight = np.concatenate([np.broadcast_to(UNBLENDED, (patches, 4)), weight.reshape(-1, 4)])
    return _read_only(slot), _read_only(weight)


@functools.lru_cache(maxsize=64)
def clip_slots(
    frames: int, side: int, newlines: ClipNewlines
) -> tuple[Int32[np.ndarray, "t 4"], Float32[np.ndarray, "t 4"]]:
    """As `image_slots`, S = 4, of a clip each of whose frames is a tile.

    A frame's map is shrunk to half its side, rounded up, whatever image maps are shrunk to. The
    arrays are shared between calls: read-only.
    """
    half = -(-side // 2)
    first = np.arange(1, 1 + side * side, dtype=np.int32).reshape(side, side)
    slot, weight = shrunk(first, half, half)
    before = side**2 * np.arange(frames, dtype=np.int32)
    slot = (slot + before[:, None, None, None]).reshape(frames * half, half, 4)
    weight = np.tile(weight, (frames, 1, 1))
    if newlines == "grid":
        slot, weight = with_newlines(slot, weight)
    slot, weight = slot.reshape(-1, 4), weight.reshape(-1, 4)
    if newlines == "one":
        slot = np.concatenate([slot, np.full((1, 4), NEWLINE, np.int32)])
        weight = np.concatenate([weight, UNBLENDED[None]])
    return _read_only(slot), _read_only(weight)


def shrunk(
    feature_map: Int32[np.ndarray, "height width"], new_height: int, new_width: int
) -> tuple[Int32[np.ndarray, "_ _ 4"], Float32[np.ndarray, "_ _ 4"]]:
    """Slots of a smaller map, each a bilinear blend of four of the map's, and their weights."""
    y, y_weight = _linear_taps(feature_map.shape[0], new_height)
    x, x_weight = _linear_taps(feature_map.shape[1], new_width)
    corners = [(i, j) for i in range(2) for j in range(2)]
    slots = [feature_map[y[:, i]][:, x[:, j]] for i, j in corners]
    weights = [np.outer(y_weight[:, i], x_weight[:, j]) for i, j in corners]
    return np.stack(slots, axis=-1), np.stack(weights, axis=-1)


def with_newlines(
    slot: Int32[np.ndarray, "height width 4"], weight: Float32[np.ndarray, "height width 4"]
) -> tuple[Int32[np.ndarray, "height width+1 4"], Float32[np.ndarray, "height width+1 4"]]:
    """A map with a newline after each of its rows."""
    slot = np.pad(slot, ((0, 0), (0, 1), (0, 0)), constant_values=NEWLINE)
    ends = np.broadcast_to(UNBLENDED, (len(weight), 1, 4))
    return slot, np.concatenate([weight, ends], axis=1)


def untiled_slots(
    side: int, blend: int
) -> tuple[Int32[np.ndarray, "t S"], Float32[np.ndarray, "t S"]]:
    """As `image_slots`, S = `blend`, of an image that is its base tile only: patches, a newline."""
    slot = np.append(np.arange(1, 1 + side * side, dtype=np.int32), np.int32(NEWLINE))
    weight = np.zeros((len(slot), blend), np.float32)
    weight[:, 0] = 1
    return np.repeat(slot[:, None], blend, axis=1), weight


def base_tile(image: Image.Image, tile: int, resample: int) -> UInt8[np.ndarray, "tile tile 3"]:
    """The whole image, stretched to a square."""
    return np.asarray(image.resize((tile, tile), Image.Resampling(resample)))


def square_tile(
    image: Image.Image, tile: int, resample: int, background: tuple[int, int, int]
) -> UInt8[np.ndarray, "tile tile 3"]:
    """The whole image, aspect kept, in the middle of a square."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), background)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return base_tile(square, tile, resample)


def cut_tiles(
    image: Image.Image,
    pinpoints: tuple[Size, ...],
    tile: int,
    resample: int,
    legacy: Legacy | None = None,
) -> UInt8[np.ndarray, "n tile tile 3"]:
    """The base tile, then the canvas's tiles row by row.

    Where the padding is odd, its odd pixel lies below or on the right. With `legacy` it is left
    out, and the tiles that it was part of are enlarged to their size again.
    """
    height, width = select_pinpoint(image.height, image.width, pinpoints)
    content_height, content_width = content_size(image.height, image.width, (height, width))
    top, left = (height - content_height) // 2, (width - content_width) // 2
    content = image.resize((content_width, content_height), Image.Resampling(resample))
    rows, columns = height // tile, width // tile
    tiles = np.empty((1 + rows * columns, tile, tile, 3), np.uint8)
    tiles[0] = base_tile(image, tile, resample)
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + content_height, left : left + content_width] = np.asarray(content)
    canvas = canvas.reshape(rows, tile, columns, tile, 3).transpose(0, 2, 1, 3, 4)
    if legacy and (height - content_height) % 2:
        for short in canvas[-1]:
            short[:] = _enlarged(short[:-1], tile, resample, legacy)
    if legacy and (width - content_width) % 2:
        for short in canvas[:, -1]:
            short[:] = _enlarged(short[:, :-1], tile, resample, legacy)
    tiles[1:] = canvas.reshape(-1, tile, tile, 3)
    return tiles


def cut_patches(
    tiles: Shaped[np.ndarray, "n tile tile 3"], patch: int
) -> Shaped[np.ndarray, "n P F"]:
    """Patches row by row, of bytes or floats; values in the order (channel, y, x) of a conv."""
    count, side = len(tiles), tiles.shape[1] // patch
    tiles = tiles[:, : side * patch, : side * patch]
    tiles = tiles.reshape(count, side, patch, side, patch, 3).transpose(0, 1, 3, 5, 2, 4)
    return np.ascontiguousarray(tiles).reshape(count, side * side, 3 * patch * patch)


def _enlarged(
    short: UInt8[np.ndarray, "height width 3"], tile: int, resample: int, legacy: Legacy
) -> UInt8[np.ndarray, "tile tile 3"]:
    """A tile one of whose sides is a pixel short, in full size."""
    height, width = (
        (tile, tile)
        if legacy == "stretch"
        else (tile * side // min(short.shape[:2]) for side in short.shape[:2])
    )
    image = Image.fromarray(short).resize((width, height), Image.Resampling(resample))
    top, left = (height - tile) // 2, (width - tile) // 2
    return np.asarray(image)[top : top + tile, left : left + tile]


def _shrinkage(map_height: int, map_width: int, *, side: int, max_tiles: int | None) -> float:
    if max_tiles is None:
        return 0.0
    return math.sqrt(map_height * map_width / (max_tiles * side**2))


def _linear_taps(
    size: int, new_size: int
) -> tuple[Int32[np.ndarray, "size 2"], Float32[np.ndarray, "size 2"]]:
    """Linear interpolation in float32, corners not aligned, no antialiasing: torch's default.

    torch's kernels multiply and subtract with one rounding (a fused multiply-add), which float64
    gives exactly here; two roundings would be off by 1e-5 in the features.
    """
    scale = np.float64(np.float32(size) / np.float32(max(new_size, 1)))
    centre = (scale * (np.arange(new_size) + 0.5) - 0.5).astype(np.float32).clip(0)
    first = np.minimum(centre.astype(np.int32), size - 1)
    second = np.minimum(first + 1, size - 1)
    fraction = np.clip(centre - first.astype(np.float32), 0, 1)
    return np.stack([first, second], 1), np.stack([1 - fraction, fraction], 1)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
