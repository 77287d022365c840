"""The bytes that a plan counts beside those of `jax.live_arrays()` while a run trains."""

import itertools
import math

import jax
import pytest

from data_pipelines import texts
from data_pipelines.mini_nli.content import triples
from tests.jobs.test_distillation import WORDS, make_config, teach
from unime_jax import backbones, config, config_reader
from unime_jax.data import embedding_store_writer
from unime_jax.jobs import train
from unime_jax.planning import chips, memory
from unime_jax.planning.program import train_program
from unime_jax.training import loop, setup

METRICS = 1000  # bytes, at most, of a step's results that are on their way to the host


class MeasuredError(Exception):
    """Bytes that were live at some moment of a run, which ends there."""


def live_bytes(but):
    """Bytes on one device of all arrays that are in use, but these."""
    arrays = [x for x in jax.live_arrays() if id(x) not in but]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


def test_a_distillation_holds_two_batches_and_the_tower_for_its_evaluations(
    data, tmp_path, workdir, monkeypatch
):
    """The next batch is placed while a step runs; weights that the step does not read stay."""
    given = make_config(data)
    given.evaluation.every = 6
    train_rows, test_rows = triples(0, "train", 48), triples(0, "test", 12)
    sentences = sorted({sentence for row in (*train_rows, *test_rows) for sentence in row})
    texts.write(tmp_path / "texts", train_rows, test_rows)
    embedding_store_writer.write(tmp_path / "teacher", sentences, teach(sentences))
    given.data.train = given.evaluation.texts = str(tmp_path / "texts")
    given.data.teacher = str(tmp_path / "teacher")
    before = jax.live_arrays()
    place, numbers = loop.to_device, itertools.count(1)

    def to_device(*arguments):
        placed = place(*arguments)
        if next(numbers) == 3:  # that of the third step, while the second runs
            raise MeasuredError(live_bytes({id(x) for x in before}))
        return placed

    monkeypatch.setattr(loop, "to_device", to_device)
    with pytest.raises(MeasuredError) as measured:
        train.run(given, workdir)
    (held,) = measured.value.args

    def planned():
        settings = config_reader.read(config.TrainConfig, given.to_dict())
        backbone = backbones.open_backbone(settings.backbone, max_length=112)
        mesh = setup.make_mesh(settings)
        program = train_program(settings, backbone, mesh, teacher=WORDS)
        needed = memory.memory(program, chips.parse("v5e:2x4"), (0.0,), None)
        return needed, memory.chip_bytes(program.arguments[-1]), memory.chip_bytes(program.idle)

    needed, batch, tower = planned()
    assert batch > 2 * METRICS and tower > 2 * METRICS
    assert 0 <= held - needed.held < METRICS
    given.evaluation.every = 0
    without, _, none = planned()
    assert none == 0 and needed.weights - without.weights == tower
