"""Qwen2-VL, its components and the whole, against transformers' model and recorded originals."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig

from tests.backbones.tiny_families import DECODER
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.float32 import assert_same_rows
from tests.models.oracle import (
    EXACT,
    FindsPositions,
    embedded_by,
    packed,
    pair_of,
    picture,
    torch_hidden,
)
from tests.tables import for_each
from unime_jax import backbones, paths, sharding
from unime_jax.backbones.io import hf_config, weights
from unime_jax.backbones.qwen2_vl import dynamic_resolution, folder, qwen2_vl
from unime_jax.batch import Inputs, Item, Media
from unime_jax.models import attention, rope
from unime_jax.models.qwen2_vl import Qwen2Vl, Qwen2VlConfig
from unime_jax.models.qwen_vit import axial_angles
from unime_jax.models.vlm import Pixels

TILE = 32
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "qwen2_vl"
VISION = dict(embed_dim=32, depth=3, num_heads=2, mlp_ratio=2)  # heads of 16: 4 frequencies a side
TEXT = DECODER | dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=1)  # heads of 16
CHAT = backbones.Processing(prompt="chat")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Images of up to 100 tokens; 32 patches a tile, so that most images take several."""
    folder = tmp_path_factory.mktemp("qwen2_vl") / "folder"
    write_qwen2_vl(folder, max_pixels=100 * 64, mrope_section=(2, 3, 3), vision=VISION, text=TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen2_vl, "TILE", TILE)
        yield pair_of(folder)


@pytest.fixture(scope="module")
def chat_pair(pair):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen2_vl, "TILE", TILE)
        opened = backbones.open_backbone(
            str(pair.backbone.folder), max_length=4096, processing=CHAT
        )
    return dataclasses.replace(pair, backbone=opened)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(ours, theirs):
    assert_same_rows(ours, theirs.detach().numpy())


def first_layer(stack):
    return jax.tree.map(lambda x: x[0], stack)


def image(i, width, height):
    return Media(f"{i}.png", picture(width, height, i))


def item(text, *pictures):
    return Item(text, pictures)


SIZES = [(8, 8), (56, 28), (200, 2), (41, 43), (300, 301), (124, 175), (7, 190)]


def items():
    """Texts, images, both, and several images in one, of all lengths."""
    found = [item("What is in the picture?"), item("a red circle left of a blue square")]
    for i, (width, height) in enumerate(SIZES):
        text = "<|image_1|>\nRepresent the given image." if i % 2 else "<|image_1|>\n"
        found.append(item(text, image(i, width, height)))
    two = image(10, 60, 41), image(11, 9, 30)
    found.append(item("<|image_1|> is left of <|image_2|>", *two))
    found.append(item("without a marker, three of them", *two, image(12, 41, 60)))
    return found


def chunk(pair, some):
    rows = [pair.backbone.preprocess(one) for one in some]
    tokens = max(len(row.tokens) for row in rows) + 3
    tiles = max(len(row.patches) for row in rows if row.patches is not None) + 1
    return rows, *packed(pair, some, tokens, tiles)


def table_of(model, row, execution=EXACT):
    """The image tokens of one row."""
    patches, position = (jax.device_put(x[None]) for x in (row.patches, row.patch_position))
    return jax.jit(lambda p, q: model.vision_features(p, q, execution).table)(patches, position)[0]


# Components


