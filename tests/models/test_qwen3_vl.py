"""Qwen3-VL, its components and the whole, against transformers' model and host functions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import vision_utils

from tests.backbones.tiny_families import DECODER
from tests.backbones.tiny_qwen3 import write_qwen3_vl
from tests.float32 import assert_same_rows
from tests.models.oracle import EXACT, FindsPositions, packed, pair_of, picture, torch_hidden
from unime_jax import backbones
from unime_jax.backbones.qwen2_vl import dynamic_resolution
from unime_jax.backbones.qwen3_vl import qwen3_vl
from unime_jax.batch import Item, Media
from unime_jax.models import rope, scan
from unime_jax.models.pooling import last_token, unit_norm
from unime_jax.models.qwen3_vit import bilinear_taps, image_sizes
from unime_jax.models.qwen_vit import axial_angles

TILE = 32
VISION = dict(  # heads of 16: 4 frequencies a side
    hidden_size=32,
    intermediate_size=40,
    depth=4,
    num_heads=2,
    num_position_embeddings=49,
    deepstack_visual_indexes=[0, 2],
)
TEXT = DECODER | dict(  # heads wider than the model has room for, as the 2B's
    hidden_size=32, num_hidden_layers=3, num_key_value_heads=1, head_dim=32
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Images of up to 100 tokens; 32 patches a tile, so that most images take several."""
    folder = tmp_path_factory.mktemp("qwen3_vl") / "folder"
    write_qwen3_vl(
        folder, pixels=(256, 100 * 64), mrope_section=(6, 5, 5), vision=VISION, text=TEXT
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen3_vl, "TILE", TILE)
        yield pair_of(folder)


def image(i, width, height):
    return Media(f"{i}.png", picture(width, height, i))


def close(ours, theirs):
    assert_same_rows(ours, theirs.detach().numpy())


SIZES = [(8, 8), (56, 28), (200, 2), (41, 43), (124, 175), (7, 190)]
ITEMS = [
    Item("What is in the picture?"),
    *(Item("<|image_1|>\nRepresent it.", (image(i, *size),)) for i, size in enumerate(SIZES)),
    Item("<|image_1|> is left of <|image_2|>", (image(10, 60, 41), image(11, 9, 30))),
    Item("three of them", (image(10, 60, 41), image(11, 9, 30), image(12, 41, 60))),
]


def check_integers_and_weights_of_any_grid():
    """Places, bilinear taps and their weights, as transformers' host functions give them."""
    random = np.random.default_rng(0)
    for side in (1, 7, 48):
        grids = 2 * random.integers(1, 60, (12, 2))
        theirs = torch.tensor([(1, *grid) for grid in grids])
        places = [dynamic_resolution.patch_places(tuple(grid), 2) for grid in grids]
        np.testing.assert_array_equal(
            np.concatenate(places), vision_utils.get_vision_position_ids(theirs, 2)
        )
        index, weight = vision_utils.get_vision_interpolation_indices_and_weights(
            theirs, side, align_corners=True, spatial_merge_size=2
        )
        sizes = np.repeat(grids, [len(place) for place in places], axis=0)
        taps, fractions = bilinear_taps(jax.device_put(np.concatenate(places)), sizes, side)
        np.testing.assert_array_equal(
            (taps[:, 0, :, None] * side + taps[:, 1, None, :]).reshape(-1, 4), index
        )
        np.testing.assert_allclose(
            (fractions[:, 0, :, None] * fractions[:, 1, None, :]).reshape(-1, 4), weight, atol=1e-5
        )

    # The size of each tile's image, also where it takes several tiles, and of none.
    position = np.full((1, 4, 24, 3), -1)
    for tile, number, rows in ((0, 0, range(2)), (1, 0, range(2, 4)), (2, 1, range(1))):
        for i, (row, column) in enumerate((r, c) for r in rows for c in range(12)):
            position[0, tile, i] = number, row, column
    sizes = image_sizes(jax.device_put(position))
    np.testing.assert_array_equal(sizes[0], [[4, 12], [4, 12], [1, 12], [1, 1]])


