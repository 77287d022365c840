"""From a backbone and rules to a run's parameters and optimizer state, on any mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.oracle import make_pair
from tests.tables import for_each
from unime_jax import backbones, paths, sharding
from unime_jax.models import lora, quantization
from unime_jax.training import state

NONE = lora.LoraConfig(rank=0, alpha=1.0, dora=False, targets=())
DORA = lora.LoraConfig(
    rank=2,
    alpha=4.0,
    dora=True,
    targets=((r"language_model\..*(q|down)_proj", True), (".*", False)),
)
ALL, ADAPTERS = ((".*", True),), ((r".*\.lora_.*", True), (".*", False))
BF16, F32, INT8 = jnp.dtype("bfloat16"), jnp.dtype("float32"), jnp.dtype("int8")
Q = "language_model.layers.self_attn.q_proj"
START = (-0.34108832, 0.20089184, 0.15767437)  # of its adapter, with seed 0


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("state") / "folder", grid=2).backbone


def make_mesh(*shape):
    return sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])


def draw(backbone, mesh, *, adapters=NONE, trainable=ALL, frozen_dtype=BF16):
    return state.abstract_model(
        backbone, mesh, adapters=adapters, trainable=trainable, frozen_dtype=frozen_dtype
    )


def make(backbone, abstract_model, *, adapters=NONE, init="random", seed=0):
    return state.make_parameters(backbone, abstract_model, adapters=adapters, init=init, seed=seed)


def zeros(abstract_model):
    """Parameters as planned, for tests that don't look at their values; quicker than `make`."""
    return jax.tree.map(
        lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding),
        abstract_model.parameters,
    )


def described(tree):
    """Shape, dtype and sharding of every leaf."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)


def test_draws_of_full_training_and_adapters_compute_nothing(backbone):
    # Draw of a full training.
    abstract_model = draw(backbone, make_mesh(2, 2, 2))
    assert abstract_model.trainable == set(abstract_model.parameters)
    assert {x.dtype for x in abstract_model.parameters.values()} == {F32}
    assert not any("lora" in path for path in abstract_model.parameters)

    # Draw of adapters.
    mesh = make_mesh(2, 2, 2)
    abstract_model = draw(backbone, mesh, adapters=DORA, trainable=ADAPTERS)
    down = "language_model.layers.mlp.down_proj"
    leaves = ("lora_a", "lora_b", "lora_magnitude")
    assert abstract_model.trainable == {f"{layer}.{leaf}" for layer in (Q, down) for leaf in leaves}
    for path, x in abstract_model.parameters.items():
        assert x.dtype == (F32 if path in abstract_model.trainable else BF16), path
    placed = sharding.parameter_shardings(
        mesh, {path: x.shape for path, x in abstract_model.parameters.items()}
    )
    assert {path: x.sharding for path, x in abstract_model.parameters.items()} == placed
    parts = [abstract_model.part(abstract_model.parameters, trainable=t) for t in (True, False)]
    assert parts[0].keys() == abstract_model.trainable
    assert not parts[0].keys() & parts[1].keys()
    assert parts[0] | parts[1] == abstract_model.parameters

    # Draw computes nothing.
    abstract_model = draw(backbone, make_mesh(1, 1, 1), adapters=DORA)
    leaves = jax.tree.leaves((abstract_model.parameters, abstract_model.graph))
    assert not any(isinstance(leaf, jax.Array) for leaf in leaves)


def test_rules_that_train_nothing_or_freeze_nothing_are_refused(backbone):
    # Rules must cover everything and train something.
    mesh = make_mesh(1, 1, 1)
    with pytest.raises(ValueError, match="config.trainable leave nothing to train"):
        draw(backbone, mesh, trainable=((".*", False),))
    with pytest.raises(ValueError, match=r"trainable: no rule matches(.|\n)*image_newline"):
        draw(backbone, mesh, trainable=((r"language_model\..*", True),))

    # int8 and nothing frozen is refused.
    with pytest.raises(ValueError, match='frozen_dtype="int8" is for kernels'):
        draw(backbone, make_mesh(1, 1, 1), frozen_dtype=INT8)
    kernels = ((r".*\.kernel", True), (".*", False))
    with pytest.raises(ValueError, match="config.trainable leaves none"):
        draw(backbone, make_mesh(1, 1, 1), trainable=kernels, frozen_dtype=INT8)


@pytest.fixture(scope="module")
def decoder(backbone):
    """The backbone's decoder alone, of which fewer parameters are drawn."""
    return backbones.language_only(backbone, teacher=4)


