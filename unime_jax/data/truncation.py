"""Truncated embeddings: the first numbers of each vector, scaled to length 1."""

import numpy as np
from jaxtyping import Float32


def kept(width: int, truncate_dim: int | None) -> int:
    """How many of an embedding's numbers are kept; ValueError: more than it has, or none."""
    if truncate_dim is None:
        return width
    if not 1 <= truncate_dim <= width:
        raise ValueError(f"truncate_dim is {truncate_dim}; embeddings of this model have {width}")
    return truncate_dim


def truncated(
    vectors: Float32[np.ndarray, "n D"], dimension: int
) -> Float32[np.ndarray, "n dimension"]:
    """The first `dimension` numbers of every vector, scaled to length 1; all as they are."""
    if dimension == vectors.shape[1]:
        return vectors
    kept = vectors[:, :dimension]
    return kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
