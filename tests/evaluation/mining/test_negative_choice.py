"""Which of a row's ranked candidates are its negatives."""

import numpy as np

from tests.tables import for_each
from unime_jax.evaluation.mining.negative_choice import choose, limits


@for_each(
    "candidates, count, choice, fill, chosen",
    [
        (50, 10, "cyclic", True, [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]),  # UniME-V2
        (12, 10, "cyclic", True, [0, 5, 10, 1, 6, 11, 2, 7, 3, 8]),
        (2, 5, "cyclic", True, [0, 1, 0, 1, 0]),
        (2, 5, "first", False, [0, 1]),
        (9, 3, "first", False, [0, 1, 2]),
        (0, 5, "first", True, []),
    ],
)
def test_chosen_places(candidates, count, choice, fill, chosen):
    got = choose(candidates, count=count, choice=choice, interval=5, fill=fill, seed="0/a/1")
    assert got == chosen


def test_a_draw_follows_from_its_seed():
    def draw(seed):
        return choose(40, count=6, choice="random", interval=5, fill=False, seed=seed)

    assert draw("0/a/1") == draw("0/a/1") == sorted(set(draw("0/a/1")))
    assert len({tuple(draw(f"0/a/{row}")) for row in range(20)}) > 15

    # The lowest limit counts
    positive = np.array([0.8, 0.4, -0.5], np.float32)
    np.testing.assert_allclose(limits(positive, 0.1, None, None), [0.7, 0.3, -0.6], rtol=1e-6)
    # below the positive, also where its score is negative
    np.testing.assert_allclose(limits(positive, None, 0.5, None), [0.4, 0.2, -0.75], rtol=1e-6)
    np.testing.assert_allclose(limits(positive, 0.1, 0.5, 0.3), [0.3, 0.2, -0.75], rtol=1e-6)
    assert limits(positive, None, None, None).tolist() == [np.inf] * 3
    assert limits(positive, 0.0, None, None).tolist() == positive.tolist()