@pytest.fixture(scope="module")
def random_parameters(decoder):
    """Random parameters with adapters on one device."""
    abstract_model = draw(decoder, make_mesh(1, 1, 1), adapters=DORA, trainable=ADAPTERS)
    return make(decoder, abstract_model, adapters=DORA)


def test_random_parameters_follow_from_the_seed_on_every_mesh_and_in_every_process(
    decoder, random_parameters
):
    """The same seed, the same numbers to the bit; norms of columns but for the order of a sum."""
    abstract_model = draw(decoder, make_mesh(2, 2, 2), adapters=DORA, trainable=ADAPTERS)
    found = make(decoder, abstract_model, adapters=DORA)
    assert described(found) == described(abstract_model.parameters)
    assert found.keys() == random_parameters.keys()
    for path, leaf in found.items():
        tolerance = 1e-6 if path.endswith("magnitude") else 0
        ours, expected = (np.asarray(x).astype(F32) for x in (leaf, random_parameters[path]))
        np.testing.assert_allclose(ours, expected, rtol=tolerance, err_msg=path)

    # The seed decides.
    abstract_model = draw(decoder, make_mesh(1, 1, 1), adapters=DORA, trainable=ADAPTERS)
    other = make(decoder, abstract_model, adapters=DORA, seed=1)
    for path in (f"{Q}.kernel", f"{Q}.lora_a", "language_model.embed_tokens.embedding"):
        differ = np.asarray(random_parameters[path]) != np.asarray(other[path])
        assert np.all(differ.mean() > 0.9), path

    # An adapter starts alike in every process. Recorded: it depends on its path and on the seed,
    # not on hash(), which processes differ in. A change of these values makes runs that begin
    # again other runs.
    start = np.asarray(random_parameters[f"{Q}.lora_a"]).ravel()[:3]
    np.testing.assert_allclose(start, START, rtol=1e-5)


def test_adapters_leave_random_and_pretrained_bases_alone(decoder, random_parameters):
    """Runs with and without adapters of one seed share the random base."""
    abstract_model = draw(decoder, make_mesh(1, 1, 1))
    for path, leaf in make(decoder, abstract_model).items():
        np.testing.assert_array_equal(np.asarray(leaf).astype(BF16), random_parameters[path])

    # New adapters on pretrained weights
    abstract_model = draw(decoder, make_mesh(2, 2, 2), adapters=DORA, trainable=ADAPTERS)
    found = make(decoder, abstract_model, adapters=DORA, init="pretrained")
    assert described(found) == described(abstract_model.parameters)
    held = decoder.load(
        {p: x for p, x in abstract_model.parameters.items() if p not in abstract_model.trainable}
    )
    for path, leaf in held.items():
        np.testing.assert_array_equal(found[path], leaf)
    np.testing.assert_array_equal(found[f"{Q}.lora_a"], random_parameters[f"{Q}.lora_a"])
    assert not np.any(np.asarray(found[f"{Q}.lora_b"]))
    norm = np.linalg.norm(np.asarray(held[f"{Q}.kernel"]).astype(F32), axis=1)
    np.testing.assert_allclose(found[f"{Q}.lora_magnitude"], norm, rtol=1e-5)
    assert not np.allclose(norm, random_parameters[f"{Q}.lora_magnitude"], rtol=1e-2)


