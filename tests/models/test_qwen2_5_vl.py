"""Qwen2.5-VL: its integers of the host, its tower's parts and the whole, against transformers'."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from tests.backbones.tiny_families import DECODER
from tests.backbones.tiny_qwen import write_qwen2_5_vl
from tests.float32 import assert_same_rows
from tests.models.oracle import EXACT, embedded_by, packed, pair_of, picture, torch_hidden
from tests.models.test_qwen2_vl import FindsPositions, close, random, table_of
from unime_jax import backbones
from unime_jax.backbones.qwen2_5_vl import qwen2_5_vl
from unime_jax.backbones.qwen2_vl import dynamic_resolution
from unime_jax.batch import Item, Media
from unime_jax.models.qwen_vit import axial_angles, windows

# Five layers, of which two attend over the whole image; heads of 16, as the decoder's.
VISION = dict(hidden_size=32, intermediate_size=40, depth=5, num_heads=2)
TEXT = DECODER | dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
SIDE = 6  # patches of a window: 28 pixels have three whole tokens of two patches of four
RAW = backbones.Processing(prompt="raw")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Images of up to 100 tokens in windows of 3 x 3; 32 patches a tile, no multiple of 36."""
    folder = tmp_path_factory.mktemp("qwen2_5_vl") / "folder"
    write_qwen2_5_vl(
        folder,
        max_pixels=100 * 64,
        mrope_section=(2, 3, 3),
        vision=VISION,
        full_layers=(1, 4),
        text=TEXT,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen2_5_vl, "TILE", 32)
        yield pair_of(folder)


def image(i, width, height):
    return Media(f"{i}.png", picture(width, height, i))


def test_host_integers_are_those_of_transformers():
    """Orders of windows, their bounds, and places of patches, over random images and windows."""
    rng = np.random.default_rng(0)
    number_of = jax.jit(windows, static_argnums=1)
    for _ in range(60):
        side, merge = int(rng.integers(1, 5)), int(rng.integers(1, 3))
        sizes = [tuple(map(int, rng.integers(1, 14, 2))) for _ in range(int(rng.integers(1, 4)))]
        if rng.random() < 0.3:  # whole windows
            sizes = [(height * side, width * side) for height, width in sizes[:1]]
        grids = torch.tensor([[1, height * merge, width * merge] for height, width in sizes])
        order, bounds = get_vision_window_index(grids, merge, side * merge * 14 + 5, 14)
        ours = [dynamic_resolution.window_order(size, side) for size in sizes]
        starts = np.cumsum([0, *(len(one) for one in ours[:-1])])
        np.testing.assert_array_equal(np.concatenate([o + s for o, s in zip(ours, starts)]), order)

        places = [dynamic_resolution.patch_places((h * merge, w * merge), merge) for h, w in sizes]
        theirs = get_vision_position_ids(grids, merge).numpy()
        np.testing.assert_array_equal(np.concatenate(places), theirs)

        # What the device is given, image after image: its windows end where transformers' do.
        number = np.repeat(np.arange(len(sizes)), [len(place) for place in places])
        position = np.concatenate([number[:, None], theirs], axis=1).reshape(-1, merge**2, 3)
        position = position[order.numpy()].reshape(-1, 3)
        room = np.full((1, 12000, 3), -1, np.int32)
        room[0, : len(position)] = position
        window = np.asarray(number_of(room, side * merge))[0, : len(position)]
        ends = np.flatnonzero(np.diff(window)) + 1
        np.testing.assert_array_equal([0, *ends, len(window)], bounds)
        assert len(np.unique(window)) == len(ends) + 1
        assert np.diff(bounds).max() <= (side * merge) ** 2


