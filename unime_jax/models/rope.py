"""Rotary position embedding in the half-split layout that Hugging Face checkpoints use."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class LongRope:
    """Rotary frequencies for longer rows than a model first saw (LongRoPE, Ding et al. 2024).

    Frequency i is divided by `short[i]`, and in a row of more than `original` positions by
    `long[i]`; cosine and sine are multiplied by `scale` in every row. The length is the row's own,
    so that what a row gives does not depend on the batch around it.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    scale: float


def contiguous_axes(sections: Sequence[int]) -> tuple[int, ...]:
    """Axis of every frequency, H/2 of them, in blocks of these sizes (M-RoPE, Qwen2-VL, 2.1)."""
    return tuple(np.repeat(np.arange(len(sections)), sections).tolist())


def interleaved_axes(sections: Sequence[int]) -> tuple[int, ...]:
    """Axis of every frequency, H/2 of them, where the axes take turns (Qwen3-VL).

    Axis a > 0 of A has every A-th frequency from the a-th on, as many as its section says; axis 0
    has all others.

    Raises:
      ValueError: a section is larger than its turns.
    """
    axes = np.zeros(sum(sections), np.int64)
    for axis, count in enumerate(sections[1:], start=1):
        axes[axis :: len(sections)][:count] = axis
    if np.bincount(axes, minlength=len(sections)).tolist() != list(sections):
        raise ValueError(
            f"sections of {list(sections)} frequencies cannot be interleaved: of {len(axes)}, each"
            f" axis has a turn in {len(axes) // len(sections)}"
        )
    return tuple(axes.tolist())


def rotary_angles(
    positions: Int[Array, "R T A"],
    axes: Sequence[int],
    theta: float,
    long_rope: LongRope | None = None,
) -> tuple[Float[Array, "R T 1 head"], Float[Array, "R T 1 head"]]:
    """Cosine and sine of every position and frequency, float32 (RoFormer, section 3.2.2).

    Frequency i of H/2 turns with the position on axis `axes[i]` of the A axes: see
    `contiguous_axes` and `interleaved_axes`; plain rotary positions have one axis, 0.
    """
    half = len(axes)
    # On the host, as the originals: a device's own power may be a few roundings off, and an angle
    # of position 1500 has 1500 times as many.
    frequency = 1 / np.float32(theta) ** (np.arange(half, dtype=np.float32) / half)
    scale = 1.0
    if long_rope:
        beyond = jnp.max(positions, axis=(1, 2), keepdims=True) >= long_rope.original
        short, long = (np.array(x, np.float32) for x in (long_rope.short, long_rope.long))
        frequency = frequency / jnp.where(beyond, long, short)  # [R, 1, head / 2]
        scale = long_rope.scale
    angle = positions.astype(jnp.float32)[..., np.array(axes)] * frequency
    angle = jnp.concatenate([angle, angle], axis=-1)[:, :, None, :]
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def rotate(
    x: Float[Array, "rows tokens heads head"],
    cos: Float[Array, "rows tokens 1 head"],
    sin: Float[Array, "rows tokens 1 head"],
) -> Float[Array, "rows tokens heads head"]:
    """Rotates each pair (i, i + H/2) of a head by its position's angle."""
    y = x.astype(jnp.float32)
    left, right = jnp.split(y, 2, axis=-1)
    y = y * cos + jnp.concatenate([-right, left], axis=-1) * sin
    return y.astype(x.dtype)
