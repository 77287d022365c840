"""Arithmetic that merges one tensor of several models: linear, slerp, TIES and DARE-TIES.

Functions of float32 arrays of one shape, which are computed in float32; sums over a whole tensor
are in float64. They give the numbers of mergekit 0.1.5's methods of these names.
"""

import functools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float32

Array = Float32[np.ndarray, "*any"]

NEARLY_PARALLEL = 0.9995  # absolute cosine of two tensors that are interpolated linearly
TINY = 1e-8  # a norm that no direction can be told from
BLOCK = 2**20  # numbers whose float64 copy is in memory at once


def linear(tensors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Weighted mean of the tensors (Wortsman et al. 2022); the sum of the weights is not zero."""
    total = np.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total += np.float32(weight) * tensor
    return total / np.float32(sum(weights))


def slerp(first: Array, second: Array, share: float) -> Array:
    """Spherical interpolation of two tensors as vectors, `share` of the way to the second.

    The angle is that of the directions; lengths are interpolated by the same factors. Vectors
    that are nearly parallel, opposite or zero are interpolated linearly.
    """
    lengths = [norm if norm > TINY else 1.0 for norm in (_norm(first), _norm(second))]
    cosine = _dot(first, second) / (lengths[0] * lengths[1])
    if abs(cosine) > NEARLY_PARALLEL:
        factors = 1 - share, share
    else:
        angle = np.arccos(cosine)
        factors = np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle)
    return np.float32(factors[0]) * first + np.float32(factors[1]) * second


def ties(
    base: Array,
    tensors: Sequence[Array],
    weights: Sequence[float],
    *,
    density: float,
    normalize: bool,
    scale: float,
) -> Array:
    """TIES (Yadav et al. 2023): trimmed differences from the base, where their signs agree.

    Args:
      base: the tensor that all others started from.
      tensors: of the models.
      weights: of the models' differences.
      density: share of a difference's numbers that are kept, the largest.
      normalize: whether a sum of differences is divided by the weights of its terms.
      scale: factor of what is added to the base.
    """
    deltas = (trimmed(tensor - base, density) for tensor in tensors)
    return base + _agreed(deltas, weights, normalize=normalize) * np.float32(scale)


def dare_ties(
    base: Array,
    tensors: Sequence[Array],
    weights: Sequence[float],
    masks: Sequence[Bool[np.ndarray, "*any"]],
    *,
    normalize: bool,
    scale: float,
) -> Array:
    """DARE (Yu et al. 2023) before the election of signs of TIES: differences dropped at random.

    What is kept of a difference is scaled up to the sum of absolute values that the whole has. In
    a large tensor that is one over the share kept, as in the paper.

    Args:
      masks: what is kept of each tensor's difference.
    """
    deltas = (_kept(tensor - base, mask) for tensor, mask in zip(tensors, masks, strict=True))
    return base + _agreed(deltas, weights, normalize=normalize) * np.float32(scale)


def trimmed(delta: Array, density: float) -> Array:
    """A difference with all but the largest numbers zero, `density` of them and at least one.

    Of equal ones at the boundary the first are kept.
    """
    count = max(1, int(density * delta.size))
    if count >= delta.size:
        return delta
    sizes = np.abs(delta).reshape(-1)
    least = np.partition(sizes, delta.size - count)[delta.size - count]
    keep = sizes > least
    boundary = np.flatnonzero(sizes == least)
    keep[boundary[: count - int(keep.sum())]] = True
    return np.where(keep.reshape(delta.shape), delta, np.float32(0))


def _kept(delta: Array, mask: Bool[np.ndarray, "*any"]) -> Array:
    kept = delta * mask
    before, after = _absolute_sum(delta), _absolute_sum(kept)
    # Of next to nothing no factor can be told.
    return kept if before < 1e-7 or after < 1e-7 else kept * np.float32(before / after)


def _agreed(deltas: Iterable[Array], weights: Sequence[float], *, normalize: bool) -> Array:
    """Sum of the weighted differences that have the sign of the sum of all, number by number."""
    weighted = [np.float32(w) * delta for delta, w in zip(deltas, weights, strict=True)]
    positive = functools.reduce(np.add, weighted) >= 0
    total, divisor = np.zeros_like(weighted[0]), np.zeros_like(weighted[0])
    for delta, weight in zip(weighted, weights, strict=True):
        agrees = np.where(positive, delta > 0, delta < 0)
        total += delta * agrees
        divisor += np.float32(weight) * agrees
    if normalize:
        divisor[divisor == 0] = 1
        total /= divisor
    return total


def _norm(x: Array) -> float:
    return float(np.sqrt(_dot(x, x)))


def _dot(x: Array, y: Array) -> float:
    x, y = x.reshape(-1), y.reshape(-1)
    parts = (slice(i, i + BLOCK) for i in range(0, x.size, BLOCK))
    return sum(float(np.dot(x[part].astype(np.float64), y[part])) for part in parts)


def _absolute_sum(x: Array) -> float:
    return float(np.abs(x).sum(dtype=np.float64))
