"""Clips of noise, as files of frames, and what transformers' processors are given of the same."""

import numpy as np

from tests.backbones.images import noise
from unime_jax.batch import Media
from unime_jax.data import clips


def frames_of(count: int, width: int, height: int, seed: int = 0):
    """So many frames, each drawn at random."""
    return [noise(width, height, seed=1000 * seed + i) for i in range(count)]


def clip(count: int, width: int, height: int, fps: float | None = 4.0, seed: int = 0) -> Media:
    """A clip of `frames_of`, named after its seed."""
    data = clips.archive(frames_of(count, width, height, seed), fps)
    return Media(f"{seed}.zip", data, "clip")


def as_tensor(frames) -> np.ndarray:
    """Frames [T, C, H, W] of bytes, as transformers' video processors take them."""
    return np.stack([np.asarray(frame).transpose(2, 0, 1) for frame in frames])
