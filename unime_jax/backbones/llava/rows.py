"""Items to rows for LLaVA-NeXT and LLaVA-OneVision: tokens, image slots and uint8 patches.

The same numbers as transformers' processors, without torch or torchvision and without floats: the
pixels stay bytes (the device rescales and normalises) and the image token is expanded here;
`anyres` gives the features that each copy reads. Padding and batching are the loader's.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

from unime_jax.backbones.llava import anyres
from unime_jax.backbones.preprocessing.clip_frames import frames, opened, refusals
from unime_jax.backbones.preprocessing.clip_places import ClipTokens
from unime_jax.backbones.preprocessing.frame_sampling import Steps, stepped
from unime_jax.backbones.preprocessing.images import FixedSize, decode_image, refusal
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.batch import Item, Row
from unime_jax.data.settings import ClipNewlines


@dataclasses.dataclass(frozen=True)
class Clips:
    """How clips are seen: which frames, and where newlines are among their tokens."""

    steps: Steps
    newlines: ClipNewlines


class _Seen(NamedTuple):
    """Tokens of an image or clip as rows of a table of its tiles, and their weights."""

    slot: Int32[np.ndarray, "t S"]
    weight: Float32[np.ndarray, "t S"]
    made: int  # tiles, when they are made, last
    tiles: Callable[[], UInt8[np.ndarray, "n tile tile 3"]]


@dataclasses.dataclass(frozen=True)
class LlavaPreprocessor:
    """Callable `Item -> Row`; picklable.

    A row has token ids in reading order, positions 0, 1, ... (A = 1), and slots of
    `slots_per_token` table rows as `anyres.image_slots` gives them (-1 for text), of 4 if there is
    a clip; of several images and clips, each one's rows follow those of the one before in the
    prompt. If the prompt's `missing_images` is "image", rows have `patch_position`: 0 for the
    pixels of images, -1 for a tile of zeros, which stands for an image that is marked and missing
    (LLaVE's image of shape (1, 3, h, w)).
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
    clips: Clips | str  # or why none are taken

    @property
    def side(self) -> int:
        """Patches along a side of a tile; pixels that fill no patch are dropped, as in a conv."""
        return self.tile // self.patch

    @functools.cached_property
    def slots_per_token(self) -> int:
        """S of rows without clips: 4 if maps can be shrunk under these pinpoints, else 1."""
        blended = anyres.resamples(
            self.pinpoints, tile=self.tile, side=self.side, max_tiles=self.max_tiles
        )
        return anyres.BLEND if blended else 1

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
          ValueError: an image or clip is missing or unreadable, or there may be no clips, or the
            row cannot be made short enough.
        """
        kinds = [media.kind for media in item.media]
        blend = anyres.BLEND if "clip" in kinds else self.slots_per_token
        tiled = kinds.count("image") == 1 or self.tiles_of_many
        with contextlib.ExitStack() as stack:
            seen = [
                self._image(item, number, tiled=tiled, blend=blend)
                if kind == "image"
                else self._clip(item, number, stack)
                for number, kind in enumerate(kinds)
            ]
            wanted = [
                len(one.slot)
                if kind == "image"
                else ClipTokens(self.prompt.clip_token, (len(one.slot),))
                for one, kind in zip(seen, kinds, strict=True)
            ]
            absent = [self._absent(blend)] * self._absences(item)
            wanted += [len(one.slot) for one in absent]
            ids, truncated, unmatched, counts = self.prompt(item, wanted)
            seen = [seen[number] for number in self.prompt.order(item)] + absent
            tiles = [one.tiles() for one in seen]
        tokens, is_image = self.prompt.expand(ids, counts)
        slot = np.full((len(tokens), blend), anyres.TEXT, np.int32)
        weight = np.zeros(slot.shape, np.float32)
        patches = position = None
        if seen:
            before = self.side**2 * np.cumsum([0, *(one.made for one in seen[:-1])])
            slot[is_image] = np.concatenate(
                [
                    np.where(one.slot == anyres.NEWLINE, one.slot, one.slot + start)
                    for one, start in zip(seen, before, strict=True)
                ]
            )
            weight[is_image] = np.concatenate([one.weight for one in seen])
            patches = anyres.cut_patches(np.concatenate(tiles), self.patch)
            if self.prompt.missing_images == "image":
                position = np.zeros((*patches.shape[:2], 3), np.int32)
                position[len(patches) - len(absent) :] = -1
        return Row(
            tokens=tokens,
            positions=np.arange(len(tokens), dtype=np.int32)[:, None],
            slot=slot,
            slot_weight=weight if blend > 1 else None,
            patches=patches,
            patch_position=position,
            truncated=truncated,
            unmatched_markers=unmatched,
            clips=kinds.count("clip"),
        )

    def image_slots(
        self, height: int, width: int, blend: int
    ) -> tuple[Int32[np.ndarray, "t S"], Float32[np.ndarray, "t S"]]:
        """Slots of the tokens of an image that is cut into tiles, S = `blend`, and weights."""
        slot, weight = anyres.image_slots(
            height,
            width,
            pinpoints=self.pinpoints,
            tile=self.tile,
            side=self.side,
            max_tiles=self.max_tiles,
        )
        if weight is None:
            slot = np.repeat(slot, blend, axis=1)
            weight = np.tile(anyres.UNBLENDED[:blend], (len(slot), 1))
        return slot, weight

    def _image(self, item: Item, number: int, *, tiled: bool, blend: int) -> _Seen:
        image = decode_image(item, number, self.image_size)
        if not tiled:
            slot, weight = anyres.untiled_slots(self.side, blend)
            square = functools.partial(
                anyres.square_tile, image, self.tile, self.resample, self.background
            )
            return _Seen(slot, weight, 1, lambda: square()[None])
        with refusals(item, number):
            slot, weight = self.image_slots(image.height, image.width, blend)
        count = anyres.count_tiles(
            image.height, image.width, pinpoints=self.pinpoints, tile=self.tile
        )
        tiles = functools.partial(
            anyres.cut_tiles, image, self.pinpoints, self.tile, self.resample, self.legacy
        )
        return _Seen(slot, weight, count, tiles)

    def _clip(self, item: Item, number: int, stack: contextlib.ExitStack) -> _Seen:
        """A clip, which stays open until the stack is closed."""
        clips = self.clips
        if isinstance(clips, str):
            raise refusal(item, number, f"{item.media[number].path!r} is a clip; {clips}")
        clip = stack.enter_context(opened(item, number))
        chosen = stepped(clip.facts.frames, clip.facts.fps, clips.steps)
        slot, weight = anyres.clip_slots(len(chosen), self.side, clips.newlines)

        def tiles() -> UInt8[np.ndarray, "n tile tile 3"]:
            images = frames(item, number, clip, chosen)
            return np.stack([anyres.base_tile(x, self.tile, self.resample) for x in images])

        return _Seen(slot, weight, len(chosen), tiles)

    def _absences(self, item: Item) -> int:
        return self.prompt.empty_places(item) if self.prompt.missing_images == "image" else 0

    def _absent(self, blend: int) -> _Seen:
        slot, weight = anyres.untiled_slots(self.side, blend)
        return _Seen(slot, weight, 1, lambda: np.zeros((1, self.tile, self.tile, 3), np.uint8))
