"""Bulk encoding: each item's embedding is its own, whatever window, bucket and mesh it is in."""

import jax
import numpy as np
import pytest

from tests.models.oracle import EXACT, make_pair, picture
from tests.tables import for_each
from unime_jax import paths, sharding
from unime_jax.batch import Item, Media
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.inference.encode import make_encoder
from unime_jax.models import forward

SIZES = [(28, 28), (56, 28), (30, 90), (64, 64), (9, 70)]  # of two to five tiles
BUCKETS = (Bucket(32, 0), Bucket(80, 3, share=0.5), Bucket(150, 5))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("encode") / "folder", grid=2)


@pytest.fixture(scope="module")
def items():
    """21 in mixed order, so that windows of 8 differ in what they hold and the last is short."""
    texts = [Item(f"{i} red circles") for i in range(6)]
    long = [Item(f"{word} " * 60) for word in ("red", "blue")]  # in an image bucket for its length
    pictures = [
        Item(
            "<|image_1|>\n" + "Represent the given image." * (i % 2),
            (Media(f"{i}", picture(*size, i)),),
        )
        for i, size in enumerate(SIZES * 2)
    ]
    mixed = [*texts, *long, *pictures, texts[2], pictures[1], Item("x")]
    return [mixed[i] for i in np.random.default_rng(0).permutation(len(mixed))]


def encoder(pair, *, buckets, chunk_size, rows, mesh=(1, 1, 1)):
    mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: np.prod(mesh)])
    graph, parameters = paths.split(pair.model)
    placed = sharding.parameter_shardings(mesh, {path: x.shape for path, x in parameters.items()})
    parameters = {
        path: jax.device_put(np.asarray(x), placed[path]) for path, x in parameters.items()
    }
    trainable = {path: parameters.pop(path) for path in list(parameters) if "norm" in path}
    shapes = BatchShapes(buckets, pair.backbone.layout, chunk_size, rows)
    encode = forward.make_encode(graph, EXACT)
    return make_encoder(encode, (trainable, parameters), pair.backbone.preprocess, shapes, mesh)


@pytest.fixture(scope="module")
def one_by_one(pair, items):
    alone = encoder(pair, buckets=BUCKETS[-1:], chunk_size=1, rows=1)
    return np.concatenate([alone([item]) for item in items])


def test_windows_of_any_number_of_items_that_differ(one_by_one, items, pair):
    # Items differ: otherwise the order could not be seen.
    close = one_by_one @ one_by_one.T > 1 - 1e-5
    keys = [item.key for item in items]
    np.testing.assert_array_equal(close, [[a == b for b in keys] for a in keys])

    # A single item, a full window, and more than two; several chunks a bucket.
    encode = encoder(pair, buckets=BUCKETS, chunk_size=2, rows=8)
    for count in (1, 8, 21):
        np.testing.assert_allclose(encode(items[:count]), one_by_one[:count], atol=1e-5)

    # No items and items that fit no bucket
    # No items.
    found = encoder(pair, buckets=BUCKETS[:1], chunk_size=2, rows=2)([])
    assert found.shape == (0, 48) and found.dtype == np.float32

    # An item that fits no bucket is an error.
    encode = encoder(pair, buckets=(Bucket(32, 0),), chunk_size=2, rows=2)
    with pytest.raises(ValueError, match="do not fit the largest bucket"):
        encode([item for item in items if item.media])


# On one device the windows above are as much.
@for_each("mesh", [(1, 1, 1), (2, 2, 2)], quick=[(2, 2, 2)])
def test_equals_encoding_one_by_one(pair, items, one_by_one, mesh):
    """In order, over three windows and three buckets, on one device and on eight."""
    found = encoder(pair, buckets=BUCKETS, chunk_size=8, rows=8, mesh=mesh)(items)
    assert found.dtype == np.float32 and found.shape == (21, 48)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, one_by_one, atol=1e-5)