def test_images_of_a_block_and_of_an_item_do_not_see_each_other(pair):
    """Two images and filling in one sequence; transformers is given the two images alone."""
    x = random(1, 30, 32)
    places = [dynamic_resolution.patch_places(grid, 2) for grid in ((2, 6), (4, 2))]
    position = np.full((1, 30, 3), -1)
    position[0, :12] = np.pad(places[0], ((0, 0), (1, 0)))
    position[0, 16:24] = np.pad(places[1], ((0, 0), (1, 0)), constant_values=1)
    tower = pair.torch_model.model.visual
    given = [*range(12), *range(16, 24)]
    angles = tower.rotary_pos_emb(torch.zeros(()), torch.tensor(np.concatenate(places)))
    theirs = tower.blocks[0](
        torch.tensor(x[0, given]), cu_seqlens=torch.tensor([0, 12, 20]), position_embeddings=angles
    )

    @jax.jit
    def first_block(x, position):
        cos, sin = axial_angles(position[:, :, 1:], 16, 1e4)
        block = first_layer(pair.model.visual.blocks)
        return block(x, cos, sin, position[:, :, 0], "xla")

    ours = np.asarray(first_block(x, position))
    assert np.isfinite(ours).all()
    close(ours[0, given], theirs)

    # Images of an item do not see each other. In the tower: the first image's tokens are the
    # same whatever the second is.
    tables = []
    for other in (image(1, 30, 30), image(2, 50, 20)):
        row = pair.backbone.preprocess(item("x", image(0, 60, 41), other))
        tables.append(np.asarray(table_of(pair.model, row)))
    count = int((row.patch_position[..., 0] == 0).sum()) // 4
    np.testing.assert_allclose(tables[0][:count], tables[1][:count], atol=1e-5)
    assert np.abs(tables[0][-4:] - tables[1][-4:]).max() > 0.01


def test_segments_attend_to_themselves():
    """As attention over each segment alone, in any order of the segments' tokens."""
    q, k, v = (random(2, 9, 4, 8, seed=i) for i in range(3))
    attend = jax.jit(functools.partial(attention.attend, causal=False, implementation="xla"))
    segment = np.array([[0, 0, 0, 1, 1, 1, -1, -1, -1], [3, 1, 3, 1, 3, 1, 2, 2, 2]])
    ours = np.asarray(attend(q, k, v, segment=segment))
    for row, numbers in enumerate(segment):
        for number in set(numbers):
            mine = numbers == number
            alone = [x[row : row + 1, mine] for x in (q, k, v)]
            np.testing.assert_allclose(ours[row, mine], attend(*alone)[0], atol=1e-6)


def test_sections_of_the_decoders_frequencies_and_its_attention(pair):
    positions = np.random.default_rng(0).integers(0, 2000, (3, 2, 9))
    decoder = pair.torch_model.model.language_model
    theirs = decoder.rotary_emb(torch.zeros(()), torch.tensor(positions))
    text = pair.model.language_model
    assert text.rope_axes == (0, 0, 1, 1, 1, 2, 2, 2)
    angles_at = jax.jit(lambda at: rope.rotary_angles(at, text.rope_axes, text.rope_theta))
    for mine, other in zip(angles_at(positions.transpose(1, 2, 0)), theirs, strict=True):
        np.testing.assert_allclose(  # angles up to 2000 in float32
            np.asarray(mine)[:, :, 0], other.numpy(), atol=2e-4, rtol=0
        )

    # Decoder attention with sections
    x, positions = random(2, 9, 32), np.random.default_rng(0).integers(0, 20, (3, 2, 9))
    decoder = pair.torch_model.model.language_model
    angles = decoder.rotary_emb(torch.zeros(()), torch.tensor(positions))
    mask = torch.full((1, 1, 9, 9), -torch.inf).triu(1)
    theirs, _ = decoder.layers[0].self_attn(
        torch.tensor(x), attention_mask=mask, position_embeddings=angles
    )

    @jax.jit
    def ours(x, cos, sin):
        return first_layer(text.layers).self_attn(x, cos, sin, "xla")

    close(ours(x, *angles_at(positions.transpose(1, 2, 0))), theirs)


