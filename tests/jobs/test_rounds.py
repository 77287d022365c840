"""Rounds of mining and training as one job: interrupted, resumed, extended, refused."""

import json

import pytest

from experiments import rounds as experiment
from tests.jobs import tiny_run
from unime_jax.jobs import rounds


def make_config(data, **changes):
    """A training from scratch and two rounds, of two steps each."""
    config = experiment.get_config()
    tiny = tiny_run.make_config(data)
    config.data.folder = str(data)
    for training in (config.initial, config.train):
        for key in ("batch_size", "chunk_size", "checkpoint", "export", "evaluation"):
            training[key] = tiny[key]
        training.data.prepare.module = ""
        training.data.buckets, training.data.source_run = tiny.data.buckets, tiny.data.source_run
        training.steps, training.checkpoint.every = 2, 1
        training.optimizer.warmup_steps, training.infonce_steps = 1, 0
    config.train.data.negatives = 1
    config.mine.search.ratio, config.mine.search.negatives = None, 1
    config.mine.search.ranks = (1, 4)
    config.mine.search.rows = 100
    config.update_from_flattened_dict(changes)
    return config


def test_straight(data, tmp_path, plain_step):
    rounds.run(make_config(data), tmp_path / "straight")
