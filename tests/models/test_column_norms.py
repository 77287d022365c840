"""DoRA's column norms: once a step and not once a chunk, with the same loss and gradient."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from tests.models.noise import drawn
from tests.models.oracle import EXACT
from tests.tables import for_each
from tests.training.tiny_batch import LOSS, regroup
from unime_jax import paths, sharding
from unime_jax.batch import Batch
from unime_jax.inference import encoder_programs
from unime_jax.models import forward, layers, lora
from unime_jax.models.decoder import Decoder, DecoderConfig
from unime_jax.models.vlm import LanguageModel
from unime_jax.training import step

CONFIG = DecoderConfig(
    vocab_size=50,
    hidden_size=12,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=6,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    rope_axes=(0, 0, 0),
    qkv_bias=True,
    hidden_act="silu",
)
# Kernels of three shapes: what a layer does with a norm is traced and compiled for each.
ADAPTED = r".*\.(q_proj|k_proj|down_proj)"
ADAPTERS = lora.LoraConfig(rank=3, alpha=5.0, dora=True, targets=((ADAPTED, True), (".*", False)))


@functools.cache
def parts_of(dtype):
    """The graph of a decoder with adapters as after some training, its two parts of parameters."""

    def make():
        model = LanguageModel(Decoder(CONFIG, key=jax.random.key(0)))
        if dtype == "int8":
            layers.quantize(model, {f"{path}.kernel" for path, _ in layers.linears(model)})
        lora.add(model, ADAPTERS, key=jax.random.key(1))
        return model

    graph, shapes = paths.split(jax.eval_shape(make))
    parameters = drawn(shapes)
    trainable = {path: leaf for path, leaf in parameters.items() if "lora" in path}
    return graph, trainable, {p: leaf for p, leaf in parameters.items() if p not in trainable}


def adapted_kernels(frozen):
    """Shapes of the kernels that have norms, each of a layer."""
    return [
        leaf.shape[1:] for path, leaf in frozen.items() if re.fullmatch(ADAPTED + r"\.kernel", path)
    ]


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    group = regroup(rng.integers(0, 50, (16, 4)).astype(np.int32), np.full(16, 4, np.int32), 4)
    pair = jnp.arange(8)
    targets = jnp.where(jnp.arange(16) < 8, 0, jnp.arange(16)).astype(jnp.uint32)
    return Batch(
        groups=(group,),
        query=pair,
        positive=8 + pair,
        negative=jnp.zeros((8, 0), jnp.int32),
        target_id=(targets.reshape(group.length.shape),),
        source=jnp.zeros(8, jnp.int32),
    )


def loss_of(parts, batch, *, prepared, recompute=True, remat="none"):
    graph, _, frozen = parts
    encode = forward.make_encode(graph, dataclasses.replace(EXACT, remat=remat))
    constants = forward.with_column_norms(graph) if prepared else None
    loss = dataclasses.replace(
        LOSS, hard_negatives=None, false_negative_margin=None, hardness=0.0, symmetric=False
    )

    def value(trainable):
        return step.batch_loss(
            encode, trainable, frozen, batch, loss, recompute=recompute, constants=constants
        )[0]

    return jax.value_and_grad(value)


def whole_kernels(jaxpr, shapes, inside=False):
    """How many squares of whole kernels are outside of loops over chunks, and inside."""
    counts = np.zeros(2, int)
    for eqn in jaxpr.eqns:
        square = eqn.primitive.name in ("mul", "square", "integer_pow")
        if square and eqn.outvars[0].aval.shape in shapes:
            counts[int(inside)] += 1
        loop = inside or eqn.primitive.name == "while"
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
                counts += whole_kernels(inner, shapes, loop)
    return counts


def is_jaxpr(value):
    return isinstance(value, (ClosedJaxpr, Jaxpr))


DTYPES = "float32", "int8"  # whose norms the last test compares; each has one of the programs


@for_each("dtype", DTYPES, quick=["int8"])
def test_once_a_step_is_the_same(batch, dtype):
    """And then no norm over a kernel is in the loop over chunks."""
    parts = parts_of(dtype)
    _, trainable, frozen = parts
    kernels = adapted_kernels(frozen)

    def traced(**options):
        program = jax.jit(loss_of(parts, batch, **options)).trace(trainable)
        return program, whole_kernels(program.jaxpr.jaxpr, set(kernels)).tolist()

    def run(program):
        return program.lower().compile()(trainable)

    program, (outside, within) = traced(prepared=False, recompute=False)
    assert not outside and within >= len(kernels)
    expected, gradient = run(program)
    # Chunks that are kept have the same norms, which are constants of every chunk.
    assert traced(prepared=True, recompute=False)[1] == [len(kernels), 0]
    program, counts = traced(prepared=True, remat="full")
    assert counts == [len(kernels), 0]
    found, ours = run(program)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert ours.keys() == gradient.keys()
    for path, leaf in gradient.items():
        scale = np.abs(leaf).max()
        assert scale > 0
        np.testing.assert_allclose(ours[path], leaf, atol=2e-5 * scale, err_msg=path)


@for_each("dtype", DTYPES, quick=["float32"])
def test_the_encoder_computes_norms_once_a_batch(batch, dtype):
    """Outside of the loops over chunks of all groups, with the same embeddings."""
    parts = parts_of(dtype)
    graph, trainable, frozen = parts
    kernels = adapted_kernels(frozen)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    forward_of_chunk = forward.make_encode(graph, EXACT)

    def program(constants, groups):
        with jax.set_mesh(mesh):
            traced = encoder_programs.program(forward_of_chunk, mesh, constants).trace(
                trainable, frozen, groups
            )
            vectors = traced.lower().compile()(trainable, frozen, groups)
        return whole_kernels(traced.jaxpr.jaxpr, set(kernels)), vectors

    (outside, within), (expected,) = program(None, batch.groups)
    assert not outside and within >= len(kernels)
    counts, vectors = program(forward.with_column_norms(graph), batch.groups * 2)
    assert counts.tolist() == [len(kernels), 0]
    for found in vectors:
        np.testing.assert_allclose(found, expected, atol=1e-6)


@for_each("dtype", DTYPES)
def test_norms_are_of_the_merged_kernels(dtype):
    parts = parts_of(dtype)
    graph, trainable, frozen = parts
    norms = lora.column_norms(paths.merge(graph, trainable, frozen))
    merged = paths.merge(graph, trainable, frozen)
    adapted = [path for path, linear in layers.linears(merged) if linear.lora_a is not None]
    for _, linear in layers.linears(merged):
        linear.lora_magnitude = None  # so that the direction alone is merged
    lora.merge(merged, jnp.float32)
    kernels = {p: linear.kernel[...] for p, linear in layers.linears(merged) if p in adapted}
    assert norms.keys() == {f"{path}.lora_norm" for path in kernels}
    for path, kernel in kernels.items():
        expected = np.linalg.norm(kernel, axis=1)
        np.testing.assert_allclose(norms[f"{path}.lora_norm"], expected, rtol=1e-5)
