"""Chunked encoding, the batch loss and the step: exact on any chunking, padding and mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unime_jax import paths, sharding
from unime_jax.batch import Batch, Inputs
from unime_jax.training import objectives, step
from unime_jax.training.gradcache import encode_in_chunks

WIDTH, VOCABULARY = 12, 50
LOSS = objectives.Contrastive(
    objective="contrastive",
    temperature=0.05,
    hard_negatives=4,
    false_negative_margin=0.2,
    hardness=3.0,
    symmetric=True,
    column_block=None,
    mask_same_target=True,
)


def encode(trainable, frozen, inputs: Inputs):
    """A stand-in encoder that any chunk of tokens goes through: mean of vectors, then a matrix."""
    real = jnp.arange(inputs.tokens.shape[1]) < inputs.length[:, None]
    x = jnp.where(real[..., None], trainable["table"][inputs.tokens], 0)
    x = jnp.tanh(x.sum(axis=1) / jnp.maximum(inputs.length, 1)[:, None] @ trainable["matrix"])
    x = x + frozen["bias"]
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def parameters(seed=0):
    a, b = jax.random.split(jax.random.key(seed))
    trainable = {
        "table": jax.random.normal(a, (VOCABULARY, WIDTH)),
        "matrix": jax.random.normal(b, (WIDTH, WIDTH)),
    }
    return trainable, {"bias": jnp.full(WIDTH, 0.1)}


def group(chunks, rows, live, seed, tokens=7):
    """`live` rows in the first places of [chunks, rows]."""
    rng = np.random.default_rng(seed)
    length = np.zeros(chunks * rows, np.int32)
    length[:live] = rng.integers(1, tokens + 1, live)
    ids = rng.integers(0, VOCABULARY, (chunks * rows, tokens)).astype(np.int32)
    return regroup(ids, length, chunks)


def regroup(ids, length, chunks):
    grid = (chunks, length.size // chunks)
    tokens = ids.shape[-1]
    return Inputs(
        tokens=jnp.asarray(ids).reshape(*grid, tokens),
        length=jnp.asarray(length).reshape(grid),
        live=jnp.asarray(length).reshape(grid) > 0,
        positions=jnp.zeros((*grid, tokens, 1), jnp.int32),
        slot=jnp.full((*grid, tokens, 1), -1, jnp.int32),
        slot_weight=None,
        patches=None,
        patch_position=None,
    )


@pytest.fixture(scope="module")
def batch():
    """16 pairs over two groups; a duplicate target, a ragged explicit negative, dead chunks."""
    first, second = group(2, 16, 24, 0), group(4, 8, 16, 1)
    query = np.concatenate([np.arange(0, 12), 32 + np.arange(0, 4)]).astype(np.int32)
    positive = np.concatenate([np.arange(12, 24), 32 + np.arange(4, 8)]).astype(np.int32)
    positive[5] = positive[4]
    negative = np.full((16, 2), -1, np.int32)
    negative[2, 0], negative[3] = 40, (41, 42)
    target_id = np.zeros(64, np.uint32)
    for row in {*positive.tolist(), 40, 41, 42}:
        target_id[row] = 1000 + row
    return Batch(
        groups=(first, second),
        query=jnp.asarray(query),
        positive=jnp.asarray(positive),
        negative=jnp.asarray(negative),
        target_id=(
            jnp.asarray(target_id[:32].reshape(2, 16)),
            jnp.asarray(target_id[32:].reshape(4, 8)),
        ),
        source=jnp.zeros(16, jnp.int32),
    )


def value_and_grad(batch, recompute=True, loss=LOSS):
    trainable, frozen = parameters()

    def value(p):
        return step.batch_loss(encode, p, frozen, batch, loss, recompute=recompute)[0]

    return jax.jit(jax.value_and_grad(value))(trainable)


def assert_close(ours, theirs, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(1.0, float(jnp.max(jnp.abs(b))))
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("live", [0, 1, 9, 24, 32])
def test_chunked_gradient_equals_unchunked(chunks, live):
    trainable, frozen = parameters()
    inputs = group(chunks, 32 // chunks, live, seed=live)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)
    weight = jax.random.normal(jax.random.key(5), (32, WIDTH))
    weight = jnp.where(jnp.arange(32)[:, None] < live, weight, 0)

    def chunked(p, recompute):
        out = encode_in_chunks(encode, p, frozen, inputs, recompute=recompute)
        return jnp.sum(out.reshape(-1, WIDTH) * weight)

    whole = jax.value_and_grad(lambda p: jnp.sum(encode(p, frozen, flat) * weight))(trainable)
    for recompute in (True, False):
        ours = jax.jit(jax.value_and_grad(lambda p, r=recompute: chunked(p, r)))(trainable)
        assert_close(ours, whole)


def test_what_is_kept_of_chunks_are_no_parameters():
    """Activations alone: nothing that the backward loop reads is a parameter for every chunk."""
    trainable, frozen = parameters()
    inputs = group(4, 8, 32, seed=0)

    def value(p):
        return jnp.sum(encode_in_chunks(encode, p, frozen, inputs, recompute=False))

    loops = [e for e in jax.make_jaxpr(jax.grad(value))(trainable).eqns if "while" in str(e)]
    shapes = {x.aval.shape for loop in loops for x in loop.outvars}
    assert (4, 8, WIDTH) in shapes  # the embeddings, or what tanh needs
    assert not shapes & {(4, *x.shape) for x in jax.tree.leaves((trainable, frozen))}


@pytest.mark.parametrize("remat", ["none", "full"])
def test_what_is_kept_of_chunks_follows_the_layers_remat(remat):
    """With "full" the input of every layer is kept and nothing from inside it."""
    inner, depth = 5, 3  # the width inside a layer
    wide = {"up": jnp.ones((depth, WIDTH, inner)), "down": jnp.ones((depth, inner, WIDTH))}
    inputs = group(4, 8, 32, seed=0)

    def layers(trainable, frozen, inputs):
        def layer(x, weights):
            return x + jnp.tanh(x @ weights["up"]) @ weights["down"], None

        if remat == "full":
            layer = jax.checkpoint(layer, prevent_cse=False)
        x = frozen["table"][inputs.tokens].mean(axis=1)
        return jax.lax.scan(layer, x, trainable)[0]

    def value(p):
        frozen = {"table": parameters()[0]["table"]}
        return jnp.sum(encode_in_chunks(layers, p, frozen, inputs, recompute=False))

    forward, _ = [e for e in jax.make_jaxpr(jax.grad(value))(wide).eqns if "while" in str(e)]
    shapes = {x.aval.shape for x in forward.outvars}
    assert (4, depth, 8, WIDTH) in shapes
    assert ((4, depth, 8, inner) in shapes) == (remat == "none")


def test_dead_chunks_are_not_encoded_and_nothing_recompiles():
    """The same executable; a chunk without rows is skipped, so it leaves zeros."""
    trainable, frozen = parameters()
    run = jax.jit(lambda i: encode_in_chunks(encode, trainable, frozen, i, recompute=True))
    for live in (0, 3, 9, 24):
        out = run(group(4, 8, live, seed=1))
        used = -(-live // 8)
        assert not np.any(out[used:])
        assert np.all(np.linalg.norm(out[:used], axis=-1) > 0.99)
    assert run._cache_size() == 1


def test_live_rows_without_tokens_are_encoded_and_counted():
    """Liveness is said, not read off the tokens: rows of a dual encoder's images have none."""
    trainable, frozen = parameters()
    inputs = group(4, 8, 0, seed=1)
    inputs = dataclasses.replace(inputs, live=jnp.arange(32).reshape(4, 8) < 11)
    for recompute in (True, False):
        out = encode_in_chunks(encode, trainable, frozen, inputs, recompute=recompute)
        np.testing.assert_allclose(np.linalg.norm(out[:2], axis=-1), 1, rtol=1e-5)
        assert not np.any(out[2:])
    nobody = jnp.zeros(0, jnp.int32)
    batch = Batch((inputs,), nobody, nobody, jnp.zeros((0, 0), jnp.int32), (), nobody)
    np.testing.assert_allclose(objectives.mean_cosine([out], batch), 1, rtol=1e-5)  # all are alike


