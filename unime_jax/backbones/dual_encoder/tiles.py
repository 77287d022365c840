"""An image as one tile of patches: cut out of the middle, stretched, or in its own aspect."""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image

from unime_jax.backbones.llava import anyres

SCALES = 1e-6, 100.0  # of an image's sides, that are tried
PRECISION = 1e-5  # of the scale


class Tile(NamedTuple):
    """Patches of an image, and the row and column of each; -1: it is padding."""

    patches: UInt8[np.ndarray, "P F"]
    places: Int32[np.ndarray, "P 2"]


@dataclasses.dataclass(frozen=True)
class Square:
    """A square tile of constant size.

    `shortest_edge`: pixels that the shorter side is resized to, and the middle is cut out, as
    CLIP does; None: the image is stretched to the tile, as SigLIP does.
    """

    side: int  # pixels of the tile
    patch: int  # pixels along a side of a patch
    shortest_edge: int | None
    resample: int  # Pillow's number of the filter

    @property
    def patches(self) -> int:
        """P: patches of a tile."""
        return (self.side // self.patch) ** 2

    @property
    def processor_kwargs(self) -> dict[str, int]:
        """What transformers' processor must be told in a call: nothing."""
        return {}

    def __call__(self, image: Image.Image) -> Tile:
        resampling = Image.Resampling(self.resample)
        if self.shortest_edge is None:
            image = image.resize((self.side, self.side), resampling)
        else:
            short = min(image.size)
            width, height = (int(self.shortest_edge * side / short) for side in image.size)
            left, top = (width - self.side) // 2, (height - self.side) // 2
            image = image.resize((width, height), resampling)
            image = image.crop((left, top, left + self.side, top + self.side))
        (patches,) = anyres.cut_patches(np.asarray(image)[None], self.patch)
        return Tile(patches, _places(self.side // self.patch, self.side // self.patch))

    def as_patches(
        self, pixel_values: Float[np.ndarray, "n 3 height width"]
    ) -> Float[np.ndarray, "n P F"]:
        """Pixels of transformers' image processor as the patches of rows."""
        return anyres.cut_patches(pixel_values.transpose(0, 2, 3, 1), self.patch)


@dataclasses.dataclass(frozen=True)
class Flexible:
    """A tile in the image's own aspect, whose patches are at most `patches` (NaFlex)."""

    patch: int  # pixels along a side of a patch
    patches: int  # P: most patches of an image
    resample: int  # Pillow's number of the filter

    @property
    def processor_kwargs(self) -> dict[str, int]:
        """What transformers' processor must be told in a call.

        It does not read the settings of its image processor, but takes the published models'.
        """
        return {"max_num_patches": self.patches, "patch_size": self.patch}

    def __call__(self, image: Image.Image) -> Tile:
        rows, columns = grid_of(image.height, image.width, patch=self.patch, most=self.patches)
        size = columns * self.patch, rows * self.patch
        pixels = np.asarray(image.resize(size, Image.Resampling(self.resample)))
        cut = pixels.reshape(rows, self.patch, columns, self.patch, 3).transpose(0, 2, 4, 1, 3)
        cut = cut.reshape(rows * columns, -1)
        padding = ((0, self.patches - len(cut)), (0, 0))
        places = np.pad(_places(rows, columns), padding, constant_values=-1)
        return Tile(np.pad(cut, padding), places)

    def as_patches(self, pixel_values: Float[np.ndarray, "n P F"]) -> Float[np.ndarray, "n P F"]:
        """Pixels of transformers' image processor as the patches of rows."""
        images, count, values = pixel_values.shape
        by_pixel = pixel_values.reshape(images, count, values // 3, 3)
        return by_pixel.swapaxes(2, 3).reshape(pixel_values.shape)


@functools.lru_cache(maxsize=4096)
def grid_of(height: int, width: int, *, patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of the patches of an image, at most so many in all.

    The sides are scaled alike, as far as possible, and rounded up to whole patches. The scale is
    found by halving, as in transformers: where a side is about a whole number of patches, its
    last digits decide.
    """
    low, high = SCALES

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch)) for side in (height, width))
        return rows, columns

    while high - low >= PRECISION:
        middle = (low + high) / 2
        rows, columns = grid(middle)
        low, high = (middle, high) if rows * columns <= most else (low, middle)
    return grid(low)


def _places(rows: int, columns: int) -> np.ndarray:
    return np.indices((rows, columns), np.int32).reshape(2, -1).T
