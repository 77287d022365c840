"""Truncated embeddings: at most as wide as they are, and of length 1."""

import numpy as np
import pytest

from unime_jax.data.truncation import kept, truncated


def test_widths_and_the_first_numbers():
    assert [kept(4, wanted) for wanted in (None, 1, 3, 4)] == [4, 1, 3, 4]
    for wanted in (0, 5, -1):
        with pytest.raises(ValueError, match=f"truncate_dim is {wanted}; .* this model have 4"):
            kept(4, wanted)

    # The first numbers are scaled and whole vectors are as they were
    vectors = np.array([[3, 4, 12], [0, 0, 1]], np.float32)  # not of length 1 before
    np.testing.assert_allclose(truncated(vectors, 2), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(truncated(vectors, 3), vectors)