def test_draw_of_int8_and_magnitudes_of_the_quantised(backbone):
    """Frozen linear layers are codes and scales; what is trained, and what is no layer, is not."""
    trainable = ((r"language_model\..*\.mlp\..*|.*\.lora_.*", True), (".*", False))
    abstract_model = draw(
        backbone, make_mesh(2, 2, 2), adapters=DORA, trainable=trainable, frozen_dtype=INT8
    )
    found = abstract_model.parameters
    up = "language_model.layers.mlp.up_proj"
    assert found[f"{Q}.kernel"].dtype == INT8 and found[f"{Q}.kernel"].shape == (3, 48, 48)
    assert found[f"{Q}.kernel_scale"].dtype == F32 and found[f"{Q}.kernel_scale"].shape == (3, 48)
    assert found[f"{Q}.kernel"].sharding.spec == jax.P(None, "fsdp", "tensor")
    assert found[f"{Q}.bias"].dtype == found["image_newline"].dtype == BF16
    assert found[f"{up}.kernel"].dtype == F32 and f"{up}.kernel_scale" not in found
    assert not any(path.endswith("kernel_scale") for path in abstract_model.trainable)
    kernels = {path for path in found if path.endswith(".kernel")}
    assert {
        path for path in kernels if found[path].dtype == INT8
    } == kernels - abstract_model.trainable
    assert described(found) == described(zeros(abstract_model))
    state.make_state(abstract_model, zeros(abstract_model), make_optimizer(), make_mesh(2, 2, 2))

    # Magnitudes are norms of the quantised. What is trained starts where DoRA does nothing.
    mesh = make_mesh(1, 1, 1)
    abstract_model = draw(backbone, mesh, adapters=DORA, trainable=ADAPTERS, frozen_dtype=INT8)
    found = make(backbone, abstract_model, adapters=DORA, init="pretrained")
    assert described(found) == described(abstract_model.parameters)
    exact = backbone.load(draw(backbone, mesh).parameters)[f"{Q}.kernel"]
    codes, scale = found[f"{Q}.kernel"], found[f"{Q}.kernel_scale"]
    values, exact, scale = map(
        np.asarray, (jax.jit(quantization.dequantize)(codes, scale), exact, scale)
    )
    assert np.abs(values - exact).max() <= scale.max() * 0.5001
    norm = np.linalg.norm(values, axis=1)
    np.testing.assert_allclose(found[f"{Q}.lora_magnitude"], norm, rtol=1e-6)


def test_an_abstract_model_takes_its_parameters(decoder, random_parameters):
    abstract_model = draw(decoder, make_mesh(1, 1, 1), adapters=DORA, trainable=ADAPTERS)
    model = paths.merge(abstract_model.graph, random_parameters)
    assert model.language_model.layers.self_attn.q_proj.lora_scale == 2.0


def make_optimizer():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


@for_each("adapters", [NONE, DORA])
def test_state_is_as_planned(backbone, adapters):
    """Structure, shapes, dtypes and shardings, of which planning and restoring are certain."""
    mesh = make_mesh(2, 2, 2)
    trainable = ADAPTERS if adapters.rank else ((r"language_model\..*", True), (".*", False))
    abstract_model = draw(backbone, mesh, adapters=adapters, trainable=trainable)
    parameters = zeros(abstract_model)
    made = state.make_state(abstract_model, parameters, make_optimizer(), mesh)
    planned = state.abstract_state(abstract_model, make_optimizer(), mesh)
    assert jax.tree.structure(made) == jax.tree.structure(planned)
    assert described(made) == described(planned)
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(planned))

    assert made.trainable.keys() == abstract_model.trainable
    assert made.trainable.keys() | made.frozen.keys() == parameters.keys()
    moments = made.opt_state[1][0]
    for moment in (moments.mu, moments.nu):
        assert described(moment) == described(made.trainable)  # they lie where parameters lie
    assert moments.count.sharding == sharding.replicated(mesh)
    assert int(made.step) == int(made.skipped) == int(made.skipped_in_a_row) == 0


def test_a_state_can_be_donated(backbone):
    """No two of its leaves are one buffer."""
    mesh = make_mesh(1, 1, 1)
    abstract_model = draw(backbone, mesh)
    made = state.make_state(abstract_model, zeros(abstract_model), make_optimizer(), mesh)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(made)]
    assert len(set(buffers)) == len(buffers)

    # Parameter table
    abstract_model = draw(backbone, make_mesh(2, 2, 2), adapters=DORA, trainable=ADAPTERS)
    head, *lines, total = state.parameter_table(abstract_model).splitlines()
    assert head.split() == ["parameter", "shape", "dtype", "sharding"]
    assert len(lines) == len(abstract_model.parameters)
    cells = {line.split()[0]: re.split(r"\s{2,}", line) for line in lines}
    expected = [f"{Q}.kernel", "3x48x48", "bfloat16", "(-, fsdp, tensor)", "frozen"]
    assert cells[f"{Q}.kernel"] == expected
    expected = [f"{Q}.lora_a", "3x48x2", "float32", "(-, fsdp, -)", "trainable"]
    assert cells[f"{Q}.lora_a"] == expected
    free = 3 * (48 * 2 + 2 * 48 + 48) + 3 * (64 * 2 + 2 * 48 + 48)
    count = sum(x.size for x in abstract_model.parameters.values())
    assert total == f"{count:,} parameters, {free:,} trainable ({free / count:.2%})"
