"""Items to rows for dual encoders: the tokens of a text, and a tile of each image."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from unime_jax.backbones.dual_encoder.pair_prompt import PairPrompt
from unime_jax.backbones.llava import anyres
from unime_jax.backbones.preprocessing.images import decode_images, for_each_image
from unime_jax.batch import Item, Row


@dataclasses.dataclass(frozen=True)
class Resizing:
    """How an image becomes a square tile.

    `shortest_edge`: pixels that the shorter side is resized to, and the middle is cut out, as
    CLIP does; None: the image is stretched to the tile, as SigLIP does.
    """

    shortest_edge: int | None
    resample: int  # Pillow's number of the filter

    def __call__(self, image: Image.Image, tile: int) -> UInt8[np.ndarray, "tile tile 3"]:
        """Pixels of the tile; zeros where a short side leaves some of it empty."""
        filter = Image.Resampling(self.resample)
        if self.shortest_edge is None:
            return np.asarray(image.resize((tile, tile), filter))
        short = min(image.size)
        size = tuple(int(self.shortest_edge * side / short) for side in image.size)
        image = image.resize((size[0], size[1]), filter)
        left, top = ((side - tile) // 2 for side in size)
        return np.asarray(image.crop((left, top, left + tile, top + tile)))


@dataclasses.dataclass(frozen=True)
class PairPreprocessor:
    """Callable `Item -> Row`; picklable.

    A row has the tokens of the item's text, none if it has no text, positions 0, 1, ... (A = 1),
    slots -1 (S = 1), and a tile for each image. `patch_position` is (image, row, column).
    """

    prompt: PairPrompt
    resizing: Resizing
    tile: int  # pixels along a side of a tile
    patch: int  # pixels along a side of a patch
    image_size: tuple[int, int] | None  # (height, width) that every image is resized to first

    def as_patches(
        self, pixel_values: Float[np.ndarray, "n 3 height width"]
    ) -> Float[np.ndarray, "patches F"]:
        """Pixels of transformers' image processor, patch by patch as in a row."""
        patches = anyres.cut_patches(pixel_values.transpose(0, 2, 3, 1), self.patch)
        return patches.reshape(-1, patches.shape[-1])

    def __call__(self, item: Item) -> Row:
        """Row of an item.

        `truncated` counts the tokens cut off, `unmatched_markers` the image markers without an
        image, which are left out, as all are.

        Raises:
          ValueError: an image is missing or unreadable, or the text cannot be made short enough.
        """
        images = decode_images(item, self.image_size)
        tiles = for_each_image(item, images, lambda image: self.resizing(image, self.tile))
        ids, truncated, unmatched = self.prompt(item)
        patches = position = None
        if tiles:
            patches = anyres.cut_patches(np.stack(tiles), self.patch)
            position = self._positions(len(tiles))
        return Row(
            tokens=np.array(ids, np.int32),
            positions=np.arange(len(ids), dtype=np.int32)[:, None],
            slot=np.full((len(ids), 1), -1, np.int32),
            patches=patches,
            patch_position=position,
            truncated=truncated,
            unmatched_markers=unmatched,
        )

    def _positions(self, images: int) -> np.ndarray:
        side = self.tile // self.patch
        grid = np.indices((images, side, side), dtype=np.int32)
        return grid.reshape(3, images, -1).transpose(1, 2, 0)
