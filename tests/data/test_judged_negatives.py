"""Which negatives a judge leaves, and in which order."""

from tests.tables import for_each
from unime_jax.data.judged_negatives import choose

EVEN = (0.9, *[0.5] * 12)  # a positive and twelve negatives that are as good as each other


@for_each(
    ("scores", "options", "kept"),
    [
        (EVEN, {"margin": None, "keep": 0}, list(range(12))),
        (EVEN, {"margin": 0.01, "keep": 10}, [0, 5, 10, 1, 6, 11, 2, 7, 3, 8]),
        # Above 0.9 - 0.01 a negative is a likely positive; at it, it stays.
        ((0.9, 0.2, 0.95, 0.895, 0.89, 0.1), {"margin": 0.01, "keep": 0}, [0, 3, 4]),
        ((0.9, 0.2, 0.95, 0.895), {"margin": None, "keep": 2}, [0, 1]),
        # Fewer are repeated in turn; of none there is none.
        ((0.9, 0.2, 0.95, 0.1), {"margin": 0.01, "keep": 5}, [0, 2, 0, 2, 0]),
        ((0.1, 0.2, 0.3), {"margin": 0.01, "keep": 5}, []),
        ((0.5,), {"margin": 0.01, "keep": 5}, []),
    ],
)
def test_likely_positives_go_and_the_others_are_spread_over_the_ranks(scores, options, kept):
    assert choose(scores, **options) == kept
