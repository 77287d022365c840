"""Choice of a row's negatives out of its ranked candidates."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32

Choice = Literal["first", "cyclic", "random"]


def limits(
    positive: Float32[np.ndarray, " n"],
    margin: float | None,
    ratio: float | None,
    max_score: float | None,
) -> Float32[np.ndarray, " n"]:
    """Scores above which a candidate is likely a false negative, by that of the positive.

    Args:
      margin: s <= s_pos - margin; None: no such limit.
      ratio: s <= ratio * s_pos; of a negative s_pos it is s_pos - (1 - ratio) * |s_pos|, so that
        the limit is below it, too.
      max_score: s <= max_score.
    """
    limit = np.full(len(positive), np.inf, np.float64)
    if margin is not None:
        limit = np.minimum(limit, positive.astype(np.float64) - margin)
    if ratio is not None:
        limit = np.minimum(limit, positive - (1 - ratio) * np.abs(positive.astype(np.float64)))
    if max_score is not None:
        limit = np.minimum(limit, max_score)
    return limit.astype(np.float32)


def choose(
    candidates: int, *, count: int, choice: Choice, interval: int, fill: bool, seed: str
) -> Sequence[int]:
    """Places of the chosen candidates among so many that are ranked.

    Args:
      count: of negatives that are wanted.
      choice: "first": the best. "cyclic": every `interval`-th, then those after them, and so on
        (UniME-V2: 0, 5, 10, ..., then 1, 6, 11, ...). "random": a draw that follows from `seed`.
      fill: repeats them in turn where there are fewer than `count`.
    """
    if choice == "cyclic":
        order = [n for start in range(interval) for n in range(start, candidates, interval)]
    else:
        order = list(range(candidates))
    if choice == "random":
        order = sorted(
            order,
            key=lambda n: hashlib.blake2b(f"{seed}/{n}".encode(), digest_size=8).digest(),
        )[:count]
        order.sort()
    chosen = order[:count]
    if fill and chosen:
        chosen = [chosen[n % len(chosen)] for n in range(count)]
    return chosen
