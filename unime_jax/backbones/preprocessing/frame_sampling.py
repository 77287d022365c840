"""Frame sampling: which frames of a clip a model sees, in integers, as each family publishes it.

A clip that is mere frames, without a rate, is taken as sampled already: none is left out but by the
limits on their number.
"""

import dataclasses
from typing import Literal

import numpy as np

Spread = Literal["floored", "rounded"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """A family's way to sample frames.

    Attributes:
      fps: frames a second of the clip's time that are wanted.
      least: frames of a clip, if it has as many.
      most: frames of a clip.
      spread: "floored": a multiple of `span` frames, at i * frames / count cut to integers, so that
        the last is before the end (Qwen2-VL's processor); "rounded": any number, evenly from the
        first to the last frame, rounded half to even (Qwen3-VL's).
      span: frames of one patch.
    """

    fps: float
    least: int
    most: int
    spread: Spread
    span: int

    def __post_init__(self) -> None:
        if not self.fps > 0 or not 1 <= self.least <= self.most:
            raise ValueError(
                f"clips are sampled at {self.fps} frames a second, {self.least} to {self.most} of"
                " them: the rate must be above 0, the limits 1 or more, and the least first"
            )


def sampled(frames: int, rate: float | None, sampling: Sampling) -> list[int]:
    """Numbers of the frames that are seen, ascending, of a clip of `frames` at `rate` a second.

    transformers computes the first kind in floats, which come out one frame earlier in places, and
    in others ask for a frame after the last.
    """
    if rate is None and frames <= sampling.most:
        return list(range(frames))
    wanted = frames / (rate or sampling.fps) * sampling.fps
    if sampling.spread == "floored":
        most = max(_floored(min(sampling.most, frames), sampling.span), 1)
        count = min(max(wanted, sampling.least), most)
        count = max(_floored(count, sampling.span), 1)
        return [i * frames // count for i in range(count)]
    count = min(max(int(wanted), sampling.least), sampling.most, frames)
    return np.linspace(0, frames - 1, count).round().astype(int).tolist()


def sampled_rate(frames: int, rate: float | None, count: int, sampling: Sampling) -> float:
    """Frames a second of the clip's time that so many of its frames are."""
    return count / frames * (rate or sampling.fps)


@dataclasses.dataclass(frozen=True)
class Steps:
    """LLaVA's way to sample frames: every n-th one.

    Attributes:
      fps: frames a second of the clip's time that are wanted, which n is rounded to; None: all.
      least: frames of a clip, if it has as many.
      most: frames of a clip.
    """

    fps: float | None
    least: int
    most: int


def stepped(frames: int, rate: float | None, steps: Steps) -> list[int]:
    """Numbers of the frames that are seen, as of `sampled`.

    Where there would be too few or too many, they lie evenly from the first frame to the last.
    """
    step = max(1, round(rate / steps.fps)) if rate and steps.fps else 1
    chosen = range(0, frames, step)
    count = min(max(len(chosen), steps.least), steps.most, frames)
    if count == len(chosen):
        return list(chosen)
    return np.linspace(0, frames - 1, count, dtype=int).tolist()


def _floored(count: float, span: int) -> int:
    return int(count // span) * span
