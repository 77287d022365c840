"""Plans of programs of known size: exact memory, FLOPs by closed forms, traffic of a real step."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import llave, stage1, stage2
from tests.backbones.tiny_folders import write_folder
from tests.training import tiny_batch
from unime_jax import backbones, config, config_reader, sharding
from unime_jax.data.shapes import BatchShapes, Bucket, Layout
from unime_jax.planning import chips, compiler, costs, estimate, largest, memory
from unime_jax.planning.program import abstract_mesh, train_program
from unime_jax.training.gradcache import encode_in_chunks

TEXT = dict(
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
ONEVISION_7B = "experiments/plans/models/llava_onevision_7b"


def step_of(backbone, *buckets, recompute=True, **changes):
    given = stage2.get_config()
    given.execution.recompute = recompute
    given.loss.hard_negatives = given.loss.false_negative_margin = None  # the less to trace
    given.loss.hardness, given.loss.symmetric = 0.0, False
    given.batch_size, given.chunk_size = 32, 8
    given.data.buckets = buckets
    given.update_from_flattened_dict(changes)
    settings = config_reader.read(config.TrainConfig, given.to_dict())
    return train_program(settings, backbone, sharding.make_mesh(1, 8, 1), teacher=0)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("tiny"), text=TEXT)
    return backbones.open_backbone(str(folder), max_length=32)


@pytest.fixture(scope="module")
def tiny(backbone):
    return step_of(backbone, Bucket(tokens=16, tiles=0), Bucket(tokens=32, tiles=0))


@pytest.fixture(scope="module")
def again(backbone):
    """One bucket: 16 chunks of 8 rows. Each is encoded again for its gradient."""
    return step_of(backbone, Bucket(tokens=32, tiles=0))


@pytest.fixture(scope="module")
def kept(backbone):
    """The same, but what a gradient needs is kept of all chunks."""
    return step_of(backbone, Bucket(tokens=32, tiles=0), recompute=False)


def decoder_flops(layers, width, hidden, heads, kv, dim, tokens):
    """One forward pass over a row: matrices, then queries by keys and weights by values."""
    matrices = 2 * width * (heads + kv) * dim + 3 * width * hidden
    return layers * (2 * matrices * tokens + 4 * tokens * tokens * heads * dim)


@pytest.mark.slow
def test_useful_flops_of_full_training(tiny, again, kept):
    """Three times the forward pass: the inputs' and the weights' gradients cost as much each."""
    load = estimate.Load((40, 24), (10, 32))
    costs = estimate.row_costs(tiny, load)
    for tokens, found in zip(load.tokens, costs.useful):
        assert found == 3 * decoder_flops(3, 64, 160, 4, 2, 16, tokens)
    assert min(costs.kept) > 0
    part = tiny.chunk(2, Bucket(tokens=16, tiles=0, share=0.25))  # as a batch's buckets may have
    assert part[2].tokens.shape == (2, 16)

    # Executed flops follow live chunks. 8 chunks of 8 rows of 32 tokens, of which 3 are live,
    # forward, again, and backward.
    load = estimate.Load((0, 24), (16, 32))
    work = estimate.work(tiny, load, costs, None)  # the second bucket's rows are as long
    encoding = 4 * 24 * decoder_flops(3, 64, 160, 4, 2, 16, 32)
    assert encoding <= work.executed < 1.3 * encoding  # the loss of a tiny model is no small part
    assert work.useful == 3 / 4 * encoding
    assert work.ici is None and work.hbm is None

    # Without recomputation dead chunks are not counted either. 3 of 16 chunks, forward and
    # backward; there is room for what is kept of all 16.
    load = estimate.Load((24,), (32,))
    costs = estimate.row_costs(kept, load)
    work = estimate.work(kept, load, costs, None)
    encoding = 3 * 24 * decoder_flops(3, 64, 160, 4, 2, 16, 32)
    assert work.useful == encoding <= work.executed < 1.4 * encoding
    where = chips.parse("v5e:2x4")
    one, all_chunks = (memory.memory(p, where, costs.kept, None).activations for p in (again, kept))
    assert all_chunks == 16 * one > 0  # there is room for 128 rows


def test_a_frozen_tower_runs_once_over_the_live_chunks(backbone):
    """Its features have room in all 16 chunks of 8 rows, which eight devices share."""
    adapters = {"lora.rank": 2, "trainable": ((r".*\.lora_.*", True), (".*", False))}
    load, executed = estimate.Load((20,), (32,)), []
    for keep in (False, None):
        changes = adapters | {"execution.keep_features": keep}
        program = step_of(backbone, Bucket(tokens=32, tiles=2), **changes)
        executed.append(estimate.work(program, load, estimate.RowCosts((0.0,), (0.0,)), None))
        needed = memory.memory(program, chips.parse("v5e:2x4"), (0.0,), None)
        assert needed.features == (0 if keep is False else 16 * 2 * 16 * 8 * 4)
    # 16 patches of 147 bytes, then a layer whose widths are 8.
    tower = 2 * 16 * (147 * 8 + 4 * 8 * 8 + 2 * 8 * 8) + 4 * 16 * 16 * 8
    assert executed[0].executed - executed[1].executed == 3 * 8 * 2 * tower


def test_what_is_kept_of_16_chunks_are_layer_inputs_and_no_weights(kept):
    text = str(kept.traced().jaxpr)

    def somewhere(*sides):
        return f"[{','.join(map(str, sides))}]" in text

    assert somewhere(16, 3, 8, 32, 64)  # chunks, layers, rows, tokens, width
    stacked = [x.shape for path, x in kept.parameters[0].items() if ".layers." in path]
    assert stacked and not any(somewhere(16, *shape) for shape in stacked)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["again", "kept"])
def test_a_compiled_step_gathers_its_weights_in_every_pass(step, request):
    """ZeRO-3: traffic of one live chunk and of two differs by what a chunk gathers and reduces."""
    tiny = request.getfixturevalue(step)
    with jax.set_mesh(tiny.mesh):
        text = tiny.run.lower(*tiny.arguments).compile().as_text()
    kernels = sum(
        4 * x.size
        for path, x in tiny.parameters[0].items()
        if path.startswith("language_model.layers") and path.endswith("kernel")
    )

    moved = [estimate.traffic(tiny, (chunks,), text) for chunks in (1, 2)]
    assert not any(part.unknown_loops for part in moved)
    (one, hbm_one), (two, hbm_two) = ((sum(part.ici.values()), part.hbm) for part in moved)
    # Forward, again for the backward pass, and gradients: 3 to 5 times (an all-reduce is two).
    assert 2.5 * 7 / 8 * kernels < two - one < 7 * 7 / 8 * kernels
    assert hbm_two > hbm_one > 0

    # By operation: both bounds of a loop over chunks and layers, and every pass
    collectives = largest.of_ici(moved[1])
    assert all(mover.source.startswith(("models/", "training/")) for mover in collectives[:3])
    passes = {mover.operation.rpartition(", ")[2] for mover in collectives}
    assert {"forward", "backward"} <= passes, collectives
    assert max(mover.runs for mover in collectives) >= 2 * TEXT["num_hidden_layers"]


@pytest.fixture(scope="module")
def big():
    given = stage1.get_config("llava_onevision_7b")
    given.data.buckets = (Bucket(64, 0),)
    given.chunk_size, given.execution.remat = 768, "attention"
    given.execution.kept_chunks = (3,)  # which are all
    settings = config_reader.read(config.TrainConfig, given.to_dict())
    backbone = backbones.open_backbone(ONEVISION_7B, max_length=64)
    mesh = abstract_mesh(settings.mesh, 16)
    return train_program(settings, backbone, mesh, teacher=4096)


def test_7b_lora_needs_4n_and_runs_nearly_6n(big):
    """4 N a token is the least for LoRA: forward, and the inputs' gradients. Layers that are
    recomputed run forward once more, but for their last matrices, whose results no gradient needs.
    """
    kernels = {
        path: x.size
        for path, x in big.parameters[1].items()
        if path.startswith("language_model.layers") and path.endswith("kernel")
    }
    n = sum(kernels.values())
    (last,) = [size for path, size in kernels.items() if "down_proj" in path]
    assert 6.5e9 < n < 6.6e9
    load = estimate.Load((2304,), (64,))
    costs = estimate.row_costs(big, load)
    work = estimate.work(big, load, costs, None)
    tokens = 2304 * 64
    assert work.useful == pytest.approx(4 * n * tokens, rel=0.03)
    shapes = big.shapes
    chunked = estimate.live_chunks(shapes, load)[0] * shapes.chunk_rows(shapes.buckets[0]) * 64
    assert work.executed == pytest.approx((6 * n - 2 * last) * chunked, rel=0.03)
    frozen = compiler.chip_bytes(big.parameters[1])
    assert frozen == pytest.approx(2 * 7.07e9 / 16, rel=0.01)
    needed = memory.memory(big, chips.parse("v5e:4x4"), costs.kept, None)
    assert needed.weights == frozen + needed.gradients and needed.fits is None


SHAPES = BatchShapes((Bucket(16, 0, 0.5), Bucket(32, 2)), Layout(), 4, 16)


def test_loads():
    assert estimate.assume(SHAPES, 16, (), ()) == estimate.Load((0, 16), (16, 32))
    halves = estimate.assume(SHAPES, 16, (0.5, 0.5), (10, 20))
    assert halves == estimate.Load((8, 8), (10, 20))
    assert estimate.live_chunks(SHAPES, halves) == (1, 2)
    assert estimate.live_chunks(SHAPES, estimate.Load((7, 9), (10, 20))) == (1, 3)

    # Rows that are live, by bucket
    groups = [types.SimpleNamespace(live=np.zeros(shape, bool)) for shape in ((2, 8), (4, 4))]
    arguments = [np.zeros(3), *(group.live for group in groups)]
    program = types.SimpleNamespace(shapes=SHAPES, groups=groups, arguments=arguments)
    other, *live = estimate._known(program, estimate.Load((7, 9), (10, 20)))
    assert other is None and [rows.ravel().tolist() for rows in live] == [
        [True] * count + [False] * (16 - count) for count in (7, 9)
    ]

    # Loads that there cannot be
    for shares, tokens, message in (
        ((1.0,), (), "one number for each of the 2 buckets"),
        ((), (1, 2, 3), "one number for each of the 2 buckets"),
        ((0.5, 0.4), (), "they add to 1"),
        ((1.5, -0.5), (), "they add to 1"),
        ((1.0, 0.0), (), "16 rows of 16 tokens do not fit"),
        ((0.0, 1.0), (16, 40), "16 rows of 40 tokens do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            estimate.assume(SHAPES, 16, shares, tokens)

    # A roofline is the longest of three
    where = chips.parse("v5e:4x4")
    work = estimate.Work(
        useful=16 * 197e12, executed=2 * 16 * 197e12, ici={"all-gather": 9e10}, hbm=0.81e12
    )
    found = estimate.estimate(work, where, 64)
    assert (found.compute, found.hbm, found.ici) == (2.0, 1.0, 1.0)
    assert (found.seconds, found.bound, found.without_overlap) == (2.0, "compute", 4.0)
    assert found.mfu == 0.5 and found.items_per_second == 32
    alone = dataclasses.replace(work, ici={})
    slow = estimate.estimate(alone, chips.parse("v5e:1x1"), 64)
    assert slow.bound == "compute" and slow.compute == 32


@pytest.fixture(scope="module")
def llave_7b():
    given = llave.get_config("llava_onevision_7b")
    given.data.buckets = (Bucket(128, 0), Bucket(4096, 5))
    given.chunk_size, given.execution.remat = 64, "full"
    settings = config_reader.read(config.TrainConfig, given.to_dict())
    backbone = backbones.open_backbone(
        ONEVISION_7B, max_length=4096, processing=settings.processing
    )
    return train_program(settings, backbone, abstract_mesh(settings.mesh, 16), teacher=0)


def test_full_fine_tuning_of_llave_has_moments_of_all_it_trains(llave_7b):
    trained = sum(x.size for x in llave_7b.parameters[0].values())
    assert trained > 7e9
    assert not any(path.startswith("vision_tower") for path in llave_7b.parameters[0])
    state, _ = llave_7b.arguments
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
    assert 2 * trained <= moments <= 2 * trained + 10  # and some counters


@pytest.mark.slow
def test_full_fine_tuning_of_llave_traces(llave_7b):
    """A run of it is by day in jobs/test_distillation.py, of a tiny model."""
    assert llave_7b.traced().jaxpr.eqns


def test_loops_over_chunks_that_are_kept_or_merged_run_for_theirs_alone(monkeypatch):
    """Of eight live chunks two are kept, four go at once, and two by themselves."""
    trainable, frozen = tiny_batch.parameters()
    inputs = tiny_batch.group(8, 8, 64, seed=0)

    def loss(p, inputs):
        out = encode_in_chunks(
            tiny_batch.encode, p, frozen, inputs, recompute=True, kept=2, merged=4
        )
        return jnp.sum(out**2)

    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    rows = sharding.chunked_rows(mesh)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), inputs)
    text = jax.jit(jax.value_and_grad(loss)).lower(trainable, inputs).compile().as_text()
    program = types.SimpleNamespace(groups=(shapes,), kept=(2,), merged=4)
    runs = {}

    def traffic(text, trips):
        def asked(type, scopes):
            runs[scopes.partition("/")[2]] = trips(type, scopes)
            return 1

        return costs.traffic(text, asked)

    monkeypatch.setattr(estimate, "costs", types.SimpleNamespace(traffic=traffic))
    estimate.traffic(program, (8,), text)
    assert runs == {
        "jvp(kept_chunks)/while": 2,
        "jvp(merged_chunks)/while": 1,
        "jvp()/while": 2,
        "transpose(jvp(kept_chunks))/while": 2,
        "transpose(jvp())/while": 6,
    }
