"""Vectors of length 1: embeddings as they are compared, and truncated to their first numbers."""

import numpy as np
from jaxtyping import Float, Float32

TINY = 1e-12  # below any length that an embedding has; what is shorter is divided by it


def unit_rows(name: str, vectors: Float[np.ndarray, "*n D"]) -> Float32[np.ndarray, "n D"]:
    """Rows scaled to length 1; a vector [D] is a single row, and a row of zeros stays as it is.

    Raises:
      ValueError: they are no rows; the message calls them by `name`.
    """
    rows = np.asarray(vectors, np.float32)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2:
        raise ValueError(f"{name} has shape {rows.shape}; it must be [rows, dimension]")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)


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
    return unit_rows("vectors", vectors[:, :dimension])
