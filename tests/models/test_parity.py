"""Every component, and the whole, against transformers' PyTorch model with the same weights."""

import dataclasses
import functools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.float32 import assert_same_rows
from tests.models.oracle import (
    EXACT,
    Pair,
    make_next_pair,
    make_pair,
    packed,
    picture,
    torch_hidden,
    torch_left_padded,
)
from tests.tables import for_each
from unime_jax.batch import Item, Media, Row
from unime_jax.models import rope
from unime_jax.models.vlm import Vlm


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, Pair]:
    """By what they are of; "shrinking" has grids of up to 4 x 4 tiles and keeps 3 of them."""
    folder = tmp_path_factory.mktemp("pairs")
    return {
        "onevision": make_pair(folder / "onevision", grid=2),
        "shrinking": make_pair(folder / "shrinking", grid=4, max_tiles=3),
        "mistral": make_next_pair(folder / "mistral", "mistral"),
        "llama": make_next_pair(folder / "llama", "llama"),
    }


@pytest.fixture(scope="module")
def pair(pairs) -> Pair:
    return pairs["onevision"]


EVERY = for_each("kind", ["onevision", "shrinking", "mistral", "llama"])
TOWERS = for_each("kind", ["onevision", "mistral"])
DECODERS = for_each("kind", ["onevision", "mistral", "llama"])


def first_layer(stack):
    return jax.tree.map(lambda x: x[0], stack)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(ours, theirs):
    assert_same_rows(ours, theirs.numpy())


def torch_rope(pair, x, positions):
    return pair.torch_model.model.language_model.rotary_emb(torch.tensor(x), positions)


def our_rope(pair, tokens):
    text = pair.model.language_model
    positions = jnp.arange(tokens)[None, :, None].repeat(2, axis=0)
    return rope.rotary_angles(positions, text.rope_axes, text.rope_theta)


@DECODERS
def test_every_part_of_the_decoder(pairs, kind):
    """Rotary tables, attention, and a layer with the final norm."""
    pair, x = pairs[kind], random(2, 9, 48)
    decoder = pair.torch_model.model.language_model
    mask = torch.full((1, 1, 9, 9), -torch.inf).triu(1)
    with torch.no_grad():
        angles = torch_rope(pair, x, torch.arange(9)[None].repeat(2, 1))
        attended, _ = decoder.layers[0].self_attn(torch.tensor(x), angles, mask)
        theirs = decoder.layers[0](torch.tensor(x), attention_mask=mask, position_embeddings=angles)
        theirs = decoder.norm(theirs[0] if isinstance(theirs, tuple) else theirs)

    @jax.jit
    def parts(x):
        angles, layer = our_rope(pair, 9), first_layer(pair.model.language_model.layers)
        state = pair.model.language_model.norm(layer(x, *angles, "xla"))
        return angles, layer.self_attn(x, *angles, "xla"), state

    ours, attention, state = parts(x)
    np.testing.assert_allclose(ours[0][:, :, 0], angles[0].numpy(), atol=1e-6, rtol=0)
    np.testing.assert_allclose(ours[1][:, :, 0], angles[1].numpy(), atol=1e-6, rtol=0)
    close(attention, attended)
    close(state, theirs)


def torch_tower(pair):
    tower = pair.torch_model.model.vision_tower
    return getattr(tower, "vision_model", tower)


