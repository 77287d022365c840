"""Global views of tiled images, resized on the device from their tiles.

Their values lie between those of bytes, so they could not travel as bytes. A canvas of whole tiles
is shrunk by whole numbers, and resizing is separable: each tile's part in the view is a product of
the tile with two matrices, which follow from its place. Shapes are static whatever the images.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

A = -0.75  # of the cubic kernel, as in torch


def fill_global_views(
    tiles: Float[Array, "R N P F"], position: Int[Array, "R N P 3"]
) -> Float[Array, "R N P F"]:
    """Tiles with every global view filled in: its image's canvas, resized to one tile.

    As torch's bicubic `interpolate` without antialiasing, on the normalised values.

    Args:
      tiles: pixel values by patch, each patch (channel, y, x).
      position: of every patch, the number of its image and its row and column in that image's
        canvas; row and column are -1 in a global view, all three where a tile stays as it is.
    """
    rows, count, patches, values = tiles.shape
    side, patch = math.isqrt(patches), math.isqrt(values // 3)
    image, row, column = jnp.moveaxis(position[:, :, 0], -1, 0)  # of the first patch, [R, N]
    is_view = (image >= 0) & (row < 0)
    is_crop = (image >= 0) & (row >= 0)
    row, column = row // side, column // side
    shown = (image[:, :, None] == image[:, None, :]) & is_crop[:, None, :]  # crops of its image
    down, across = (
        _resize_matrix(
            place, jnp.max(jnp.where(shown, place[:, None], 0), axis=2) + 1, side * patch
        )
        for place in (row, column)
    )
    grid = (rows, count, side, side, 3, patch, patch)
    x = tiles.reshape(grid).transpose(0, 1, 4, 2, 5, 3, 6)
    x = x.reshape(rows, count, 3, side * patch, side * patch)
    highest = jax.lax.Precision.HIGHEST  # pixels are no place to round
    x = jnp.einsum("rnsy,rncyx->rncsx", down, x, precision=highest)
    x = jnp.einsum("rntx,rncsx->rncst", across, x, precision=highest)
    x = jnp.einsum("rgn,rncst->rgcst", shown.astype(x.dtype), x, precision=highest)
    x = x.reshape(rows, count, 3, side, patch, side, patch).transpose(0, 1, 3, 5, 2, 4, 6)
    return jnp.where(is_view[:, :, None, None], x.reshape(tiles.shape), tiles)


def _resize_matrix(
    place: Int[Array, "R N"], tiles: Int[Array, "R N"], size: int
) -> Float[Array, "R N lines lines"]:
    """Weights of a tile's lines in the lines of its global view.

    Args:
      place: of the tile along this axis of its canvas.
      tiles: of the canvas along it.
      size: lines of a tile, and of the view.
    """
    length = tiles[..., None] * size
    center = (jnp.arange(size) + 0.5) * tiles[..., None] - 0.5
    first = jnp.floor(center).astype(jnp.int32) - 1
    matrix = jnp.zeros((*place.shape, size, size))
    for tap in range(4):
        distance = jnp.abs(center - (first + tap))
        line = jnp.clip(first + tap, 0, length - 1) - place[..., None] * size
        here = line[..., None] == jnp.arange(size)
        matrix += jnp.where(here, _cubic(distance)[..., None], 0.0)
    return matrix


def _cubic(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """The convolution kernel of Keys (1981) at distances of 0 to 2."""
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = ((A * x - 5 * A) * x + 8 * A) * x - 4 * A
    return jnp.where(x <= 1, near, far)
