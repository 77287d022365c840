"""Merge methods beside mergekit 0.1.5's results for the same tensors.

tests/golden/merge/mergekit.npz has inputs and results of `mergekit.merge_methods.merge_tensors`,
for DARE with `torch.bernoulli` giving the masks beside them: weights 0.5, 0.2 and 0.9, TIES with
density 0.3, DARE-TIES with 0.4, lambda 0.8, slerp with t 0.3.
"""

import pathlib

import numpy as np
import pytest

from unime_jax.export import merge_methods

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "merge" / "mergekit.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def results(golden):
    """Ours of every result that was recorded, by its name there."""
    base, parts, weights = golden["base"], list(golden["parts"]), golden["weights"].tolist()
    yield "linear", merge_methods.linear(parts, weights)
    yield "slerp", merge_methods.slerp(*parts[:2], 0.3)
    yield "slerp_near", merge_methods.slerp(parts[0], golden["near"], 0.3)
    for normalize in (True, False):
        both = {"normalize": normalize, "scale": 0.8}
        yield f"ties_{normalize}", merge_methods.ties(base, parts, weights, density=0.3, **both)
        ours = merge_methods.dare_ties(base, parts, weights, list(golden["masks"]), **both)
        yield f"dare_ties_{normalize}", ours


def test_every_method_gives_mergekits_numbers(golden):
    names = set()
    for name, ours in results(golden):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, golden[name], rtol=2e-6, atol=2e-7, err_msg=name)
        names.add(name)
    assert names == golden.keys() - {"base", "parts", "weights", "masks", "near"}

    # Trimming and directions at their edges
    delta = np.float32(TRIMMED[1.0])
    for density, kept in TRIMMED.items():
        np.testing.assert_array_equal(merge_methods.trimmed(delta, density), np.float32(kept))

    # Directions that cannot be told are interpolated linearly.
    zero, x = np.zeros(5, np.float32), np.arange(5, dtype=np.float32)
    for first, second in ((x, x), (zero, zero), (x, -x)):
        np.testing.assert_allclose(
            merge_methods.slerp(first, second, 0.25), 0.75 * first + 0.25 * second, atol=1e-6
        )
    # Halfway between orthogonal vectors of one length, the length stays.
    x, y = np.float32([[2, 0], [0, 0]]), np.float32([[0, 0], [2, 0]])
    np.testing.assert_allclose(merge_methods.slerp(x, y, 0.5), (x + y) / np.sqrt(2), rtol=1e-6)


TRIMMED = {  # of these numbers, by density
    1.0: [1, -3, 3, 0, 2, 9],
    0.5: [0, -3, 3, 0, 0, 9],
    0.34: [0, -3, 0, 0, 0, 9],  # of equal ones the first
    0.01: [0, 0, 0, 0, 0, 9],
}
