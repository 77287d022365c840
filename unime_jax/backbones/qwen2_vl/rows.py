"""Items to rows for Qwen's families: images and clips in about their own size, in runs of patches.

The same numbers as transformers' processor, without torch or torchvision and without floats: the
pixels stay bytes. A bucket's tiles are runs of `TILE` patches, so rows of any mixture of image
shapes have constant shapes on the device; every image, and every time step of a clip, starts a tile
of its own. Patches of a window follow each other, so that the tower finds it without looking
anywhere else, and slots put the tokens back in reading order.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image

from unime_jax.backbones.preprocessing.clip_frames import frames, opened, refusals
from unime_jax.backbones.preprocessing.clip_places import ClipTokens, MediaTokens
from unime_jax.backbones.preprocessing.images import FixedSize, decode_image, refusal
from unime_jax.backbones.preprocessing.prompts import Prompt
from unime_jax.backbones.qwen2_vl.clips import ClipRule, filled
from unime_jax.backbones.qwen2_vl.dynamic_resolution import (
    Place,
    Size,
    cut_patches,
    patch_places,
    positions,
    smart_resize,
    window_order,
)
from unime_jax.batch import Item, Row
from unime_jax.data.clips import Clip

TILE = 256  # patches: 64 tokens, or 224 x 224 pixels, of the published models


class _Seen(NamedTuple):
    """An image, or a clip that is open, as it is seen; its pixels are still to come.

    `steps`: of time, of `span` frames each, and of rows x columns tokens.
    """

    rows: int
    columns: int
    steps: int
    span: int
    tokens: MediaTokens
    places: tuple[Place, ...]
    frames: Callable[[], Iterator[Image.Image]]


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
    image_size: FixedSize  # that images, not frames of clips, are resized to first
    clips: ClipRule
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
        order = window_order((int(height) // self.merge, int(width) // self.merge), self.window)
        return tokens[order].reshape(-1, 3 * area)

    def __call__(self, item: Item) -> Row:
        """Row of an item, cut to the prompt's `max_length`.

        `truncated` counts the tokens cut off, `unmatched_markers` the image markers without an
        image, left out or kept. Frames of clips are decoded and resized one by one, once it is
        known that the row is short enough.

        Raises:
          ValueError: an image or clip is missing, unreadable or a mere line, or the row cannot be
            made short enough.
        """
        with contextlib.ExitStack() as stack:
            media = [self._seen(item, number, stack) for number in range(len(item.media))]
            ids, truncated, unmatched, counts = self.prompt(item, [seen.tokens for seen in media])
            in_order = [media[number] for number in self.prompt.order(item)]
            patches, place, slots = self._tiles(in_order)
        tokens, is_image = self.prompt.expand(ids, counts)
        slot = np.full((len(tokens), 1), -1, np.int32)
        slot[is_image, 0] = slots
        return Row(
            tokens=tokens,
            positions=self._positions(ids, [place for seen in in_order for place in seen.places]),
            slot=slot,
            patches=patches if media else None,
            patch_position=place if media else None,
            truncated=truncated,
            unmatched_markers=unmatched,
            clips=sum(medium.kind == "clip" for medium in item.media),
        )

    def _seen(self, item: Item, number: int, stack: contextlib.ExitStack) -> _Seen:
        """One of an item's media; clips stay open until the stack is closed."""
        if item.media[number].kind == "clip":
            return self._seen_clip(item, number, stack.enter_context(opened(item, number)))
        image = decode_image(item, number, self.image_size)
        with refusals(item, number):
            height, width = smart_resize(
                image.height, image.width, self.patch * self.merge, *self.pixels
            )
        rows, columns = self._merged(height, width)
        places = (Place(rows, columns),)
        return _Seen(rows, columns, 1, 1, rows * columns, places, lambda: iter((image,)))

    def _seen_clip(self, item: Item, number: int, clip: Clip) -> _Seen:
        if not self.prompt.clip_token:
            raise refusal(item, number, "this model's tokenizer has no token of clips")
        rule, facts = self.clips, clip.facts
        indices = rule.frames(facts.frames, facts.fps)
        with refusals(item, number):
            size = rule.size(len(indices), facts.height, facts.width, self.patch * self.merge)
        rows, columns = self._merged(*size)
        if rule.joint:
            seconds = rule.seconds(indices, facts.fps)
            words = "".join(f"<{time:.1f} seconds>{self.prompt.clip_place}" for time in seconds)
            places = (Place(rows, columns),) * len(seconds)
        else:
            words = self.prompt.clip_token
            times = rule.times(facts.frames, facts.fps, len(indices), self.tokens_per_second)
            places = (Place(rows, columns, times),)
        counts = tuple(rows * columns * len(place.times) for place in places)
        span = rule.sampling.span
        whole = filled(indices, span)
        return _Seen(
            rows,
            columns,
            len(whole) // span,
            span,
            ClipTokens(words, counts),
            places,
            lambda: frames(item, number, clip, whole),
        )

    def _merged(self, height: int, width: int) -> Size:
        """Tokens along the height and the width of so many pixels."""
        side = self.patch * self.merge
        return height // side, width // side

    def _tiles(
        self, media: Sequence[_Seen]
    ) -> tuple[UInt8[np.ndarray, "n P F"], Int32[np.ndarray, "n P 3"], Int32[np.ndarray, " _"]]:
        """Patches and their positions, and the slots of all tokens, in order.

        Every time step has tiles of its own, the last filled up. Beside clips, images are repeated.
        """
        span = max((seen.span for seen in media), default=1)
        square, area = self.merge**2, self.patch**2
        # Patches of a time step with those that fill it up.
        room = [-(-seen.rows * seen.columns * square // self.tile) * self.tile for seen in media]
        total = sum(seen.steps * own for seen, own in zip(media, room, strict=True))
        patches = np.zeros((total, 3, span, area), np.uint8)
        place = np.full((total, 3), -1, np.int32)
        slots = [np.zeros(0, np.int32)]
        first = number = 0  # patches and time steps before those of a medium
        for seen, own in zip(media, room, strict=True):
            grid = seen.rows * self.merge, seen.columns * self.merge
            order = window_order((seen.rows, seen.columns), self.window)
            places = self._ordered(patch_places(grid, self.merge), order)
            for step in range(seen.steps):
                start = first + step * own
                place[start : start + len(places)] = np.pad(
                    places, ((0, 0), (1, 0)), constant_values=number + step
                )
                slots.append(start // square + np.argsort(order).astype(np.int32))
            for i, frame in enumerate(seen.frames()):
                cut = cut_patches(
                    frame, grid, patch=self.patch, merge=self.merge, resample=self.resample
                )
                start, which = first + i // seen.span * own, i % seen.span
                last = which + 1 if seen.span > 1 else span
                cut = self._ordered(cut, order).reshape(len(cut), 3, 1, area)
                patches[start : start + len(cut), :, which:last] = cut
            first, number = first + seen.steps * own, number + seen.steps
        return (
            patches.reshape(-1, self.tile, 3 * span * area),
            place.reshape(-1, self.tile, 3),
            np.concatenate(slots),
        )

    def _ordered(self, of_patches: np.ndarray, order: Int32[np.ndarray, " tokens"]) -> np.ndarray:
        """What patches have, row after row of tokens, in another order of the tokens."""
        by_token = of_patches.reshape(len(order), self.merge**2, -1)
        return by_token[order].reshape(of_patches.shape)

    def _positions(self, ids: Sequence[int], places: Sequence[Place]) -> Int32[np.ndarray, "t 3"]:
        media, remaining = (self.prompt.image_token_id, self.prompt.clip_token_id), iter(places)
        of_tokens = [next(remaining, None) if token in media else None for token in ids]
        before = [None, *ids[:-1]]
        return positions(
            of_tokens, [self.grid_positions or token == self.vision_start_id for token in before]
        )