@pytest.mark.slow
def test_every_part_against_transformers(pair):
    """Bytes of images of several sizes in tiles, against the processor's pixels in one run."""
    check_integers_and_weights_of_any_grid()
    pictures = tuple(image(i, *size) for i, size in enumerate(((60, 41), (9, 30), (8, 8))))
    row = pair.backbone.preprocess(Item("x", pictures))
    assert len(row.patches) > 4 and (row.patch_position[..., 0] == -1).any()
    patches, position = (jax.device_put(x[None]) for x in (row.patches, row.patch_position))
    tower = pair.model.visual

    @jax.jit
    def run(patches, position):
        features = pair.model.tower_features(patches, position, EXACT)
        x = (patches / 255 - 0.5) / 0.5
        x = tower.patch_embed(x.reshape(1, -1, 48)) + tower.pos_embed.resized(
            position, jnp.float32
        ).reshape(1, -1, 32)
        flat = position.reshape(1, -1, 3)
        cos, sin = axial_angles(flat[..., 1:], 16, 1e4)
        every = scan.run_levels(
            tower.blocks,
            lambda block, x: block(x, cos, sin, flat[..., 0], "xla"),
            x,
            remat="none",
            levels=range(3),
        )
        return features.levels, pair.model.project(features, EXACT), every

    levels, vision, every = run(patches, position)
    filled = row.patch_position.reshape(-1, 3)[:, 0] >= 0
    values = row.patches.reshape(-1, 3, 1, 16)[filled].repeat(2, axis=2).reshape(-1, 96)
    grids = [
        [1, *np.ptp(row.patch_position[row.patch_position[..., 0] == i], axis=0)[1:] + 1]
        for i in range(3)
    ]
    states = []
    theirs = pair.torch_model.model.visual
    hooks = [
        block.register_forward_hook(lambda _, __, output: states.append(output))
        for block in theirs.blocks
    ]
    with torch.no_grad():
        output = theirs(
            torch.tensor((values / 255 - 0.5) / 0.5, dtype=torch.float32), torch.tensor(grids)
        )
    for hook in hooks:
        hook.remove()
    assert np.isfinite(every).all()
    for ours, expected in zip(every, states, strict=True):
        close(ours[0, filled], expected)
    assert len(levels) == 3
    for ours, expected in zip(levels, (every[0], every[2], every[3]), strict=True):
        np.testing.assert_array_equal(ours, expected)
    chosen = row.slot[row.slot >= 0]
    close(vision.table[0, chosen], output.pooler_output)
    assert len(vision.deepstack) == 2
    for ours, expected in zip(vision.deepstack, output.deepstack_features, strict=True):
        close(ours[0, chosen], expected)

    # Images of an item do not see each other.
    other = pair.backbone.preprocess(Item("x", (pictures[0], image(5, 9, 30), image(6, 8, 8))))
    assert other.patches.shape == row.patches.shape
    apart = run(*(jax.device_put(x[None]) for x in (other.patches, other.patch_position)))[1]
    count = int((row.patch_position[..., 0] == 0).sum()) // 4
    np.testing.assert_allclose(apart.table[0, :count], vision.table[0, :count], atol=1e-5)

    # Interleaved frequencies, and attention with its norms of heads.
    positions = np.random.default_rng(0).integers(0, 2000, (3, 2, 9))
    decoder, text = pair.torch_model.model.language_model, pair.model.language_model
    assert text.rope_axes == (0, 1, 2) * 5 + (0,)
    full = rope.interleaved_axes((24, 20, 20))
    assert full == (0, 1, 2) * 20 + (0,) * 4
    angles = decoder.rotary_emb(torch.zeros(()), torch.tensor(positions))
    ours = rope.rotary_angles(
        jax.device_put(positions.transpose(1, 2, 0)), text.rope_axes, text.rope_theta
    )
    for mine, expected in zip(ours, angles, strict=True):
        np.testing.assert_allclose(mine[:, :, 0], expected.numpy(), atol=3e-4, rtol=0)
    x = np.random.default_rng(1).normal(size=(2, 9, 32)).astype(np.float32)
    mask = torch.full((1, 1, 9, 9), -torch.inf).triu(1)
    expected, _ = decoder.layers[0].self_attn(
        torch.tensor(x), attention_mask=mask, position_embeddings=angles
    )
    layer = jax.tree.map(lambda leaf: leaf[0], text.layers).self_attn
    given = [jax.device_put(angle.numpy())[:, :, None] for angle in angles]
    close(layer(jax.device_put(x), *given, "xla"), expected)


@pytest.mark.slow  # by day last states, beside clips and alone, in test_qwen_clips.py
def test_whole_model_in_any_company(pair):
    """Everything in one chunk, each item against its own run in transformers."""
    rows = [pair.backbone.preprocess(item) for item in ITEMS]
    tokens = max(len(row.tokens) for row in rows)
    tiles = max(len(row.patches) for row in rows if row.patches is not None)
    run = jax.jit(lambda i: pair.model.hidden_states(i, EXACT))

    def embed(inputs):
        return np.asarray(unit_norm(last_token(run(inputs), inputs.length)))

    inputs, numbers = packed(pair, ITEMS, tokens, tiles)
    hidden = np.asarray(run(inputs))
    assert np.isfinite(hidden).all()
    theirs = dataclasses.replace(pair, torch_model=FindsPositions(pair.torch_model))
    for item, row, number in zip(ITEMS, rows, numbers, strict=True):
        assert bool(item.media) == bool((row.positions != row.positions[:, :1]).any())
        assert_same_rows(hidden[number, : len(row.tokens)], torch_hidden(theirs, item))

    # Neighbours do not matter: beside its likes, and beside others in another order.
    embeddings = embed(inputs)[numbers]
    for some in ([ITEMS[5]] * len(ITEMS), ITEMS[::-1]):
        inputs, numbers = packed(pair, some, tokens, tiles)
        expected = [embeddings[ITEMS.index(item)] for item in some]
        np.testing.assert_allclose(embed(inputs)[numbers], expected, atol=1e-5)
    rough = dataclasses.replace(EXACT, dtype=jnp.dtype("bfloat16"))
    inputs, numbers = packed(pair, ITEMS[:4], tokens, tiles)
    found = np.asarray(jax.jit(lambda i: pair.model(i, rough))(inputs))[numbers]
    assert float(np.sum(found * embeddings[:4], axis=1).min()) > 0.99

    # Features of a frozen tower, all levels of them, in the place of patches.
    stage = jax.jit(lambda i: pair.model.vision_stages()[0](i, EXACT))
    inputs, numbers = packed(pair, ITEMS, tokens, tiles)
    kept = dataclasses.replace(inputs, patches=None, patch_position=None, vision=stage(inputs))
    assert len(kept.vision.levels) == 3
    np.testing.assert_allclose(embed(kept)[numbers], embeddings, atol=1e-5)

    # In bare text images have rows and columns, too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen3_vl, "TILE", TILE)
        raw = backbones.open_backbone(
            str(pair.backbone.folder), max_length=99, processing=backbones.Processing(prompt="raw")
        )
    row = raw.preprocess(ITEMS[2])
    assert (row.positions[row.slot[:, 0] >= 0, 1:] != row.positions[row.slot[:, 0] >= 0, :1]).any()
