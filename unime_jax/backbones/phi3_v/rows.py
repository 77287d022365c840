"""Items to rows for Phi-3.5-Vision: an image is a canvas of crops and a global view.

Image tokens have no id in the vocabulary; `hd_transform` gives the features that each reads.
"""

import dataclasses

import numpy as np
from PIL import Image

from unime_jax.backbones.llava import anyres
from unime_jax.backbones.phi3_v.hd_transform import (
    Canvas,
    canvas_of,
    cut_crops,
    patch_places,
    slots,
)
from unime_jax.backbones.phi3_v.numbered_prompt import NumberedPrompt
from unime_jax.backbones.preprocessing.images import decode_images, for_each_image
from unime_jax.batch import Item, Row


@dataclasses.dataclass(frozen=True)
class Phi3VPreprocessor:
    """Callable `Item -> Row`; picklable.

    A row has token ids in reading order, 0 for image tokens, positions 0, 1, ... (A = 1), and slots
    of one table row (S = 1). Every image has a tile for its global view, which is left empty, and
    then one for each crop.
    """

    prompt: NumberedPrompt
    tile: int  # pixels along a side of a tile
    patch: int  # pixels along a side of a patch
    crops: int  # of an image, at most
    image_size: tuple[int, int] | None  # (height, width) that every image is resized to first

    def __call__(self, item: Item) -> Row:
        """Row of an item, cut to the prompt's `max_length`.

        `truncated` counts the tokens cut off, `unmatched_markers` the image markers without an
        image, which are left out.

        Raises:
          ValueError: an image is missing, unreadable or a mere line, or the row cannot be made
            short enough.
        """
        images = decode_images(item, self.image_size)
        canvases = for_each_image(item, images, self._canvas)
        side = self.tile // self.patch
        tiles = [1 + canvas.grid[0] * canvas.grid[1] for canvas in canvases]
        first = np.cumsum([0, *tiles])
        places = [slots(canvas.grid, side, int(start)) for canvas, start in zip(canvases, first)]
        shown = [places[image] for image in self.prompt.shown(item)]
        counts = [len(place) for place in shown]
        ids, truncated, unmatched, _ = self.prompt(item, counts)
        tokens, is_image = self.prompt.expand(ids, counts)
        slot = np.full((len(tokens), 1), -1, np.int32)
        patches = position = None
        if images:
            tokens[is_image] = 0  # any id of the vocabulary: the embedding is replaced
            slot[is_image, 0] = np.concatenate(shown)
            patches = np.concatenate([self._patches(*pair) for pair in zip(images, canvases)])
            position = np.concatenate(
                [patch_places(canvas.grid, side, i) for i, canvas in enumerate(canvases)]
            )
        return Row(
            tokens=tokens,
            positions=np.arange(len(tokens), dtype=np.int32)[:, None],
            slot=slot,
            patches=patches,
            patch_position=position,
            truncated=truncated,
            unmatched_markers=unmatched,
        )

    def _canvas(self, image: Image.Image) -> Canvas:
        return canvas_of((image.height, image.width), crops=self.crops, tile=self.tile)

    def _patches(self, image: Image.Image, canvas: Canvas) -> np.ndarray:
        crops = cut_crops(image, canvas, self.tile)
        return anyres.cut_patches(np.pad(crops, ((1, 0), (0, 0), (0, 0), (0, 0))), self.patch)
