"""Clips of Qwen's families: how many frames, in which size, and at what times.

Integers of the host. The limits are those that the models were trained with (qwen-vl-utils): every
frame has a most, and all together have one, of which each frame gets an equal part. transformers
5.24 does the second only where it is told to (`cap_pixels_per_frame`), here it is always done.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from unime_jax.backbones.preprocessing.frame_sampling import Sampling, sampled, sampled_rate
from unime_jax.backbones.qwen2_vl.dynamic_resolution import (
    Size,
    check_aspect,
    largest_area,
    smart_resize,
)

FLOOR = 1.05  # of the least pixels, what a frame gets of a clip with any number of frames


@dataclasses.dataclass(frozen=True)
class ClipRule:
    """A family's way to see clips.

    Attributes:
      sampling: of the frames.
      frame_pixels: least and most pixels of a frame; with `joint` the first is of all frames.
      clip_pixels: most pixels of all frames together.
      joint: a size is chosen for all frames at once, and every time step is an image in the prompt,
        with its time in words (Qwen3-VL); if not, for one frame, and the clip is one block of
        tokens (Qwen2-VL, Qwen2.5-VL).
    """

    sampling: Sampling
    frame_pixels: tuple[int, int]
    clip_pixels: int
    joint: bool

    def __post_init__(self) -> None:
        least, most = self.frame_pixels
        if not 0 < least <= most or not self.clip_pixels > 0:
            raise ValueError(
                f"frames of clips have {least} to {most} pixels, and {self.clip_pixels} together;"
                " all must be positive, and the least before the most"
            )

    def frames(self, frames: int, rate: float | None) -> list[int]:
        """Numbers of the frames that are seen; at least one, the last perhaps of half a step."""
        return sampled(frames, rate, self.sampling)

    def size(self, frames: int, height: int, width: int, side: int) -> Size:
        """Height and width, multiples of `side`, of each of so many seen frames.

        Raises:
          ValueError: one side is more than 200 times the other.
        """
        least, most = self.frame_pixels
        share = max(min(most, self.clip_pixels // frames), int(least * FLOOR))
        if not self.joint:
            return smart_resize(height, width, side, least, share, what="a frame")
        frames = max(frames, self.sampling.span)
        return resize_all(frames, height, width, side, self.sampling.span, least, share * frames)

    def largest_area(self, side: int) -> int:
        """Pixels that no frame's size goes beyond."""
        least, most = self.frame_pixels
        share = max(most, int(least * FLOOR))
        # All frames are counted as whole time steps, of which five are two.
        return largest_area(side, least, share + share // 4 if self.joint else share)

    def times(
        self, frames: int, rate: float | None, count: int, tokens_per_second: float
    ) -> tuple[int, ...]:
        """Positions of the time steps of a clip's one block, from 0 on.

        They are numbered, or, with `tokens_per_second`, the ticks of a clock (Qwen2.5-VL), cut to
        integers from floats of 32 bits, as transformers has them.
        """
        span = self.sampling.span
        steps = math.ceil(count / span)
        if not tokens_per_second:
            return tuple(range(steps))
        seconds = np.float32(span / sampled_rate(frames, rate, count, self.sampling))
        ticks = np.arange(steps, dtype=np.float32) * (np.float32(tokens_per_second) * seconds)
        return tuple(ticks.astype(np.int64).tolist())

    def seconds(self, indices: Sequence[int], rate: float | None) -> list[float]:
        """Seconds of each time step: the mean of those of its first and last frame."""
        span, each = self.sampling.span, rate or self.sampling.fps
        seconds = [index / each for index in filled(indices, span)]
        return [(seconds[i] + seconds[i + span - 1]) / 2 for i in range(0, len(seconds), span)]


def filled(indices: Sequence[int], span: int) -> list[int]:
    """Numbers of frames with the last repeated until they are whole time steps."""
    return [*indices, *[indices[-1]] * (-len(indices) % span)]


def resize_all(
    frames: int, height: int, width: int, side: int, span: int, least: int, most: int
) -> Size:
    """`smart_resize` of all frames of a clip at once (Qwen3-VL); `least` and `most` are of all.

    Raises:
      ValueError: one side is more than 200 times the other.
    """
    if min(height, width) < side:
        scale = max(side / height, side / width)
        height, width = int(height * scale), int(width * scale)
    check_aspect(height, width, "a frame")
    new_height, new_width = round(height / side) * side, round(width / side) * side
    area = round(frames / span) * span * new_height * new_width
    if area > most:
        shrinkage = math.sqrt((frames * height * width) / most)
        return (
            max(side, math.floor(height / shrinkage / side) * side),
            max(side, math.floor(width / shrinkage / side) * side),
        )
    if area < least:
        growth = math.sqrt(least / (frames * height * width))
        return math.ceil(height * growth / side) * side, math.ceil(width * growth / side) * side
    return new_height, new_width
