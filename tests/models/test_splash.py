"""The TPU's attention kernel, interpreted, against dense attention, on a device and a mesh."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.float32 import assert_same_gradients, assert_same_rows
from tests.models.noise import drawn
from tests.tables import for_each
from unime_jax import paths, sharding
from unime_jax.batch import Inputs
from unime_jax.models import attention, cudnn_check, forward, splash
from unime_jax.models.decoder import Decoder, DecoderConfig
from unime_jax.models.vlm import Execution, LanguageModel
from unime_jax.training.gradcache import encode_in_chunks


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel as a program for CPUs, of blocks of 128 tokens."""
    monkeypatch.setattr(splash, "attend", functools.partial(splash.attend, interpret=True))
    monkeypatch.setattr(splash, "LARGEST", 128)
    monkeypatch.setattr(splash, "SMALLEST", 128)
    monkeypatch.setattr(splash, "NEAR", 128)


def arrays(rows, tokens, heads, kv_heads, head, seed):
    """Queries, keys, values and a cotangent."""
    rng = np.random.default_rng(seed)
    sizes = (heads, kv_heads, kv_heads, heads)
    return [jax.device_put(rng.standard_normal((rows, tokens, n, head), np.float32)) for n in sizes]


def value_and_gradients(inputs, cotangent, real, **options):
    """Outputs of real tokens, and gradients of a product with them."""

    def run(q, k, v):
        y = jnp.where(real, attention.attend(q, k, v, **options), 0)
        return (y * cotangent).sum(), y

    (_, y), gradients = jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))(*inputs)
    return [y, *gradients]


def check(inputs, cotangent, real, **options):
    kernel = value_and_gradients(inputs, cotangent, real, **options, implementation="splash")
    dense = value_and_gradients(inputs, cotangent, real, **options, implementation="xla")
    for ours, theirs in zip(kernel, dense, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-4)


SEEN = ["causal", "all", "length", "segment"]


# Lengths are with the layers of a decoder below, and segments in rows of several blocks.
@for_each("seen", SEEN, quick=["causal", "all"])
def test_values_and_gradients_are_those_of_dense_attention(interpreted, seen):
    """Grouped heads of odd sizes; rows that are padded, to one block and to several."""
    seed = SEEN.index(seen)
    rng = np.random.default_rng(seed)
    rows, tokens = 2, int(rng.integers(129, 256))
    kv_heads = int(rng.integers(1, 3))
    *inputs, cotangent = arrays(rows, tokens, 2 * kv_heads, kv_heads, 8 + 16 * seed, seed)
    real, given = jnp.ones((rows, tokens, 1, 1), bool), {}
    if seen == "length":  # padding gives values of no meaning
        given = {"length": jnp.asarray([tokens - 40, 3])}
        real = (jnp.arange(tokens) < given["length"][:, None])[:, :, None, None]
    if seen == "segment":  # images of a row, and patches of none at its end
        images = jnp.where(jnp.arange(tokens) < tokens - 5, jnp.arange(tokens) // 50, -1)
        given = {"segment": jnp.stack([images, images[::-1]])}
    check(inputs, cotangent, real, causal=seen == "causal", **given)


def test_images_of_several_blocks_are_seen_whole_and_no_others(interpreted):
    """Segments of up to 150 tokens, in rows of six blocks of 128."""
    *inputs, cotangent = arrays(2, 700, 2, 1, 8, 0)
    sizes = np.random.default_rng(0).integers(1, 151, 20)
    sizes[2] = 150
    images = np.repeat(np.arange(20), sizes)[:700]
    images = jax.device_put(np.stack([images, images[::-1]]))
    real = jnp.ones((2, 700, 1, 1), bool)
    check(inputs, cotangent, real, causal=False, segment=images, reach=150)
    assert splash.near_block_of(700, 150) == (128, 768)

    # Every block is what comparing numbers gives, be it all of one value or not.
    away = np.arange(60)[None] - np.arange(60)[:, None]
    for before, after in ((0, 0), (1, 1), (9, 9), (13, 0), (25, 31), (60, 60)):
        mask = splash._near_mask((60, 60), (before, after))
        near = (-before <= away) & (away <= after)
        for i, j in itertools.product(range(0, 60, 10), repeat=2):
            block = slice(i, i + 10), slice(j, j + 10)
            np.testing.assert_array_equal(mask[block], near[block])
        # Tables of blocks are kept by their mask.
        again = splash._near_mask((60, 60), (before, after))
        assert again == mask and hash(again) == hash(mask)


CONFIG = DecoderConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    rope_axes=(0, 0),
    qkv_bias=False,
    hidden_act="silu",
    causal=False,
)


