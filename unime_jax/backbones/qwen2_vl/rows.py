"""Items to rows for Qwen2-VL and Qwen2.5-VL: images in about their own size, in runs of patches.

The same numbers as transformers' processor, without torch or torchvision and without floats: the
pixels stay bytes. A bucket's tiles are runs of `TILE` patches, so rows of any mixture of image
shapes have constant shapes on the device; every image starts a tile of its own. Patches of a window
follow each other, so that the tower finds it without looking anywhere else, and slots put the
tokens back in reading order.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image

from unime_jax.backbones.preprocessing.images import FixedSize, decode_images, for_each_image
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.backbones.qwen2_vl.dynamic_resolution import (
    Size,
    cut_patches,
    patch_places,
    positions,
    smart_resize,
    window_order,
)
from unime_jax.batch import Item, Row

TILE = 256  # patches: 64 tokens, or 224 x 224 pixels, of the published models


@dataclasses.dataclass(frozen=True)
class Qwen2VlPreprocessor:
    """Callable `Item -> Row`; picklable.

    A row has token ids in reading order, positions of time, row and column (A = 3), and slots of
    one table row (S = 1): the tokens merged of the patches, which are in the order of windows.
    """

    prompt: Prompt
    patch: int  # pixels along a side of a patch
    merge: int  # merge x merge patches become one token
    tile: int  # patches, a multiple of merge**2
    pixels: tuple[int, int]  # least and most of an image
    resample: int  # Pillow's number of the resizing filter
    image_size: FixedSize  # that images are resized to first
    vision_start_id: int
    grid_positions: bool  # of every image, not only of those after a vision_start token
    window: int = 0  # tokens along a side of a window; 0: all of an image is one
    tokens_per_second: float = 0.0  # steps of a clip's time axis; 0: its frames are numbered

    def as_patches(self, inputs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "n F"]:
        """Pixels of transformers' image processor for one image, patch by patch as in a row.

        There every patch has its pixels once for each of the video frames that a patch spans.
        """
        pixel_values, area = inputs["pixel_values"], self.patch**2
        ((_, height, width),) = inputs["image_grid_thw"]
        frames = pixel_values.reshape(len(pixel_values), 3, -1, area)
        tokens = frames[:, :, 0].reshape(-1, self.merge**2, 3 * area)
        return tokens[self._order((int(height), int(width)))].reshape(-1, 3 * area)

    def __call__(self, item: Item) -> Row:
        """Row of an item, cut to the prompt's `max_length`.

        `truncated` counts the tokens cut off, `unmatched_markers` the image markers without an
        image, left out or kept.

        Raises:
          ValueError: an image is missing, unreadable or a mere line, or the row cannot be made
            short enough.
        """
        images = decode_images(item, self.image_size)
        grids = for_each_image(item, images, self._grid)
        merged = [(height // self.merge, width // self.merge) for height, width in grids]
        counts = [rows * columns for rows, columns in merged]
        ids, truncated, unmatched, _ = self.prompt(item, counts)
        tokens, is_image = self.prompt.expand(ids, counts)
        slot = np.full((len(tokens), 1), -1, np.int32)
        patches = place = None
        if images:
            cut = [self._tiles(i, image, grids[i]) for i, image in enumerate(images)]
            patches, place = (np.concatenate(parts) for parts in zip(*cut))
            tiles_before = np.cumsum([0, *(len(part) for part, _ in cut[:-1])])
            first = tiles_before * self.tile // self.merge**2
            slot[is_image, 0] = np.concatenate(
                [
                    start + np.argsort(self._order(grid))
                    for start, grid in zip(first, grids, strict=True)
                ]
            )
        return Row(
            tokens=tokens,
            positions=self._positions(ids, merged),
            slot=slot,
            patches=patches,
            patch_position=place,
            truncated=truncated,
            unmatched_markers=unmatched,
        )

    def _grid(self, image: Image.Image) -> Size:
        """Patches along the height and the width."""
        height, width = smart_resize(
            image.height, image.width, self.patch * self.merge, *self.pixels
        )
        return height // self.patch, width // self.patch

    def _order(self, grid: Size) -> Int32[np.ndarray, " tokens"]:
        """Numbers of an image's tokens in the order of its patches in a row."""
        return window_order((grid[0] // self.merge, grid[1] // self.merge), self.window)

    def _tiles(
        self, number: int, image: Image.Image, grid: Size
    ) -> tuple[UInt8[np.ndarray, "n P F"], Int32[np.ndarray, "n P 3"]]:
        """An image's patches and their positions, the last tile filled up."""
        patches = cut_patches(
            image, grid, patch=self.patch, merge=self.merge, resample=self.resample
        )
        place = np.pad(patch_places(grid, self.merge), ((0, 0), (1, 0)), constant_values=number)
        patches, place = (
            x.reshape(-1, self.merge**2, x.shape[1])[self._order(grid)].reshape(x.shape)
            for x in (patches, place)
        )
        fill = (0, -len(patches) % self.tile), (0, 0)
        patches, place = np.pad(patches, fill), np.pad(place, fill, constant_values=-1)
        return patches.reshape(-1, self.tile, patches.shape[1]), place.reshape(-1, self.tile, 3)

    def _positions(self, ids: Sequence[int], merged: Sequence[Size]) -> Int32[np.ndarray, "t 3"]:
        image, grids = self.prompt.image_token_id, iter(merged)
        sizes = [next(grids, None) if token == image else None for token in ids]
        before = [None, *ids[:-1]]
        return positions(
            sizes, [self.grid_positions or token == self.vision_start_id for token in before]
        )
