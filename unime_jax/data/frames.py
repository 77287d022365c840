"""Rows of still images beside those of clips: frames of their patches, and blended tokens."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from unime_jax.batch import Row


def repeated(
    patches: UInt8[np.ndarray, "n P features"], features: int
) -> UInt8[np.ndarray, "n P F"]:
    """Patches of as many features, each frame as often as it takes, as a tower sees still images.

    The order is (channel, frame, y, x).
    """
    *tiles, own = patches.shape
    if own == features:
        return patches
    by_frame = patches.reshape(*tiles, 3, 1, own // 3)
    return np.repeat(by_frame, features // own, axis=-2).reshape(*tiles, features)


def blended(row: Row, slots: int) -> Row:
    """A row whose tokens blend as many rows of its table; those that are one row still are it."""
    if row.slot.shape[1] == slots:
        return row
    weight = np.zeros((len(row.slot), slots), np.float32)
    weight[row.slot[:, 0] >= 0, 0] = 1
    slot = np.repeat(row.slot, slots, axis=1)
    return dataclasses.replace(row, slot=slot, slot_weight=weight)


def alike(rows: Sequence[Row]) -> list[Row]:
    """Rows whose patches span equally many frames, and whose tokens blend as many table rows."""
    slots = max((row.slot.shape[1] for row in rows), default=1)
    rows = [blended(row, slots) for row in rows]
    features = max((row.patches.shape[2] for row in rows if row.patches is not None), default=0)
    return [
        row
        if row.patches is None or row.patches.shape[2] == features
        else dataclasses.replace(row, patches=repeated(row.patches, features))
        for row in rows
    ]