def chunks_of_rows(chunks, rows, tokens):
    """Rows of two thirds of their room and more."""
    rng = np.random.default_rng(0)
    shape = chunks, rows, tokens
    return Inputs(
        tokens=rng.integers(0, 11, shape, dtype=np.int32),
        length=rng.integers(tokens * 2 // 3, tokens, shape[:2], dtype=np.int32),
        positions=np.broadcast_to(np.arange(tokens, dtype=np.int32)[:, None], (*shape, 1)),
        live=np.ones(shape[:2], bool),
        slot=np.full((*shape, 1), -1, np.int32),
        slot_weight=None,
        patches=None,
        patch_position=None,
    )


# What is kept of the first of some chunks is on one device in test_gradcache.py.
@for_each(
    "remat, recompute, kept",
    [("full", True, 0), ("full", True, 1), ("none", False, 0)],
    quick=[("full", True, 0)],
)
def test_gradcache_on_a_mesh_of_all_axes(interpreted, remat, recompute, kept):
    """Through scan and remat, rows and heads over devices, two chunks at once.

    Embeddings and gradients are XLA's of all rows on one device.
    """
    mesh, one = sharding.make_mesh(2, 2, 2), sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    chunks = chunks_of_rows(4, 4, 128)
    inputs = jax.device_put(chunks, sharding.chunked_rows(mesh))
    abstract = jax.eval_shape(lambda: LanguageModel(Decoder(CONFIG, key=jax.random.key(0))))
    graph, shapes = paths.split(abstract)
    parameters = drawn(shapes)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chunks)

    def of_chunks(parameters):
        encode = forward.make_encode(graph, Execution(jnp.dtype("float32"), remat, "splash"))
        options = dict(recompute=recompute, kept=kept, merged=2)
        y = encode_in_chunks(encode, parameters, {}, inputs, **options)
        return product(y.reshape(-1, y.shape[-1]))

    def at_once(parameters):
        encode = forward.make_encode(graph, Execution(jnp.dtype("float32"), "none", "xla"))
        return product(encode(parameters, {}, rows))

    def product(y):
        return (y * jnp.arange(CONFIG.hidden_size)).sum(), y

    results = []
    for loss, on, kernel in ((of_chunks, mesh, True), (at_once, one, False)):
        with jax.set_mesh(on):
            program = jax.jit(jax.value_and_grad(loss, has_aux=True)).trace(parameters)
            assert ("pallas_call" in str(program.jaxpr)) == kernel
            (_, embeddings), gradients = program.lower().compile()(parameters)
        results.append((embeddings, gradients))
    (ours, gradients), (theirs, expected) = results
    assert_same_rows(ours, theirs)
    assert_same_gradients(gradients, expected)


def test_what_the_kernels_do_not_take_is_logged_once_and_computed_by_xla(caplog):
    attention._log_once.cache_clear()
    caplog.set_level("INFO")

    def attend(keys, implementation, **options):
        q, k, v, _ = arrays(3, keys, 2, 1, 12, 0)
        y = attention.attend(q, k, v, causal=False, implementation=implementation, **options)
        x = attention.attend(q, k, v, causal=False, implementation="xla", **options)
        np.testing.assert_array_equal(y, x)

    for _ in range(2):
        attend(20, "splash")
    attend(20, "cudnn")
    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        attend(128, "splash")
    assert [record.message for record in caplog.records] == [
        "attention by XLA and not splash: rows of 20 tokens, fewer than 128",
        "attention by XLA and not cudnn: float32, where it has 16-bit kernels only",
        "attention by XLA and not splash: 3 rows, which 4 shards do not divide",
    ]


def test_the_implementation_follows_the_platform(monkeypatch, caplog):
    cpu = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    assert attention.implementation("auto", cpu) == "xla"
    assert attention.implementation("xla", cpu) == "xla"
    for choice in ("splash", "cudnn"):
        with pytest.raises(ValueError, match=f'attention={choice} .* devices are cpu: set "auto"'):
            attention.implementation(choice, cpu)
    # A cuDNN that is missing, and one that ignores lengths.
    cudnn_check.passes.cache_clear()
    assert not cudnn_check.passes()
    assert "cuDNN, which fails" in caplog.records[-1].message
    dense = jax.nn.dot_product_attention

    def ignoring(q, k, v, *, implementation, key_value_seq_lengths, **options):
        lengths = None if implementation == "cudnn" else key_value_seq_lengths
        return dense(q, k, v, key_value_seq_lengths=lengths, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", ignoring)
    cudnn_check.passes.cache_clear()
    assert not cudnn_check.passes()
    assert "off by" in caplog.records[-1].message and "lengths" in caplog.records[-1].message
    cudnn_check.passes.cache_clear()


def test_cudnn_is_dense_attention_on_a_gpu():
    """Values and gradients, by lengths and causal."""
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU")
    assert cudnn_check.passes()