@TOWERS
def test_every_part_of_the_tower(pairs, kind):
    pair = pairs[kind]
    x = random(3, 16, 32)
    layer = torch_tower(pair).encoder.layers[0]
    with torch.no_grad():
        theirs = layer(torch.tensor(x), attention_mask=None)
    layers = pair.model.vision_tower.encoder.layers
    ours = jax.jit(lambda x: first_layer(layers)(x, "xla"))(x)
    close(ours, theirs[0] if isinstance(theirs, tuple) else theirs)

    # Tower features. SigLIP's last layer; of CLIP the last but one, without the class token.
    pair = pairs[kind]
    x = random(3, 3, 28, 28)
    config = pair.torch_model.config
    with torch.no_grad():
        states = torch_tower(pair)(torch.tensor(x), output_hidden_states=True).hidden_states
    theirs = states[config.vision_feature_layer]
    if config.vision_config.model_type == "clip_vision_model":
        assert theirs.shape[1] == 17 and theirs is not states[-1]
        theirs = theirs[:, 1:]
    patches = x.reshape(3, 3, 4, 7, 4, 7).transpose(0, 2, 4, 1, 3, 5).reshape(3, 16, 147)
    tower = pair.model.vision_tower
    close(jax.jit(lambda x: tower(x, remat="none", implementation="xla"))(patches), theirs)

    # Projector
    pair = pairs[kind]
    x = random(3, 16, 32)
    with torch.no_grad():
        theirs = pair.torch_model.model.multi_modal_projector(torch.tensor(x))
    close(jax.jit(lambda x: pair.model.multi_modal_projector(x))(x), theirs)

    # Image table. From bytes to the newline and the projected patches of every tile.
    pair = pairs[kind]
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 28, 28), dtype=np.uint8)
    settings = json.loads((pair.backbone.folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(settings[f"image_{x}"])[:, None, None] for x in ("mean", "std"))
    config, model = pair.torch_model.config, pair.torch_model.model
    with torch.no_grad():
        normal = (torch.tensor(pixels) / 255 - mean) / std
        states = torch_tower(pair)(normal, output_hidden_states=True).hidden_states
        theirs = model.multi_modal_projector(states[config.vision_feature_layer][:, -16:])
    patches = pixels.reshape(3, 3, 4, 7, 4, 7).transpose(0, 2, 4, 1, 3, 5).reshape(1, 3, 16, 147)
    table = jax.jit(lambda x: pair.model.vision_features(x, None, EXACT).table)(patches)
    np.testing.assert_array_equal(table[0, 0], model.image_newline.detach().numpy())
    close(table[0, 1:].reshape(3, 16, 48), theirs)


SIZES = [(28, 28), (56, 28), (200, 1), (1, 200), (41, 43), (300, 301), (124, 175), (57, 30)]


def items_of(sizes):
    """Texts, images with and without text, and items of two and three images."""
    items = [Item("What is in the picture?"), Item("a red circle left of a blue square")]
    pictures = [Media(f"{i}.png", picture(*size, i)) for i, size in enumerate(sizes)]
    for i, image in enumerate(pictures):
        text = "<|image_1|>\nRepresent the given image." if i % 2 else "<|image_1|>\n"
        items.append(Item(text, (image,)))
    text = "Is <|image_1|> left of <|image_2|>?"
    items.append(Item(text, tuple(pictures[:2])))
    items.append(Item("Which differs?", (pictures[2], pictures[1], pictures[0])))
    return items


def sizes_for(pair):
    # Of a line, a shrunk map leaves nothing: transformers fails on it, too.
    return [s for s in SIZES if min(s) > 20 or pair.backbone.layout.slots == 1]


def together(pair, items):
    """All items in one chunk with room to spare: the inputs, the rows and their places."""
    rows = [pair.backbone.preprocess(item) for item in items]
    tokens = max(len(row.tokens) for row in rows) + 3
    tiles = max(len(row.patches) for row in rows if row.patches is not None) + 1
    inputs, numbers = packed(pair, items, tokens, tiles)
    return inputs, rows, numbers


def embed(pair, inputs):
    return np.asarray(jax.jit(lambda i: pair.model(i, EXACT))(inputs))


@dataclasses.dataclass(frozen=True)
class Whole:
    """Items of all lengths in one padded chunk, and what the model makes of it."""

    items: list[Item]
    rows: list[Row]
    numbers: np.ndarray  # of each item, its row in the chunk
    embeddings: np.ndarray
    hidden: np.ndarray

    def embeddings_of(self, items):
        return self.embeddings[[self.numbers[self.items.index(item)] for item in items]]


@pytest.fixture(scope="module")
def whole(pairs) -> Callable[[str], Whole]:
    """By what pair it is; one program gives the embeddings and the states that they are of."""

    @functools.cache
    def get(kind):
        pair = pairs[kind]
        items = items_of(sizes_for(pair))
        inputs, rows, numbers = together(pair, items)

        @jax.jit
        def run(inputs):
            states, hidden_states = [], Vlm.hidden_states

            def recorded(self, *arguments):
                states.append(hidden_states(self, *arguments))
                return states[-1]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Vlm, "hidden_states", recorded)
                embeddings = pair.model(inputs, EXACT)
            (hidden,) = states
            return embeddings, hidden

        return Whole(items, rows, numbers, *map(np.asarray, run(inputs)))

    return get


@EVERY
def test_whole_model_on_odd_image_sizes(pairs, whole, kind):
    """Text, image and mixed items of all lengths in one padded chunk, each against its own run."""
    pair, made = pairs[kind], whole(kind)
    rows, hidden, embeddings = made.rows, made.hidden, made.embeddings
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    if pair.backbone.layout.blended:
        assert any(
            (row.slot_weight.max(axis=1) < 0.99).any() for row in rows if row.patches is not None
        )
    for item, row, number in zip(made.items, rows, made.numbers, strict=True):
        expected = torch_hidden(pair, item)
        assert_same_rows(hidden[number, : len(row.tokens)], expected)
        unit = expected[-1] / np.linalg.norm(expected[-1])
        assert embeddings[number] @ unit >= 0.99999


@EVERY
def test_padding_on_the_left_gives_the_same_embeddings(pairs, whole, kind):
    """The originals pad on the left, where transformers' positions count the padding."""
    pair = pairs[kind]
    items = items_of(sizes_for(pair)[:4])
    theirs = torch_left_padded(pair, items)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(whole(kind).embeddings_of(items), theirs, atol=1e-5, rtol=0)


@TOWERS
def test_padding_and_neighbours_do_not_matter(pairs, whole, kind):
    items = items_of(SIZES[:3])[2:3]
    alone, _ = packed(pairs[kind], items, 80, 5)
    ours = embed(pairs[kind], alone)[:1]
    np.testing.assert_allclose(ours, whole(kind).embeddings_of(items), atol=1e-5)


def test_bfloat16_stays_close(pair):
    """The arithmetic of TPU runs: the same embedding up to bfloat16's rounding."""
    inputs, _, _ = together(pair, items_of(SIZES[:3]))
    rough = dataclasses.replace(EXACT, dtype=jnp.dtype("bfloat16"))
    exact, other = (jax.jit(lambda i, e=e: pair.model(i, e))(inputs) for e in (EXACT, rough))
    cosine = jnp.sum(exact * other, axis=1)
    assert float(cosine.min()) > 0.995
