"""The compiled step's collectives: the expected ones, where they are expected."""

import dataclasses
import math
import re

import pytest

from tests.backbones.tiny_folders import write_folder
from tests.training.test_mesh_invariance import DORA, LOSS, NONE, PAIRS, compiled_step
from unime_jax import backbones
from unime_jax.planning import hlo

WIDTH, LAYERS = 64, 5  # no other size here is 5
ROWS = 3 * PAIRS  # queries, positives, negatives
ALL, ADAPTERS = ((".*", True),), ((r".*\.lora_.*", True), (".*", False))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Every kernel of it is divided by every mesh."""
    folder = tmp_path_factory.mktemp("hlo") / "folder"
    sizes = dict(num_hidden_layers=LAYERS, num_attention_heads=8, intermediate_size=2 * WIDTH)
    write_folder(
        folder,
        vision=sizes | dict(hidden_size=WIDTH),
        text=sizes | dict(hidden_size=WIDTH, num_key_value_heads=8),
    )
    return backbones.open_backbone(str(folder), max_length=256)


def collectives(text):
    """(kind, shape of a result, in how many loops) of every collective of a program."""
    module = hlo.parse(text)
    found = []

    def walk(name, depth):
        for one in module.computations[name].values():
            kind = one.opcode.removesuffix("-start")
            if kind in hlo.COLLECTIVES:
                shapes = re.findall(r"\w+\[([\d,]*)\]", one.kind)
                found.extend(
                    (kind, tuple(map(int, filter(None, s.split(",")))), depth) for s in shapes
                )
            for key in ("body", "to_apply", "calls", "true_computation", "false_computation"):
                if inner := one.called(key):
                    walk(inner, depth + (key == "body"))
            if branches := re.search(r"branch_computations=\{([^}]*)\}", one.rest):
                for inner in re.findall(r"[\w.-]+", branches[1]):
                    walk(inner, depth)

    walk(module.entry, 0)
    return found


def program(backbone, shape, *, adapters=NONE, trainable=ALL, loss=LOSS):
    compiled = compiled_step(backbone, shape, adapters=adapters, trainable=trainable, loss=loss)
    return collectives(compiled.as_text())


def test_data_parallel_gathers_no_parameters(backbone):
    """Embeddings are gathered for the loss, gradients are summed; a forward needs nothing."""
    found = program(backbone, (8, 1, 1))
    inside = [(kind, shape) for kind, shape, depth in found if depth]
    assert {kind for kind, _ in inside} == {"all-reduce"}
    assert max(len(shape) for _, shape in inside) == 2  # of one layer; activations have three axes
    gathered = [shape for kind, shape, _ in found if kind == "all-gather"]
    assert max(map(math.prod, gathered)) == ROWS * WIDTH


@pytest.mark.parametrize(
    ("shape", "adapters"),
    [
        ((1, 8, 1), DORA),
        pytest.param((2, 4, 1), DORA, marks=pytest.mark.slow),
        pytest.param((1, 8, 1), NONE, marks=pytest.mark.slow),
        pytest.param((2, 4, 1), NONE, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), NONE, marks=pytest.mark.slow),
    ],
)
def test_fsdp_gathers_one_layer_at_a_time(backbone, shape, adapters):
    trainable = ADAPTERS if adapters.rank else ALL
    found = program(backbone, shape, adapters=adapters, trainable=trainable)
    gathered = [(s, depth) for kind, s, depth in found if kind == "all-gather"]
    assert not [s for s, _ in gathered if len(s) == 3 and s[0] == LAYERS]
    layers = [math.prod(s) for s, depth in gathered if depth > 1]
    assert max(layers) == WIDTH * 2 * WIDTH // shape[2]


def test_tensor_parallel_sums_activations(backbone):
    """Kernels stay where they are; a block of the decoder or the tower sums its outputs."""
    found = program(backbone, (1, 1, 8), adapters=DORA, trainable=ADAPTERS)
    assert "all-reduce" in {kind for kind, _, depth in found if depth > 1}
    gathered = [s for kind, s, _ in found if kind == "all-gather"]
    assert not any(len(s) == 3 and s[0] == LAYERS for s in gathered)
    assert all(math.prod(s) < WIDTH * WIDTH for s in gathered if len(s) == 2)


def test_a_loss_in_tiles_gathers_no_embeddings(backbone):
    """They go round a ring; what else is gathered are parameters, and integers of rows."""
    embeddings = {(ROWS, WIDTH), (PAIRS, WIDTH), (ROWS // PAIRS, PAIRS, WIDTH), (PAIRS, ROWS)}

    def gathered(loss):
        found = program(backbone, (2, 4, 1), adapters=DORA, trainable=ADAPTERS, loss=loss)
        kinds = ("all-gather", "all-to-all", "all-reduce")
        return {s for kind, s, _ in found if kind in kinds}, {kind for kind, *_ in found}

    dense, kinds = gathered(LOSS)
    assert dense & embeddings and "collective-permute" not in kinds
    tiled, kinds = gathered(dataclasses.replace(LOSS, column_block=8))
    assert not tiled & embeddings and "collective-permute" in kinds
