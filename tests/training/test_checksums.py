"""Checksums of a state: any bit of any value counts, and its place; the mesh does not."""

import jax
import numpy as np

from tests.training import numpy_checksums
from tests.training.states import make_state, mesh_of
from unime_jax.training.checksums import checksums


def test_checksums_see_any_bit_of_any_number_and_no_mesh():
    # Checksums see any bit and no mesh.
    state = make_state(1)
    expected = checksums(state)
    assert len(expected) == 12 and all(0 <= n < 2**32 for n in expected.values())
    # The sums that earlier checkpoints were written with.
    assert expected == numpy_checksums.by_numpy(state)
    assert checksums(make_state(1, mesh_of(1, 1, 1))) == expected
    kernel = np.array(state.trainable["kernel"])

    def sum_of(values):
        placed = jax.device_put(values, state.trainable["kernel"].sharding)
        return checksums(placed)[""]

    seen = {sum_of(kernel)}
    places = [(0, 0, 0), (0, 0, 1), (1, 5, 3), (2, 0, 0), (2, 63, 15)]
    for place in places:
        for bit in (0, 15, 31):
            changed = kernel.copy()
            changed.view("u4")[place] ^= np.uint32(1 << bit)
            found = sum_of(changed)
            assert found != sum_of(kernel), (place, bit)
            seen.add(found)
    for axis in range(3):
        order = [1, 0, *range(2, kernel.shape[axis])]
        found = sum_of(kernel.take(order, axis=axis))
        assert found not in seen, f"axis {axis}"
        seen.add(found)

    # Checksums of narrow and whole numbers see each bit.
    sharding = make_state(1).trainable["bias"].sharding
    for dtype in ("bfloat16", "int8", "int32"):
        values = np.arange(7).astype(jax.numpy.dtype(dtype))
        bits = np.dtype(f"u{values.itemsize}")
        sums = {checksums(jax.device_put(values, sharding))[""]}
        for place in (0, 6):
            for bit in (0, 8 * values.itemsize - 1):
                changed = values.copy()
                changed.view(bits)[place] ^= bits.type(1 << bit)
                sums.add(checksums(jax.device_put(changed, sharding))[""])
        # The highest bit of 32 has one weight at every place; narrower ones differ by place.
        assert len(sums) == (4 if dtype == "int32" else 5), dtype
