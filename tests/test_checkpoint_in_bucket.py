"""Checkpoints in a bucket, by Orbax and TensorStore themselves."""

import pytest

from tests.training.states import assert_same, make_state, open_checkpoints
from unime_jax import files

FOLDER = "gs://bucket/run/checkpoints"


def save(*numbers, keep=3):
    with open_checkpoints(files.as_path(FOLDER), keep=keep) as checkpoints:
        for number in numbers:
            checkpoints.save(number, make_state(number))


def complete(bucket):
    names = bucket.names("bucket/run/checkpoints/")
    return sorted(
        name.split("/")[2]
        for name in names
        if name.endswith("/commit_success.txt") and name.count("/") == 3
    )


def assert_restored(number):
    with open_checkpoints(files.as_path(FOLDER)) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(number))


def test_the_newest_whole_checkpoint_is_restored_and_older_ones_go(bucket):
    """The last one is not whole, the one before is damaged."""
    save(2, 4, 6, 8, keep=3)
    assert complete(bucket) == ["4", "6", "8"]
    assert_restored(8)
    # One that is not whole, and one that is damaged.
    del bucket.objects["bucket/run/checkpoints/8/commit_success.txt"]
    name = next(n for n in bucket.names() if n.startswith("run/checkpoints/6/state/d/"))
    bucket.put(f"bucket/{name}", b"damaged", None)
    assert_restored(4)
    assert complete(bucket) == ["4"]
    assert any(n.startswith("run/checkpoints_bad/6-") for n in bucket.names())


def test_a_refused_save_is_said(bucket):
    bucket.refused = "checkpoints"
    with pytest.raises((RuntimeError, OSError), match="Forbidden|cannot|could not be written"):
        save(2)
