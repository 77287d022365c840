"""Batches as the config's keys of the mixture say."""

import copy
import types

import numpy as np
import pytest

from experiments import stage2
from tests.data.test_loader import BATCH, PLAN, make_preprocess
from tests.data.test_loader import rows as rows_of
from tests.models.oracle import picture
from unime_jax import config_reader
from unime_jax.config import TrainConfig
from unime_jax.training import inputs


def settings_of(**changes) -> TrainConfig:
    config = copy.deepcopy(stage2.get_config())
    config.batch_size, config.data.source_run = BATCH, 4
    config.data.update(changes)
    return config_reader.read(TrainConfig, config.to_dict())


def test_batches_are_of_one_modality_from_any_step_on():
    image = {"qry_image_path": "a.png", "qry_image": picture(9, 8, 0)}
    rows = {name: rows_of(name, count) for name, count in {"a": 60, "b": 20, "c": 90}.items()}
    rows["b"] = [row | image for row in rows["b"]]
    given = settings_of(split_modalities=True, size_temperature=1.0)
    assert inputs.weights_of(given.data, rows) == pytest.approx(
        {"a": 60 / 170, "b": 20 / 170, "c": 90 / 170}
    )
    setup = types.SimpleNamespace(settings=given, preprocess=make_preprocess(), shapes=PLAN)
    make = inputs.make_batches(setup, rows)

    def sources(first: int, count: int) -> list[list[int]]:
        loader = make(first_batch=first)
        try:
            return [np.sort(next(loader)[0].source).tolist() for _ in range(count)]
        finally:
            loader.close()

    batches = sources(0, 34)
    with_images = [batch for batch in batches if 1 in batch]
    assert len(with_images) == 4 and all(set(batch) == {1} for batch in with_images)
    assert any(len(set(batch)) == 2 for batch in batches)  # the others are mixed
    assert sources(21, 5) == batches[21:26]