def test_loss_does_not_depend_on_chunking(batch):
    whole = dataclasses.replace(
        batch,
        groups=tuple(
            jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), g) for g in batch.groups
        ),
    )
    expected = value_and_grad(whole, recompute=False)
    assert_close(value_and_grad(batch), expected)
    assert_close(value_and_grad(batch, recompute=False), expected)


IN_TILES = dataclasses.replace(LOSS, column_block=5)
ALL_IN_TILES = dataclasses.replace(IN_TILES, hard_negatives=None)


@pytest.mark.parametrize("loss", [IN_TILES, ALL_IN_TILES], ids=["hardest", "all"])
def test_a_loss_in_tiles_is_the_same(batch, loss):
    expected = value_and_grad(batch, loss=dataclasses.replace(loss, column_block=None))
    assert_close(value_and_grad(batch, loss=loss), expected)


@pytest.mark.parametrize("loss", [LOSS, IN_TILES, ALL_IN_TILES], ids=["dense", "hardest", "all"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_loss_and_gradient_on_meshes(batch, shape, loss):
    expected = value_and_grad(batch, loss=dataclasses.replace(loss, column_block=None))
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    rows = sharding.chunked_rows(mesh)
    pairs = jax.sharding.NamedSharding(mesh, jax.P(sharding.ROWS))
    placed = Batch(
        groups=jax.tree.map(lambda x: jax.device_put(x, rows), batch.groups),
        query=jax.device_put(batch.query, pairs),
        positive=jax.device_put(batch.positive, pairs),
        negative=jax.device_put(batch.negative, pairs),
        target_id=jax.tree.map(lambda x: jax.device_put(x, rows), batch.target_id),
        source=jax.device_put(batch.source, pairs),
    )
    with jax.set_mesh(mesh):
        assert_close(value_and_grad(placed, loss=loss), expected)


def test_representatives():
    ids = jnp.asarray([7, 0, 3, 7, 3, 9, 0, 7], jnp.uint32)
    assert objectives.representatives(ids).tolist() == [0, 1, 2, 0, 2, 5, 1, 0]


def test_a_target_met_twice_is_one_candidate(batch):
    """As from two processes: a second row of the same target changes neither loss nor counts."""
    plain = dataclasses.replace(LOSS, hard_negatives=None, symmetric=False)
    trainable, frozen = parameters()

    def run(b):
        return step.batch_loss(encode, trainable, frozen, b, plain, recompute=True)

    ids, length = np.array(batch.groups[1].tokens), np.array(batch.groups[1].length)
    second_id = np.array(batch.target_id[1])
    for copy, row in ((20, 4), (21, 8)):  # rows of the second group, counted in it
        ids.reshape(32, -1)[copy] = ids.reshape(32, -1)[row]
        length.reshape(-1)[copy] = length.reshape(-1)[row]
        second_id.reshape(-1)[copy] = second_id.reshape(-1)[row]
    again = dataclasses.replace(
        batch,
        groups=(batch.groups[0], regroup(ids.reshape(32, -1), length.reshape(-1), 4)),
        target_id=(batch.target_id[0], jnp.asarray(second_id)),
        negative=batch.negative.at[2, 0].set(32 + 21),
    )
    (loss, metrics), (other, others) = run(batch), run(again)
    np.testing.assert_allclose(loss, other, rtol=1e-6)
    np.testing.assert_allclose(metrics["negatives_per_query"], others["negatives_per_query"])


def make_step(trainable):
    optimizer = optax.adam(1e-2)
    state = step.TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        frozen=parameters()[1],
        opt_state=optimizer.init(trainable),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )
    run = step.make_train_step(encode, optimizer, lambda _: 1e-2, LOSS, recompute=True)
    return state, jax.jit(run)


def test_steps_lower_the_loss(batch):
    state, run = make_step(parameters()[0])
    losses = []
    for _ in range(60):
        state, metrics = run(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] / 2
    assert int(state.step) == 60 and int(state.skipped) == 0


def test_non_finite_step_changes_only_the_counters(batch):
    broken = parameters()[0]
    broken["matrix"] = broken["matrix"].at[0, 0].set(jnp.nan)
    state, run = make_step(broken)
    once, _ = run(state, batch)
    twice, metrics = run(once, batch)
    for old, new in zip(
        jax.tree.leaves((state.trainable, state.opt_state)),
        jax.tree.leaves((twice.trainable, twice.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    assert int(metrics["skipped_steps"]) == int(metrics["skipped_in_a_row"]) == 2
    healed = dataclasses.replace(twice, trainable=parameters()[0])
    healed, metrics = run(healed, batch)
    assert int(healed.skipped) == 2 and int(healed.skipped_in_a_row) == 0


def test_masking_is_an_option(batch):
    """Without the mask, exact copies of a positive are negatives, as in the published code."""
    plain = dataclasses.replace(
        LOSS, hard_negatives=None, false_negative_margin=None, mask_same_target=False
    )
    masked = dataclasses.replace(plain, mask_same_target=True)
    assert value_and_grad(batch, loss=plain)[0] >= value_and_grad(batch, loss=masked)[0]


def test_merge_restores_split():
    trainable, frozen = parameters()
    assert not set(trainable) & set(frozen)
    assert paths.assign([("table", 1), (".*", 2)], trainable, what="x") == {"table": 1, "matrix": 2}
