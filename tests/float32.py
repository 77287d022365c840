"""The bound within which two float32 programs agree that sum in another order."""

import numpy as np

UNIT_ROUNDOFF = 2.0**-24  # of float32
LONGEST_SUM = 2048  # terms; no sum in the tests' models, over features or over tokens, is longer
# A sum of n terms is off by at most n unit roundoffs of the sum of their sizes, whatever its order
# (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). Layers add their errors,
# but signs differ, so that a whole model stays within what its longest sum alone might be off by.
# Machines differ in the order: the rows furthest off were at 0.44 of this bound on a CPU with
# AVX-512 and their recordings are as far from float64 themselves.
ROUNDING = LONGEST_SUM * UNIT_ROUNDOFF


def assert_same_rows(ours, theirs) -> None:
    """Equality of float32 states [..., D], each row's error measured by that row's norm.

    An absolute bound would hold small values to less than their rounding, and large ones to more.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    error = np.linalg.norm(ours - theirs, axis=-1)
    allowed = ROUNDING * np.linalg.norm(theirs, axis=-1)
    off = ~(error <= allowed)  # NaN is off, too
    if off.any():
        worst = np.unravel_index(np.argmax(np.where(off, error - allowed, -np.inf)), off.shape)
        place = tuple(int(i) for i in worst)
        raise AssertionError(
            f"{off.sum()} of {off.size} rows differ by more than rounding; row {place} is off by"
            f" {error[worst]:.3g}, and {allowed[worst]:.3g} is allowed:\n"
            f"ours   {ours[worst]}\ntheirs {theirs[worst]}"
        )


def assert_same_gradients(ours, theirs) -> None:
    """Equality of float32 gradients by path, each tensor's error measured by its own norm.

    A tensor that is zero but for rounding, such as the bias of keys without rotary positions, has
    terms of the others' size: it counts as a thousandth of all of them at least.
    """
    assert ours.keys() == theirs.keys()
    norms = {path: np.linalg.norm(np.asarray(x, np.float64)) for path, x in theirs.items()}
    least = 1e-3 * np.linalg.norm(list(norms.values()))
    for path, norm in norms.items():
        off = np.asarray(ours[path], np.float64) - np.asarray(theirs[path], np.float64)
        assert np.linalg.norm(off) <= ROUNDING * max(norm, least), path