def test_every_part_of_the_tower(pair):
    """Bytes of images of several sizes in tiles, against the processor's pixels in one run."""
    pictures = [image(0, 60, 41), image(1, 9, 30), image(2, 8, 8)]
    row = pair.backbone.preprocess(item("x", *pictures))
    assert len(row.patches) > 4 and (row.patch_position[..., 0] == -1).any()
    table = table_of(pair.model, row)
    assert np.isfinite(table).all()
    values = row.patches.reshape(-1, 48)[row.patch_position.reshape(-1, 3)[:, 0] >= 0]
    mean, std = (np.repeat(x, 16) for x in (pair.model.pixels.mean, pair.model.pixels.std))
    normal = ((values / 255 - mean) / std).astype(np.float32).reshape(-1, 3, 1, 16)
    grids = [np.ptp(row.patch_position[row.patch_position[..., 0] == i], axis=0) for i in range(3)]
    theirs = pair.torch_model.model.visual(
        torch.tensor(np.repeat(normal, 2, axis=2).reshape(-1, 96)),
        torch.tensor([[1, height + 1, width + 1] for _, height, width in grids]),
    ).pooler_output
    close(table[row.slot[row.slot >= 0]], theirs)

    # Patch projection.
    x = random(2, 5, 48)
    theirs = pair.torch_model.model.visual.patch_embed
    frames = np.repeat(x.reshape(10, 3, 1, 16), 2, axis=2).reshape(10, 96)
    ours = jax.jit(lambda x: pair.model.visual.patch_embed(x))
    close(np.asarray(ours(x)).reshape(10, -1), theirs(torch.tensor(frames)))

    # Patches of a clip have frames. Two different frames a patch; a frame twice is a still image.
    x = random(10, 3, 2, 16)
    theirs = pair.torch_model.model.visual.patch_embed(torch.tensor(x.reshape(10, 96)))
    close(np.asarray(ours(x.reshape(1, 10, 96)))[0], theirs)
    still = x[:, :, :1].repeat(2, axis=2).reshape(1, 10, 96)
    np.testing.assert_array_equal(ours(still), ours(x[:, :, 0].reshape(1, 10, 48)))

    # Merger.
    x = random(1, 20, 32)
    theirs = pair.torch_model.model.visual.merger(torch.tensor(x[0]))
    close(jax.jit(lambda x: pair.model.visual.merger(x)[0])(x), theirs)

    # Rows and columns turn the frequencies
    places = np.random.default_rng(0).integers(0, 50, (7, 2))
    theirs = pair.torch_model.model.visual.rotary_pos_emb(torch.zeros(()), torch.tensor(places))
    angles = jax.jit(axial_angles, static_argnums=(1, 2))(places[None], 16, 1e4)
    for mine, other in zip(angles, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(mine)[0, :, 0], other.numpy(), atol=1e-5, rtol=0)


# The whole


def test_whole_model_raw_and_in_the_chat_template(pair, chat_pair):
    """Everything in one padded chunk, each item against its own run in transformers."""
    rows, inputs, numbers = chunk(pair, items())
    hidden = np.asarray(jax.jit(lambda i: pair.model.hidden_states(i, EXACT))(inputs))
    assert np.isfinite(hidden).all()
    for one, row, number in zip(items(), rows, numbers, strict=True):
        expected = torch_hidden(pair, one)
        assert_same_rows(hidden[number, : len(row.tokens)], expected)

    # Whole model in the chat template. The same with rows and columns; transformers finds the
    # positions itself.
    pair = chat_pair
    rows, inputs, numbers = chunk(pair, items())
    embeddings = np.asarray(jax.jit(lambda i: pair.model(i, EXACT))(inputs))
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    theirs = dataclasses.replace(pair, torch_model=FindsPositions(pair.torch_model))
    for one, row, number in zip(items(), rows, numbers, strict=True):
        assert bool(one.media) == bool((row.positions != row.positions[:, :1]).any())
        last = torch_hidden(theirs, one)[-1]
        unit = last / np.linalg.norm(last)
        assert_same_rows(embeddings[number], unit)
        assert embeddings[number] @ unit >= 0.99999


