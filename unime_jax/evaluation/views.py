"""Views of an evaluation's vectors: their first numbers, and fewer bits, of one encoding.

A task scores each view as it scores the vectors themselves.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32

from unime_jax.data.quantized_vectors import STEPS, Quantization
from unime_jax.data.settings import Fewer
from unime_jax.data.truncation import truncated, unit_rows

BITS = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}  # of a number


@dataclasses.dataclass(frozen=True)
class Views:
    """What vectors are scored by beside themselves: each of `dims`, and each in fewer bits.

    Attributes:
      dims: numbers that are kept, ascending.
      precisions: of whole vectors and of those of `dims`.
    """

    dims: tuple[int, ...] = ()
    precisions: tuple[Fewer, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all views: "64", "64 int8" and, where all numbers are kept, "int8"."""
        kept = [*map(str, self.dims), ""]
        names = [" ".join(filter(None, (n, p))) for n in kept for p in ("", *self.precisions)]
        return tuple(name for name in names if name)

    def of(
        self, vectors: Float32[np.ndarray, "n D"]
    ) -> Iterator[tuple[str, Float32[np.ndarray, "n _"]]]:
        """Each view's name, and its unit vectors, one after another.

        Vectors of int8 stand for the middles of 256 steps, in ranges that are those of the vectors
        themselves; binary ones have signs. Queries are as candidates are.

        Raises:
          ValueError: as of `check_width`.
        """
        width = vectors.shape[1] if vectors.ndim == 2 else 0
        check_width(self.dims, width, "config.evaluation.dims")
        names = iter(self.names)
        for dim in (*self.dims, width):
            kept = truncated(vectors, dim)
            if dim < width:
                yield next(names), kept
            for precision in self.precisions:
                yield next(names), _in_fewer_bits(kept, precision)


NONE = Views()


def check_width(dims: Sequence[int], width: int, key: str) -> None:
    """Raises ValueError, naming `key`, for prefixes no shorter than embeddings of `width`."""
    if dims and dims[-1] >= width:
        raise ValueError(
            f"{key}={tuple(dims)}: embeddings of this model have {width} numbers; whole ones are "
            "there in any case, so all must be below that"
        )


def parts_of(name: str, width: int) -> tuple[int, str]:
    """Numbers of a view's vectors and their precision; of "" those of whole vectors."""
    words = name.split()
    dim = int(words.pop(0)) if words and words[0].isdigit() else width
    return dim, words[0] if words else "float32"


def byte_count(dim: int, precision: str) -> int:
    """Bytes of a stored vector."""
    return -(-dim * BITS[precision] // 8)


def _in_fewer_bits(
    vectors: Float32[np.ndarray, "n D"], precision: Fewer
) -> Float32[np.ndarray, "n D"]:
    ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)]) if precision in STEPS else None
    quantization = Quantization(precision, vectors.shape[1], ranges)
    return unit_rows("vectors", quantization.decode(quantization.encode(vectors)))
