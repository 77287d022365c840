"""Bytes of a chip against numbers by hand."""

import math

import jax
import jax.numpy as jnp
import pytest

from experiments import stage1, stage2
from tests.backbones.tiny_folders import write_folder
from unime_jax import backbones, config, config_reader, paths, sharding
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.planning import chips, memory
from unime_jax.planning.compiler import Compiled
from unime_jax.planning.program import embed_program, train_program

V5E, MESH = chips.parse("v5e:2x4"), (2, 2, 2)  # four row shards
TOKENS, TEACHER = 32, 24
# Bytes: token, position and slot; length, live and target_id.
TOKEN, ROW = 3 * 4, 4 + 1 + 4


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("tiny"))
    return backbones.open_backbone(str(folder), max_length=TOKENS)


def step_of(backbone, experiment, **changes):
    given = experiment.get_config()
    given.batch_size, given.chunk_size, given.data.negatives = 32, 8, 1
    given.data.buckets = (Bucket(tokens=TOKENS, tiles=0),)
    given.update_from_flattened_dict(changes)
    settings = config_reader.read(config.TrainConfig, given.to_dict())
    return train_program(settings, backbone, sharding.make_mesh(*MESH), teacher=TEACHER)


def shares(tree):
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def test_weights_and_moments_are_those_of_the_shards(backbone):
    program = step_of(backbone, stage2)
    needed = memory.memory(program, V5E, (0.0,), None)
    weights = shares(program.parameters)
    assert needed.weights == needed.gradients == weights
    assert weights < sum(4 * x.size for x in jax.tree.leaves(program.parameters)) / 2.5
    assert 2 * weights <= needed.optimizer < 2 * weights + 100
    assert needed.capacity == 15.75 * 2**30

    # Inputs are two batches and three counters. 96 rows and 32 pairs (query, positive, negative,
    # source, the query's id), over four row shards.
    needed = memory.memory(step_of(backbone, stage2), V5E, (0.0,), None)
    batch = 96 * (TOKENS * TOKEN + ROW) + 32 * 5 * 4
    assert needed.inputs == 2 * batch / 4 + 3 * 4

    # A peak is the compilers and the second batch
    program = step_of(backbone, stage2)
    compiled = Compiled(temporaries=700, peak=10**6, too_large=False, text="")
    needed = memory.memory(program, V5E, (0.0,), compiled)
    batch = (needed.inputs - 12) // 2
    assert needed.peak == 10**6 + batch and needed.temporaries == 700 and needed.fits
    over = Compiled(temporaries=0, peak=needed.capacity - batch + 1, too_large=False, text="")
    assert memory.memory(program, V5E, (0.0,), over).fits is False
    assert needed.held == needed.weights + needed.optimizer + needed.inputs

    # Activations are of chunks and of evaluations during a distillation. Twelve chunks of
    # eight rows, of which a row shard has two.
    for recompute, chunks in ((True, 1), (False, 12)):
        program = step_of(backbone, stage2, **{"execution.recompute": recompute})
        assert memory.memory(program, V5E, (50.0,), None).activations == chunks * 2 * 50, recompute

    # An embedding job holds two batches and their embeddings. A batch is launched while the one
    # before it runs; embeddings are on every chip.
    shapes = BatchShapes((Bucket(TOKENS, 0),), backbone.layout, 8, 64)
    program = embed_program(backbone, sharding.make_mesh(*MESH), shapes, jnp.dtype("bfloat16"))
    needed = memory.memory(program, V5E, (0.0,), None)
    batch = 64 * (TOKENS * TOKEN + ROW - 4) / 4  # no target_id
    assert needed.inputs == 2 * batch + 64 * backbone.dimension * 4
    assert needed.optimizer == needed.gradients == 0

    # Evaluations during a distillation need the tower as well. Its step trains and reads the
    # language model alone.
    alone = step_of(backbone, stage1, **{"evaluation.every": 0})
    program = step_of(backbone, stage1, **{"evaluation.every": 5})
    assert alone.idle == {} and program.idle
    read = {**program.parameters[0], **program.parameters[1]}
    assert not set(program.idle) & set(read)
    assert any(path.startswith("vision_tower.") for path in program.idle)
    _, whole = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    assert set(program.idle) | set(read) == set(whole)
    compiled = Compiled(temporaries=0, peak=10**6, too_large=False, text="")
    less, more = (memory.memory(p, V5E, (0.0,), compiled) for p in (alone, program))
    tower = shares(program.idle)
    assert more.weights - less.weights == more.peak - less.peak == tower > 0
