"""Embeddings in fewer bits: codes with the bytes of sentence-transformers, and what they stand for.

int8 and uint8 divide the range that each of the D numbers has into 256 steps. binary and ubinary
keep its sign, eight to a byte.
"""

import dataclasses
from typing import Any, Literal, cast, get_args

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Int8, UInt8

Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Codes = Float[np.ndarray, "n _"] | Int8[np.ndarray, "n _"] | UInt8[np.ndarray, "n _"]

BITS = ("binary", "ubinary")
STEPS = ("int8", "uint8")
FEW = 100  # embeddings, by which ranges are badly known


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How vectors are stored.

    Attributes:
      precision: of a number.
      dimension: D.
      ranges: of int8 and uint8: float32 [2, D], the least and the largest value of each number.
    """

    precision: Precision
    dimension: int
    ranges: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.precision not in STEPS:
            if self.ranges is not None:
                raise ValueError(f"ranges are of int8 and uint8, not of {self.precision!r}")
            return
        if self.ranges is None:
            raise ValueError(
                f"precision is {self.precision!r}, and there are no ranges; take"
                " `ranges_of(embeddings)` of some thousand items like those to be stored"
            )
        ranges = np.asarray(self.ranges)
        if ranges.shape != (2, self.dimension) or ranges.dtype.kind != "f":
            raise ValueError(
                f"ranges have shape {ranges.shape} and dtype {ranges.dtype}; they must be"
                f" [2, {self.dimension}] floats, as `ranges_of` returns them"
            )
        if not np.isfinite(ranges).all() or (ranges[0] > ranges[1]).any():
            raise ValueError("ranges must be finite, their first row nowhere above the second")
        object.__setattr__(self, "ranges", ranges.astype(np.float32))

    @property
    def dtype(self) -> np.dtype:
        """Of a code."""
        name = {"binary": "int8", "ubinary": "uint8"}.get(self.precision, self.precision)
        return np.dtype(name)

    @property
    def width(self) -> int:
        """Codes of a vector."""
        return -(-self.dimension // 8) if self.precision in BITS else self.dimension

    def encode(self, vectors: Float[np.ndarray, "n D"]) -> Codes:
        """Codes of vectors, row by row; a value outside of its range has the nearest code.

        Raises:
          ValueError: a value is too large for float16.
        """
        if self.precision in BITS:
            bits = np.packbits(vectors > 0, axis=-1)
            return bits if self.precision == "ubinary" else (bits ^ 128).view(np.int8)
        if self.precision in STEPS:
            start, step = self._grid()
            divisor = np.where(step == 0, np.float32(1), step)
            steps = np.clip(np.floor((vectors - start) / divisor), 0, 255)
            return (steps - 128 if self.precision == "int8" else steps).astype(self.dtype)
        with np.errstate(over="ignore"):
            rounded = vectors.astype(self.dtype)
        if self.precision == "float16" and (np.isinf(rounded) & np.isfinite(vectors)).any():
            raise ValueError("a value is too large for float16 (above 65504); scale the vectors")
        return rounded

    def decode(self, codes: Codes) -> Float32[np.ndarray, "n D"]:
        """What codes stand for: the middle of a step, or 1 and -1 for signs."""
        if self.precision in BITS:
            bits = np.unpackbits(self.packed(codes), axis=-1, count=self.dimension)
            return bits.astype(np.float32) * 2 - 1
        if self.precision in STEPS:
            start, step = self._grid()
            offset = 128.5 if self.precision == "int8" else 0.5
            return start + (codes.astype(np.float32) + np.float32(offset)) * step
        return np.asarray(codes, np.float32)

    def packed(self, codes: Codes) -> UInt8[np.ndarray, "n width"]:
        """Signs of vectors, eight to a byte, the first number in the highest bit."""
        assert self.precision in BITS
        return codes if self.precision == "ubinary" else np.asarray(codes).view(np.uint8) ^ 128

    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and width of the steps; 0: of a number that is the same everywhere."""
        assert self.ranges is not None
        return self.ranges[0], (self.ranges[1] - self.ranges[0]) / 255


def check_precision(precision: str) -> None:
    """Raises ValueError for what is no precision."""
    if precision not in get_args(Precision):
        known = ", ".join(map(repr, get_args(Precision)))
        raise ValueError(f"precision is {precision!r}; it must be one of {known}")


def ranges_of(vectors: Float[np.ndarray, "n D"]) -> Float32[np.ndarray, "2 D"]:
    """The least and the largest value of each of the D numbers, for `int8` and `uint8`.

    Raises:
      ValueError: there are fewer than two vectors, or one is not finite.
    """
    rows = np.asarray(vectors)
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(
            f"ranges are taken from vectors of shape {rows.shape}; at least two are needed, better"
            " some thousand: hand in `ranges`, or more embeddings"
        )
    if len(rows) < FEW:
        logging.warning("ranges are taken from %d embeddings only", len(rows))
    ranges = np.stack([rows.min(axis=0), rows.max(axis=0)]).astype(np.float32)
    if not np.isfinite(ranges).all():
        raise ValueError("ranges are taken from vectors that are not finite")
    return ranges


def quantized(
    vectors: Float[np.ndarray, "n D"],
    precision: Precision,
    *,
    ranges: Float[np.ndarray, "2 D"] | None = None,
) -> Codes:
    """Codes of embeddings, the bytes of `sentence_transformers.quantize_embeddings`.

    float16, which is not there, rounds to the nearest.

    Args:
      ranges: of int8 and uint8, see `ranges_of`; None: those of the vectors themselves, which is
        said in a warning: codes of two calls are then not of one scale.

    Raises:
      ValueError: another precision, or ranges that do not fit or cannot be taken.
    """
    check_precision(precision)
    if precision in STEPS and ranges is None and len(vectors):
        logging.warning(
            "ranges of %s are those of the %d embeddings of this call: other calls have others."
            " Hand in `ranges`",
            precision,
            len(vectors),
        )
        ranges = ranges_of(vectors)
    elif precision in STEPS and ranges is None:
        ranges = np.zeros((2, vectors.shape[1]), np.float32)
    return Quantization(precision, vectors.shape[1], ranges).encode(vectors)


def to_record(quantization: Quantization) -> dict[str, Any]:
    """The same as JSON, without loss."""
    ranges = quantization.ranges
    return {
        "precision": quantization.precision,
        "dimension": quantization.dimension,
        "ranges": None if ranges is None else ranges.tolist(),
    }


def of_record(record: dict[str, Any]) -> Quantization:
    """What `to_record` wrote; ValueError if it is not one."""
    try:
        ranges = record["ranges"]
        return Quantization(
            cast(Precision, record["precision"]),
            int(record["dimension"]),
            None if ranges is None else np.array(ranges, np.float32),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the record of its precision is not as written here: {error!r}"
        ) from error
