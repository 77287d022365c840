"""Items to rows for LLaVA-NeXT and LLaVA-OneVision: tokens, image slots and uint8 patches.

The same numbers as transformers' processors, without torch or torchvision and without floats: the
pixels stay bytes (the device rescales and normalises) and the image token is expanded here;
`anyres` gives the features that each copy reads. Padding and batching are the loader's.
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from PIL import Image

from unime_jax.backbones.llava import anyres
from unime_jax.backbones.preprocessing.images import FixedSize, decode_images, for_each_image
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.batch import Item, Row


@dataclasses.dataclass(frozen=True)
class LlavaPreprocessor:
    """Callable `Item -> Row`; picklable.

    A row has token ids in reading order, positions 0, 1, ... (A = 1), and slots of
    `slots_per_token` table rows as `anyres.image_slots` gives them (-1 for text); of several
    images, each one's rows follow those of the image before. If the prompt's `missing_images` is
    "image", rows have `patch_position`: 0 for the pixels of images, -1 for a tile of zeros, which
    stands for an image that is marked and missing (LLaVE's image of shape (1, 3, h, w)).
    """

    prompt: Prompt
    pinpoints: tuple[anyres.Size, ...]
    tile: int  # pixels along a side of a tile
    patch: int  # pixels along a side of a patch
    max_tiles: int | None  # larger maps are shrunk; None: never
    tiles_of_many: bool  # whether several images of one item are cut into tiles, too
    background: tuple[int, int, int]  # around those that are not cut
    resample: int  # Pillow's number of the resizing filter
    image_size: FixedSize  # that images are resized to first
    legacy: anyres.Legacy | None

    @property
    def side(self) -> int:
        """Patches along a side of a tile; pixels that fill no patch are dropped, as in a conv."""
        return self.tile // self.patch

    @functools.cached_property
    def slots_per_token(self) -> int:
        """S of every row: 4 if maps can be shrunk under these pinpoints, else 1."""
        blended = anyres.resamples(
            self.pinpoints, tile=self.tile, side=self.side, max_tiles=self.max_tiles
        )
        return 4 if blended else 1

    def as_patches(self, inputs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "patches F"]:
        """Pixels of transformers' image processor for one image, patch by patch as in a row."""
        tiles = inputs["pixel_values"][0].transpose(0, 2, 3, 1)
        patches = anyres.cut_patches(tiles, self.patch)
        return patches.reshape(-1, patches.shape[-1])

    def __call__(self, item: Item) -> Row:
        """Row of an item, cut to the prompt's `max_length`.

        `truncated` counts the tokens cut off, `unmatched_markers` the image markers without an
        image, left out or kept.

        Raises:
          ValueError: an image is missing or unreadable, or the row cannot be made short enough.
        """
        images = decode_images(item, self.image_size)
        tiled = len(images) == 1 or self.tiles_of_many
        absent = self.prompt.empty_places(item) if self.prompt.missing_images == "image" else 0
        seen = for_each_image(item, images, functools.partial(self._slots, tiled=tiled))
        seen += [anyres.untiled_slots(self.side, self.slots_per_token)] * absent
        ids, truncated, unmatched, _ = self.prompt(item, [len(slot) for slot, _ in seen])
        tokens, is_image = self.prompt.expand(ids, [len(slot) for slot, _ in seen])
        slot = np.full((len(tokens), self.slots_per_token), anyres.TEXT, np.int32)
        weight = np.zeros(slot.shape, np.float32)
        patches = position = None
        if seen:
            cut = [self._tiles(image, tiled=tiled) for image in images]
            cut += [np.zeros((1, self.tile, self.tile, 3), np.uint8)] * absent
            tiles_before = np.cumsum([0, *map(len, cut[:-1])])
            slot[is_image] = np.concatenate(
                [
                    np.where(s == anyres.NEWLINE, s, s + before * self.side**2)
                    for (s, _), before in zip(seen, tiles_before, strict=True)
                ]
            )
            weight[is_image] = np.concatenate([w for _, w in seen])
            patches = anyres.cut_patches(np.concatenate(cut), self.patch)
            if self.prompt.missing_images == "image":
                position = np.zeros((*patches.shape[:2], 3), np.int32)
                position[len(patches) - absent :] = -1
        return Row(
            tokens=tokens,
            positions=np.arange(len(tokens), dtype=np.int32)[:, None],
            slot=slot,
            slot_weight=weight if self.slots_per_token > 1 else None,
            patches=patches,
            patch_position=position,
            truncated=truncated,
            unmatched_markers=unmatched,
        )

    def _slots(self, image: Image.Image, *, tiled: bool) -> tuple[np.ndarray, np.ndarray]:
        if not tiled:
            return anyres.untiled_slots(self.side, self.slots_per_token)
        slot, weight = anyres.image_slots(
            image.height,
            image.width,
            pinpoints=self.pinpoints,
            tile=self.tile,
            side=self.side,
            max_tiles=self.max_tiles,
        )
        return slot, np.ones(slot.shape, np.float32) if weight is None else weight

    def _tiles(self, image: Image.Image, *, tiled: bool) -> np.ndarray:
        if not tiled:
            return anyres.square_tile(image, self.tile, self.resample, self.background)[None]
        return anyres.cut_tiles(image, self.pinpoints, self.tile, self.resample, self.legacy)
