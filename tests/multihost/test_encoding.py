"""Two processes encode together: each prepares half of the items, both get all embeddings."""

import os
import re

import jax
import numpy as np
import pytest

from tests import children
from tests.models.oracle import make_pair, picture
from tests.multihost import encoding
from tests.multihost.launch import NO_CACHE, free_port
from tests.tables import for_each
from unime_jax import Embedder, sharding

pytestmark = pytest.mark.slow

SIZES = [(28, 28), (50, 28), (28, 56)]


@pytest.fixture(scope="module")
def items() -> list[tuple[str, bytes]]:
    """21 in mixed order: of several shapes, and more of one shape in one process than the other."""
    texts = [(f"{n} red circles", b"") for n in range(8)]
    long = [(f"{n} " + "blue " * 40, b"") for n in range(4)]
    images = [(f"image {n}", picture(*SIZES[n % 3], n)) for n in range(9)]
    mixed = [*texts, *long, *images]
    return [mixed[n] for n in np.random.default_rng(0).permutation(len(mixed))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoding") / "model"
    make_pair(path, grid=2)
    return path


@pytest.fixture(scope="module")
def found(folder, items, tmp_path_factory) -> list[dict[str, np.ndarray]]:
    """What each of the two processes has."""
    work = tmp_path_factory.mktemp("found")
    flags = re.sub(r"(device_count)=\d+", r"\1=2", os.environ["XLA_FLAGS"])
    address = f"localhost:{free_port()}"
    running = [
        children.start(
            encoding.run,
            *(address, process, str(folder), items, work),
            output=work / f"{process}.log",
            environment=os.environ | {"XLA_FLAGS": flags},
            jax_options=NO_CACHE,
        )
        for process in range(2)
    ]
    codes = [one.wait(timeout=240) for one in running]
    assert codes == [0, 0], "\n".join(one.said() for one in running)
    return [dict(np.load(work / f"{process}.npz")) for process in range(2)]


def test_both_have_the_embeddings_of_one_process(found, folder, items):
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    model = Embedder.from_pretrained(folder, dtype="float32", max_length=150, mesh=mesh)
    elements = [{"text": text} | ({"image": data} if data else {}) for text, data in items]
    expected = model.encode(elements)
    assert np.max(expected @ expected.T - np.eye(len(items))) < 1 - 1e-4, "order could not be seen"
    for process, own in enumerate(found):
        for name, count in (("rows.embedder", 21), ("rows.encoder", 21), ("tensor.embedder", 3)):
            where = f"{name} of process {process}"
            np.testing.assert_allclose(own[name], expected[:count], atol=2e-5, err_msg=where)

    # Processes with the same rows prepare the same items
    for own in found:
        assert own["tensor.embedder.seen"].tolist() == sorted(text for text, _ in items[:3])

    # No items
    assert [own["rows.none"].shape for own in found] == [(0, 48)] * 2

    # An item that fails in one process ends the call in both. Item 5 is the second process's; the
    # first one must not wait for its row for ever.
    first, second = (str(own["rows.error"]) for own in found)
    assert second == "ValueError: bad item"
    assert first.startswith("RuntimeError: item 5 could not be preprocessed by process 1 of 2")


@for_each("name", ["rows.embedder", "rows.encoder"])
def test_each_prepares_half_of_the_items(found, items, name):
    first, second = (own[f"{name}.seen"].tolist() for own in found)
    assert sorted([*first, *second]) == sorted(text for text, _ in items)
    assert (len(first), len(second)) == (11, 10)
