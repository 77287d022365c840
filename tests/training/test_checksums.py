"""Checksums of a state: any value counts, the mesh does not."""

import jax
import numpy as np

from tests.training.states import make_state, mesh_of
from unime_jax.training.checksums import checksums


def test_checksums_see_any_value_and_no_mesh():
    state = make_state(1)
    expected = checksums(state)
    assert len(expected) == 10 and all(0 <= n < 2**32 for n in expected.values())
    assert checksums(make_state(1, mesh_of(1, 1, 1))) == expected
    kernel = np.array(state.trainable["kernel"])
    found = {expected[name] for name in expected if "trainable" in name and "kernel" in name}
    for place in [(0, 0, 0), (1, 5, 3), (2, 63, 15)]:
        changed = kernel.copy()
        changed.view("u4")[place] ^= 1  # the last bit of one number
        placed = jax.device_put(changed, state.trainable["kernel"].sharding)
        found |= set(checksums({"trainable": placed}).values())
    swapped = jax.device_put(kernel[[1, 0, 2]], state.trainable["kernel"].sharding)
    found |= set(checksums({"trainable": swapped}).values())
    assert len(found) == 5
