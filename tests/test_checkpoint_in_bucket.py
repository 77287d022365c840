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


def test_the_newest_checkpoint_is_restored_and_older_ones_go(bucket):
    save(2, 4, 6, keep=2)
    assert complete(bucket) == ["4", "6"]
    with open_checkpoints(files.as_path(FOLDER)) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(6))


def test_one_that_is_not_whole_is_not_seen(bucket):
    save(2, 4)
    del bucket.objects["bucket/run/checkpoints/4/commit_success.txt"]
    with open_checkpoints(files.as_path(FOLDER)) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(2))


def test_a_damaged_one_is_moved_away(bucket):
    save(2, 4)
    name = next(n for n in bucket.names() if n.startswith("run/checkpoints/4/state/d/"))
    bucket.put(f"bucket/{name}", b"damaged", None)
    with open_checkpoints(files.as_path(FOLDER)) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(2))
    assert complete(bucket) == ["2"]
    assert any(n.startswith("run/checkpoints_bad/4-") for n in bucket.names())


def test_a_refused_save_is_said(bucket):
    bucket.refused = "checkpoints"
    with pytest.raises((RuntimeError, OSError), match="Forbidden|cannot|could not be written"):
        save(2)
