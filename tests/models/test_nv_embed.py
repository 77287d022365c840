"""NV-Embed, part by part, against what its original code recorded."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.float32 import assert_same_rows
from tests.models.oracle import EXACT, embedded_by, load
from tests.tables import for_each
from unime_jax import backbones, paths
from unime_jax.batch import Inputs
from unime_jax.models import attention
from unime_jax.models.pooling import token_mean

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "nv_embed"
RAW = ("right_pad", "no_padding")
STRINGS = ("encode_query", "encode_passage", "encode_truncated")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Fresh models of the recorded weights, whose parts a test may take away."""
    folder = tmp_path_factory.mktemp("nv_embed") / "folder"
    shutil.copytree(GOLDEN, folder)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast"} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    backbone = backbones.open_backbone(str(folder), max_length=4096)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    return functools.partial(paths.merge, graph, load(backbone))


@pytest.fixture(scope="module")
def model(make):
    return make()


@functools.cache
def recorded(case):
    return load_file(GOLDEN / case / "io.safetensors")


def inputs_of(data, *, extra=0, filler=0) -> Inputs:
    """The recorded ids, with other tokens where they are padding, and more of them."""
    mask, pooled = (np.pad(data[key], ((0, 0), (0, extra))) for key in MASKS)
    ids = np.where(mask, np.pad(data["input_ids"], ((0, 0), (0, extra))), filler)
    rows, tokens = ids.shape
    length, start = mask.sum(axis=1), pooled.argmax(axis=1)
    index = np.arange(tokens)
    np.testing.assert_array_equal(mask, index < length[:, None])
    np.testing.assert_array_equal(pooled, (index >= start[:, None]) & (index < length[:, None]))
    return Inputs(
        tokens=jax.device_put(ids),
        length=jax.device_put(length),
        live=jnp.ones(rows, bool),
        positions=jnp.broadcast_to(jnp.arange(tokens)[None, :, None], (rows, tokens, 1)),
        slot=jnp.full((rows, tokens, 1), -1),
        slot_weight=None,
        patches=None,
        patch_position=None,
        pool_start=jax.device_put(start),
    )


MASKS = ("attention_mask", "pool_mask")
STATES = ("hidden_states",)


def embed(model, inputs) -> np.ndarray:
    return np.asarray(embedded_by(model, inputs, STATES)[0])


def close(ours, theirs, where=None):
    ours = np.asarray(ours)
    if where is not None:
        ours, theirs = ours[where.astype(bool)], theirs[where.astype(bool)]
    assert_same_rows(ours, theirs)


# Strings are of the embedder in tests/backbones/test_nv_embed.py.
@for_each("case", RAW + STRINGS, quick=RAW)
def test_recorded_states(model, case):
    """Behind the decoder, behind the latents, and the embeddings."""
    data = recorded(case)
    inputs, mask = inputs_of(data), data["attention_mask"]
    embedding, hidden = embedded_by(model, inputs, STATES)
    close(hidden, data["last_hidden_state"], mask)
    latent, pooled = behind_the_latents(model, hidden, inputs)
    close(latent, data["latent_output"], mask)
    if "pooled_unnormalised" in data:
        close(pooled, data["pooled_unnormalised"])
    embedding = np.asarray(embedding)
    assert embedding.dtype == np.float32
    close(embedding, data["embedding"])
    assert np.sum(embedding * data["embedding"], axis=1).min() >= 0.99999


@jax.jit
def behind_the_latents(model, hidden, inputs):
    latent = model.latent_attention_model(hidden)
    return latent, token_mean(latent, inputs.pool_start, inputs.length)


@for_each("case", RAW)
def test_recorded_cross_attention(model, case):
    """Without its residual."""
    data = recorded(case)
    block, latents = model.latent_attention_model.cross_attention, model.latent_attention_model
    ours = jax.jit(lambda x: block(x, latents.latents[...]))(data["last_hidden_state"])
    close(ours, data["cross_attention_output"], data["attention_mask"])


