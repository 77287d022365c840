"""Choice of negatives by a judge's scores: false negatives out, a fixed number kept."""

from collections.abc import Sequence

STEP = 5  # ranks from one negative that is kept to the next (UniME-V2)


def choose(
    scores: Sequence[float], *, margin: float | None, keep: int, step: int = STEP
) -> list[int]:
    """Numbers of the negatives that are kept, the hardest first if the row has them so.

    A negative is dropped as a likely positive if its score is above the positive's less `margin`
    (UniME-V2: 0.01). Of the others, in the row's order, those at ranks 0, step, 2 step and so on
    are taken, then those at 1, step + 1 and so on, until there are `keep`; fewer are repeated
    cyclically. That is the natural reading of the paper's "cyclical sampling with a 5-step
    interval" (arXiv 2510.13515), whose code is not published.

    Args:
      scores: of the positive, then of each negative.
      margin: None: no negative is dropped.
      keep: how many negatives there are at the end; 0: all that are not dropped.
    """
    positive, *negatives = scores
    limit = float("inf") if margin is None else positive - margin
    left = [number for number, score in enumerate(negatives) if score <= limit]
    if not keep or not left:
        return left
    ranked = [left[rank] for start in range(step) for rank in range(start, len(left), step)]
    return [ranked[place % len(ranked)] for place in range(keep)]
