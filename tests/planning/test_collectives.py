"""The compiled step's collectives: the expected ones, where they are expected.

By day those of three axes, in training/test_mesh_invariance.py.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.backbones.tiny_folders import write_folder
from tests.models.oracle import EXACT
from tests.planning.collectives import GATHER, read_collectives
from tests.training.test_mesh_invariance import DORA, NONE, PAIRS, PLAIN
from unime_jax import backbones, sharding
from unime_jax.data.shapes import Bucket, pair_shapes
from unime_jax.models import forward
from unime_jax.planning.program import abstract_batch
from unime_jax.training import state, step

WIDTH, LAYERS = 64, 5  # no other size here is 5
ROWS = 3 * PAIRS  # queries, positives, negatives
TILED = dataclasses.replace(PLAIN, column_block=8)


@pytest.fixture(scope="module")
def collectives(tmp_path_factory):
    """(kind, shape of a result, in how many loops) of every collective of a step.

    Every kernel is divided by every mesh. Each step compiles once, and nothing is computed.
    """
    folder = tmp_path_factory.mktemp("collectives") / "folder"
    sizes = dict(num_hidden_layers=LAYERS, num_attention_heads=8, intermediate_size=2 * WIDTH)
    write_folder(
        folder,
        vision=sizes | dict(hidden_size=WIDTH),
        text=sizes | dict(hidden_size=WIDTH, num_key_value_heads=8),
    )
    backbone = backbones.open_backbone(str(folder), max_length=256)
    known = {}

    def of(shape, adapters, loss=PLAIN):
        key = shape, adapters.rank, loss.column_block
        if key not in known:
            known[key] = read_collectives(compiled_step(backbone, shape, adapters, loss))
        return known[key]

    return of


def compiled_step(backbone, shape, adapters, loss):
    """Optimised HLO of a step on a mesh; adapters alone are trained if there are any."""
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    trainable = ((r".*\.lora_.*", True), (".*", False)) if adapters.rank else ((".*", True),)
    model = state.abstract_model(
        backbone, mesh, adapters=adapters, trainable=trainable, frozen_dtype=jnp.dtype("float32")
    )
    optimizer = optax.sgd(0.1)
    before = state.abstract_state(model, optimizer, mesh)
    shapes = pair_shapes(
        [Bucket(256, 5)], backbone.layout, batch_size=PAIRS, negatives=1, chunk_size=8
    )
    train_step = step.make_train_step(
        forward.make_encode(model.graph, EXACT),
        optimizer,
        optax.constant_schedule(0.1),
        loss,
        recompute=True,
    )
    placed = jax.tree.map(lambda x: x.sharding, before)
    run = jax.jit(train_step, out_shardings=(placed, sharding.replicated(mesh)))
    with jax.set_mesh(mesh):
        lowered = run.lower(before, abstract_batch(shapes, mesh, PAIRS))
        return lowered.compile().as_text()


@pytest.mark.slow
def test_data_parallel_gathers_no_parameters_and_tensor_parallel_sums_activations(collectives):
    """Embeddings are gathered for the loss, gradients are summed; a forward needs nothing."""
    all_kinds = collectives((8, 1, 1), NONE)
    inside = [(kind, shape) for kind, shape, depth in all_kinds if depth]
    assert {kind for kind, _ in inside} == {"all-reduce"}
    assert max(len(shape) for _, shape in inside) == 2  # of one layer; activations have three axes
    gathered = [shape for kind, shape, _ in all_kinds if kind == GATHER]
    assert max(map(math.prod, gathered)) == ROWS * WIDTH

    # Kernels stay where they are; a block of the decoder or the tower sums its outputs.
    all_kinds = collectives((1, 1, 8), DORA)
    assert "all-reduce" in {kind for kind, _, depth in all_kinds if depth > 1}
    gathered = [shape for kind, shape, _ in all_kinds if kind == GATHER]
    assert not any(len(s) == 3 and s[0] == LAYERS for s in gathered)
    assert all(math.prod(s) < WIDTH * WIDTH for s in gathered if len(s) == 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "adapters"),
    [
        ((2, 4, 1), DORA),
        ((1, 8, 1), DORA),
        ((1, 8, 1), NONE),
        ((2, 4, 1), NONE),
        ((2, 2, 2), NONE),
    ],
)
def test_fsdp_gathers_one_layer_at_a_time(collectives, shape, adapters):
    all_kinds = collectives(shape, adapters, TILED)
    gathered = [(s, depth) for kind, s, depth in all_kinds if kind == GATHER]
    assert not [s for s, _ in gathered if len(s) == 3 and s[0] == LAYERS]
    layers = [math.prod(s) for s, depth in gathered if depth > 1]
    assert max(layers) == WIDTH * 2 * WIDTH // shape[2]


@pytest.mark.slow
@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "dense"])
def test_a_loss_in_tiles_gathers_no_embeddings(collectives, tiled):
    """They go round a ring; what else is gathered are parameters, and integers of rows."""
    embeddings = {(ROWS, WIDTH), (PAIRS, WIDTH), (ROWS // PAIRS, PAIRS, WIDTH), (PAIRS, ROWS)}
    all_kinds = collectives((2, 4, 1), DORA, TILED if tiled else PLAIN)
    gathered = {s for kind, s, _ in all_kinds if kind in (GATHER, "all-to-all", "all-reduce")}
    assert bool(gathered & embeddings) != tiled
    assert ("collective-permute" in {kind for kind, *_ in all_kinds}) == tiled