@for_each("case", RAW)
def test_recorded_states_of_layers(make, case):
    """The first layers alone, none, one and two, without the norm at the end."""
    data = recorded(case)

    @jax.jit
    def states(inputs):
        found = []
        for layers in range(3):
            model = make()
            decoder = model.embedding_model
            decoder.layers = jax.tree.map(lambda x, n=layers: x[:n], decoder.layers)
            decoder.norm = lambda x: x
            found.append(model.hidden_states(inputs, EXACT))
        return found

    for layers, hidden in enumerate(states(inputs_of(data))):
        close(hidden, data[f"hidden_states_{layers}"], data["attention_mask"])


def test_what_a_token_sees_and_what_is_pooled(model):
    # Padding is not seen. Whatever tokens it holds, and however much there is of it.
    run = functools.partial(embed, model)
    plain, other = (run(inputs_of(recorded("right_pad"), **x)) for x in ({}, PADDED))
    np.testing.assert_allclose(other, plain, atol=1e-6)

    # A token sees those after it.
    inputs = inputs_of(recorded("no_padding"))
    changed = dataclasses.replace(inputs, tokens=inputs.tokens.at[:, -1].set(99))
    one, other = (embedded_by(model, x, STATES)[1][:, 0] for x in (inputs, changed))
    assert np.abs(np.asarray(one) - np.asarray(other)).max() > 1e-3

    # Instructions are seen and not pooled. So neither the mean over all tokens, nor the text
    # without instruction, is the embedding.
    inputs = inputs_of(recorded("right_pad"))
    assert (inputs.pool_start[1:] > 0).all()
    over_all = dataclasses.replace(inputs, pool_start=jnp.zeros_like(inputs.pool_start))
    unseen = dataclasses.replace(inputs, tokens=inputs.tokens.at[:, 1].set(99))
    for other in (over_all, unseen):
        assert np.abs(run(inputs) - run(other))[1:].max(axis=1).min() > 1e-3

    # Rows that are padding are finite.
    inputs = inputs_of(recorded("right_pad"))
    empty = dataclasses.replace(
        inputs, length=inputs.length.at[1].set(0), live=inputs.live.at[1].set(False)
    )
    plain, other = run(inputs), run(empty)
    assert np.isfinite(other).all()
    np.testing.assert_array_equal(np.delete(other, 1, axis=0), np.delete(plain, 1, axis=0))


PADDED = {"extra": 7, "filler": 99}


def test_bfloat16_stays_close(model):
    inputs = inputs_of(recorded("right_pad"))
    rough = dataclasses.replace(EXACT, dtype=jnp.dtype("bfloat16"))
    exact, other = embed(model, inputs), np.asarray(jax.jit(lambda i: model(i, rough))(inputs))
    assert other.dtype == np.float32
    cosine = np.sum(exact * other, axis=1)
    assert cosine.min() > 0.99 and cosine.max() < 1 - 1e-7


def test_keys_of_the_latents_are_not_made_for_every_row(model):
    """12 latents, 4 heads of 64; there are 4 rows of 21 tokens."""
    block, latents = model.latent_attention_model.cross_attention, model.latent_attention_model
    program = jax.make_jaxpr(lambda x: block(x, latents.latents[...]))(jnp.zeros((4, 21, 64)))
    assert "f32[1,12,4,64]" in str(program)
    assert "f32[4,12,4,64]" not in str(program)


def test_attention_to_so_many_keys():
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(4, 9, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    length = np.array([9, 1, 4, 0])
    attend = jax.jit(functools.partial(attention.attend, causal=False, implementation="xla"))
    ours = attend(q, k, v, length=length)
    for row, keys in enumerate(np.maximum(length, 1)):
        cut = q[row : row + 1], k[row : row + 1, :keys], v[row : row + 1, :keys]
        np.testing.assert_allclose(ours[row], attend(*cut)[0], atol=1e-6)
