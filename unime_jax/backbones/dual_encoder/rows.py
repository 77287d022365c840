"""Items to rows for dual encoders: the tokens of a text, and a tile of each image."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from unime_jax.backbones.dual_encoder.pair_prompt import PairPrompt
from unime_jax.backbones.dual_encoder.tiles import Flexible, Square
from unime_jax.backbones.preprocessing.images import decode_images, for_each_image
from unime_jax.batch import Item, Row


@dataclasses.dataclass(frozen=True)
class PairPreprocessor:
    """Callable `Item -> Row`; picklable.

    A row has the tokens of the item's text, none if it has no text, positions 0, 1, ... (A = 1),
    slots -1 (S = 1), and a tile for each image. `patch_position` is (image, row, column), -1 where
    the image leaves some of its tile empty.
    """

    prompt: PairPrompt
    tile: Square | Flexible
    image_size: tuple[int, int] | None  # (height, width) that every image is resized to first

    def as_patches(self, inputs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "patches F"]:
        """Pixels of transformers' image processor, patch by patch as in a row."""
        patches = self.tile.as_patches(inputs["pixel_values"])
        return patches.reshape(-1, patches.shape[-1])

    def __call__(self, item: Item) -> Row:
        """Row of an item.

        `truncated` counts the tokens cut off, `unmatched_markers` the image markers without an
        image, which are left out, as all are.

        Raises:
          ValueError: an image is missing or unreadable, or the text cannot be made short enough.
        """
        images = decode_images(item, self.image_size)
        tiles = for_each_image(item, images, self.tile)
        ids, truncated, unmatched, _ = self.prompt(item)
        patches = position = None
        if tiles:
            patches = np.stack([tile.patches for tile in tiles])
            position = np.stack([_numbered(tile.places, i) for i, tile in enumerate(tiles)])
        return Row(
            tokens=np.array(ids, np.int32),
            positions=np.arange(len(ids), dtype=np.int32)[:, None],
            slot=np.full((len(ids), 1), -1, np.int32),
            patches=patches,
            patch_position=position,
            truncated=truncated,
            unmatched_markers=unmatched,
        )


def _numbered(places: np.ndarray, image: int) -> np.ndarray:
    """Positions of patches [P, 3], with the number of their image in front."""
    number = np.where(places[:, :1] < 0, -1, image)
    return np.concatenate([number, places], axis=1).astype(np.int32)