def test_padding_and_neighbours_do_not_matter(pair):
    run = jax.jit(lambda i: pair.model(i, EXACT))
    some = items()[2:5] + items()[-2:]
    together, numbers = packed(pair, some, 180, 15)
    together = np.asarray(run(together))
    for one, number in zip(some, numbers, strict=True):
        alone, _ = packed(pair, [one], 140, 14)
        np.testing.assert_allclose(run(alone)[0], together[number], atol=1e-5)

    # Bfloat16 stays close
    inputs, _ = packed(pair, some, 180, 15)
    rough = dataclasses.replace(EXACT, dtype=jnp.dtype("bfloat16"))
    exact, other = together, np.asarray(jax.jit(lambda i: pair.model(i, rough))(inputs))
    assert np.sum(exact * other, axis=1)[numbers].min() > 0.995


# Recorded: the model as UniME-V2 and VLM2Vec run it


@pytest.fixture(scope="module")
def recorded_model():
    """Pixels there are value / 32, and the two frames of a patch differ."""
    config = AutoConfig.from_pretrained(GOLDEN)
    text = hf_config.decoder_config(
        config.text_config, model_types=("qwen2_vl_text",), max_length=64, final_norm=True
    )
    vision = qwen2_vl.tower_config(config, text)
    pixels = Pixels((0.0,) * 3, (1.0,) * 3, 1 / 32)

    def make(key):
        return Qwen2Vl(Qwen2VlConfig(text, vision, pixels), key=key)

    graph, shapes = paths.split(jax.eval_shape(make, jax.random.key(0)))
    place = sharding.replicated(sharding.make_mesh(1, 1, 1, jax.devices()[:1]))
    targets = {
        path: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=place)
        for path, x in shapes.items()
    }
    model = paths.merge(graph, weights.load(GOLDEN, targets, folder.names(vision)))
    assert model.visual.patch_embed.frames == 2
    model.visual.patch_embed.frames = 1  # what is fed has both
    return model


@pytest.mark.usefixtures("unchecked_shapes")  # the recorded pixels are signed
@for_each("case", ["raw_prompt_mixed", "text_only"])
def test_recorded_embeddings(recorded_model, case):
    """Plain positions, and an image token without an image is a token like any other."""
    data = load_file(GOLDEN / case / "io.safetensors")
    lengths = json.loads((GOLDEN / case / "case.json").read_text())["lengths"]
    rows, tokens = data["input_ids"].shape
    ids, slot = np.zeros((rows, tokens), np.int32), np.full((rows, tokens, 1), -1, np.int32)
    patches, position = np.zeros((rows, 2, 32, 1176), np.int8), np.full((rows, 2, 32, 3), -1)
    seen = 0
    for row, length in enumerate(lengths):
        ids[row, :length] = data["input_ids"][row, tokens - length :]
        if data["has_image"][row]:
            slot[row, ids[row] == 312, 0] = np.arange(6)
            patches[row, 0, :24] = data["pixel_values_i8"][seen]
            position[row, 0, :24] = np.pad(
                dynamic_resolution.patch_places((4, 6), 2), ((0, 0), (1, 0))
            )
            seen += 1
    inputs = Inputs(
        tokens=jax.device_put(ids),
        length=np.array(lengths),
        live=jnp.ones(rows, bool),
        positions=jnp.broadcast_to(jnp.arange(tokens)[None, :, None], (rows, tokens, 3)),
        slot=jax.device_put(slot),
        slot_weight=None,
        patches=jax.device_put(patches) if seen else None,
        patch_position=jax.device_put(position) if seen else None,
    )
    names = "hidden_states", "vision_features"
    embeddings, hidden, vision = embedded_by(recorded_model, inputs, names)
    if seen:
        images = np.asarray(vision.table)[data["has_image"].astype(bool), :6].reshape(12, -1)
        assert_same_rows(images, data["image_embeds"])
    hidden = np.asarray(hidden)
    for row, length in enumerate(lengths):
        expected = data["last_hidden_state"][row, tokens - length :]
        assert_same_rows(hidden[row, :length], expected)
    assert_same_rows(embeddings, data["embedding"])
