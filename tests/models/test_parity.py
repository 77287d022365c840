"""Every component, and the whole, against transformers' PyTorch model with the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.models.oracle import EXACT, make_pair, packed, picture, torch_hidden
from unime_jax import paths
from unime_jax.batch import Item
from unime_jax.models import rope

TOLERANCE = 1e-4  # largest absolute difference, float32


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("small") / "folder", grid=2)


@pytest.fixture(scope="module")
def shrinking_pair(tmp_path_factory):
    """Grids of up to 4 x 4 tiles of which at most 3 tiles' worth of tokens is kept."""
    return make_pair(tmp_path_factory.mktemp("large") / "folder", grid=4, max_tiles=3)


def first_layer(stack):
    return jax.tree.map(lambda x: x[0], stack)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(ours, theirs, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), atol=tolerance, rtol=0)


def torch_rope(pair, x, positions):
    return pair.torch_model.model.language_model.rotary_emb(torch.tensor(x), positions)


def our_rope(pair, tokens):
    text = pair.backbone.text
    positions = jnp.arange(tokens)[None, :, None].repeat(2, axis=0)
    return rope.rotary_angles(positions, text.rope_sections, text.rope_theta)


def test_rotary_angles(pair):
    x = random(2, 9, 48)
    cos, sin = torch_rope(pair, x, torch.arange(9)[None].repeat(2, 1))
    ours = our_rope(pair, 9)
    close(ours[0][:, :, 0], cos, 1e-6)
    close(ours[1][:, :, 0], sin, 1e-6)


def test_decoder_attention(pair):
    x = random(2, 9, 48)
    layer = pair.torch_model.model.language_model.layers[0].self_attn
    mask = torch.full((1, 1, 9, 9), -torch.inf).triu(1)
    with torch.no_grad():
        theirs, _ = layer(
            torch.tensor(x), torch_rope(pair, x, torch.arange(9)[None].repeat(2, 1)), mask
        )
    ours = first_layer(pair.model.language_model.layers).self_attn
    close(ours(jnp.asarray(x), *our_rope(pair, 9), "xla"), theirs)


def test_decoder_layer_and_final_norm(pair):
    x = random(2, 9, 48)
    decoder = pair.torch_model.model.language_model
    mask = torch.full((1, 1, 9, 9), -torch.inf).triu(1)
    with torch.no_grad():
        angles = torch_rope(pair, x, torch.arange(9)[None].repeat(2, 1))
        theirs = decoder.layers[0](torch.tensor(x), attention_mask=mask, position_embeddings=angles)
        theirs = decoder.norm(theirs[0] if isinstance(theirs, tuple) else theirs)
    ours = first_layer(pair.model.language_model.layers)
    y = ours(jnp.asarray(x), *our_rope(pair, 9), "xla")
    close(pair.model.language_model.norm(y), theirs)


def test_vision_layer(pair):
    x = random(3, 16, 32)
    layer = pair.torch_model.model.vision_tower.encoder.layers[0]
    with torch.no_grad():
        theirs = layer(torch.tensor(x), attention_mask=None)
    ours = first_layer(pair.model.vision_tower.encoder.layers)
    close(ours(jnp.asarray(x), "xla"), theirs[0] if isinstance(theirs, tuple) else theirs)


def test_tower_and_projector(pair):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 28, 28), dtype=np.uint8)
    with torch.no_grad():
        normal = (torch.tensor(pixels) / 255 - 0.5) / 0.5
        tower = pair.torch_model.model.vision_tower
        features = tower(normal, output_hidden_states=True).hidden_states[-1]
        theirs = pair.torch_model.model.multi_modal_projector(features)
    patches = pixels.reshape(3, 3, 4, 7, 4, 7).transpose(0, 2, 4, 1, 3, 5).reshape(1, 3, 16, 147)
    table = pair.model.image_table(jnp.asarray(patches), None, EXACT)
    newline = pair.torch_model.model.image_newline.detach()
    close(table[0, 0], newline, 0)
    close(table[0, 1:].reshape(3, 16, 48), theirs)


SIZES = [(28, 28), (56, 28), (200, 1), (41, 43), (300, 301), (124, 175), (57, 30)]


def items_of(sizes):
    items = [Item("What is in the picture?"), Item("a red circle left of a blue square")]
    for i, (width, height) in enumerate(sizes):
        text = "<|image_1|>\nRepresent the given image." if i % 2 else "<|image_1|>\n"
        items.append(Item(text, f"{i}.png", picture(width, height, i)))
    return items


@pytest.mark.parametrize("name", ["pair", "shrinking_pair"])
def test_whole_model_on_odd_image_sizes(name, request):
    """Text, image and mixed items of all lengths in one padded chunk, each against its own run."""
    pair = request.getfixturevalue(name)
    sizes = [s for s in SIZES if name == "pair" or min(s) > 20]  # transformers fails on lines there
    items = items_of(sizes)
    rows = [pair.backbone.preprocess(item) for item in items]
    tokens = max(len(row.tokens) for row in rows) + 3
    tiles = max(len(row.patches) for row in rows if row.patches is not None) + 1
    inputs, numbers = packed(pair, items, tokens, tiles)
    hidden = np.asarray(jax.jit(lambda i: pair.model.hidden_states(i, EXACT))(inputs))
    embeddings = np.asarray(jax.jit(lambda i: pair.model(i, EXACT))(inputs))
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    if name == "shrinking_pair":
        assert any(
            (row.slot_weight.max(axis=1) < 0.99).any() for row in rows if row.patches is not None
        )
    for item, row, number in zip(items, rows, numbers, strict=True):
        expected = torch_hidden(pair, item)
        np.testing.assert_allclose(
            hidden[number, : len(row.tokens)], expected, atol=TOLERANCE, rtol=0
        )
        unit = expected[-1] / np.linalg.norm(expected[-1])
        assert embeddings[number] @ unit >= 0.99999


def test_padding_and_neighbours_do_not_matter(pair):
    items = items_of(SIZES[:3])
    alone, _ = packed(pair, items[2:3], 80, 5)
    together, numbers = packed(pair, items, 150, 6)
    run = jax.jit(lambda i: pair.model(i, EXACT))
    np.testing.assert_allclose(run(alone)[0], run(together)[numbers[2]], atol=1e-5)


def test_bfloat16_stays_close(pair):
    """The arithmetic of TPU runs: the same embedding up to bfloat16's rounding."""
    inputs, _ = packed(pair, items_of(SIZES[:3]), 150, 6)
    rough = dataclasses.replace(EXACT, dtype=jnp.dtype("bfloat16"))
    exact, other = (jax.jit(lambda i, e=e: pair.model(i, e))(inputs) for e in (EXACT, rough))
    cosine = jnp.sum(exact * other, axis=1)
    assert float(cosine.min()) > 0.995


def test_remat_changes_no_gradient(pair):
    inputs, _ = packed(pair, items_of(SIZES[:1]), 80, 3)
    graph, parameters = paths.split(pair.model)

    def gradient(remat):
        execution = dataclasses.replace(EXACT, remat=remat)
        loss = lambda p: jnp.sum(paths.merge(graph, p)(inputs, execution)[:, 0])  # noqa: E731
        return jax.jit(jax.grad(loss))(parameters)

    plain = gradient("none")
    for remat in ("dots", "full"):
        other = gradient(remat)
        for path in plain:
            np.testing.assert_allclose(plain[path], other[path], atol=1e-6)