@pytest.mark.slow
def test_every_part_of_the_tower(pair):
    """Each block on three images in tiles with filling, and what comes before and after them."""
    tower, theirs = pair.model.visual, pair.torch_model.model.visual
    pictures = [image(0, 60, 41), image(1, 9, 30), image(2, 80, 72)]
    row = pair.backbone.preprocess(Item("x", tuple(pictures)))
    position = row.patch_position.reshape(1, -1, 3)
    filled = position[0, :, 0] >= 0
    assert not filled.all() and len(row.patches) > 6
    grids = [position[0, position[0, :, 0] == i].max(0)[1:] + 1 for i in range(3)]
    grid = torch.tensor([[1, *size] for size in grids])
    order, bounds = get_vision_window_index(grid, 2, 28, 4)
    places = get_vision_position_ids(grid, 2).reshape(-1, 4, 2)[order].reshape(-1, 2)
    np.testing.assert_array_equal(position[0, filled, 1:], places)
    whole = torch.tensor(np.cumsum([0, *(height * width for height, width in grids)]))
    angles = theirs.rotary_pos_emb(torch.zeros(()), places)

    cos, sin = axial_angles(jax.device_put(position[:, :, 1:]), 16, 1e4)
    window = windows(jax.device_put(position), SIDE)
    run = jax.jit(
        lambda block, x, full: block(
            x, cos, sin, jax.device_put(position[:, :, 0]), "xla", window, full
        )
    )
    x = random(1, len(filled), 32)
    for i, other in enumerate(theirs.blocks):
        full = i in (1, 4)
        assert tower.full[i] == full
        block = jax.tree.map(lambda x, i=i: x[i], tower.blocks)
        ours = run(block, jax.device_put(x), jax.device_put(full))
        assert np.isfinite(ours).all()
        y = other(
            torch.tensor(x[0, filled]),
            cu_seqlens=whole if full else bounds,
            position_embeddings=angles,
        )
        close(ours[0, filled], y)
        assert np.abs(ours - run(block, jax.device_put(x), jax.device_put(not full))).max() > 1e-3

    # The merger's norm has no mean.
    x = random(1, 20, 32) + 1
    close(tower.merger(jax.device_put(x))[0], theirs.merger(torch.tensor(x[0])))

    # All of it, from the processor's pixels: tokens come back in reading order.
    values = row.patches.reshape(-1, 48)[filled]
    mean, std = (np.repeat(x, 16) for x in (pair.model.pixels.mean, pair.model.pixels.std))
    normal = ((values / 255 - mean) / std).astype(np.float32).reshape(-1, 3, 1, 16)
    in_order = np.repeat(normal, 2, axis=2).reshape(-1, 4, 96)[np.argsort(order.numpy())]
    tokens = theirs(torch.tensor(in_order.reshape(-1, 96)), grid).pooler_output
    close(table_of(pair.model, row)[row.slot[row.slot >= 0]], tokens)


SIZES = [(8, 8), (56, 28), (200, 2), (41, 43), (300, 301), (48, 72), (7, 190)]


def items():
    """Texts, images of odd sizes, both, and several images in one."""
    found = [Item("What is in the picture?"), Item("a red circle left of a blue square")]
    for i, size in enumerate(SIZES):
        text = "<|image_1|>\nRepresent the given image." if i % 2 else "<|image_1|>\n"
        found.append(Item(text, (image(i, *size),)))
    two = image(10, 60, 41), image(11, 9, 30)
    return [*found, Item("<|image_1|> is left of <|image_2|>", two), Item("x", (*two, two[0]))]


@pytest.mark.slow  # by day last states, beside clips and alone, in test_qwen_clips.py
def test_whole_model_alone_and_in_a_batch(pair):
    """Everything in one padded chunk, each item against its own run in transformers."""
    rows = [pair.backbone.preprocess(one) for one in items()]
    tokens = max(len(row.tokens) for row in rows)
    tiles = max(len(row.patches) for row in rows if row.patches is not None)
    inputs, numbers = packed(pair, items(), tokens + 3, tiles + 1)
    embeddings, hidden = map(np.asarray, embedded_by(pair.model, inputs, ("hidden_states",)))
    assert pair.model.language_model.rope_axes == (0, 0, 1, 1, 1, 2, 2, 2)
    assert np.isfinite(hidden).all()
    theirs = dataclasses.replace(pair, torch_model=FindsPositions(pair.torch_model))
    for one, row, number in zip(items(), rows, numbers, strict=True):
        expected = torch_hidden(theirs, one)  # transformers finds the positions itself
        assert_same_rows(hidden[number, : len(row.tokens)], expected)
        assert np.abs(hidden[number, : len(row.tokens)] - expected).max() < 1e-4
        unit = expected[-1] / np.linalg.norm(expected[-1])
        assert embeddings[number] @ unit >= 0.99999

    # Alone, in rows of other lengths.
    for one, number in list(zip(items(), numbers, strict=True))[5:8]:
        alone, _ = packed(pair, [one], tokens + 9, tiles + 2)
        found = embedded_by(pair.model, alone, ())[0][0]
        np.testing.assert_allclose(found, embeddings[number], atol=1e-5)

    # Bare texts have plain positions, and bfloat16 stays close.
    raw = backbones.open_backbone(str(pair.backbone.folder), max_length=512, processing=RAW)
    position = raw.preprocess(items()[3]).positions
    np.testing.assert_array_equal(position, np.arange(len(position))[:, None].repeat(3, 1))
    rough = dataclasses.replace(EXACT, dtype=jnp.dtype("bfloat16"))
    other = jax.jit(lambda i: pair.model(i, rough))(inputs)
    assert float((embeddings * other).sum(axis=1).min()) > 0.99
