"""Phi-3.5-Vision against recordings of the original code: pixels, rotary factors, the whole."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.backbones.tiny_phi3_v import GOLDEN, write_golden
from tests.float32 import assert_same_rows
from tests.models.oracle import EXACT, embedded_by, load
from tests.tables import for_each
from unime_jax import backbones, paths, sharding
from unime_jax.backbones.llava import anyres
from unime_jax.backbones.phi3_v import hd_transform
from unime_jax.batch import Inputs
from unime_jax.models import rope
from unime_jax.models.global_view import fill_global_views
from unime_jax.models.phi3_v import Phi3V
from unime_jax.models.vlm import Pixels

SIDE, TILE, PATCH = 24, 336, 14
BLOCKS = Pixels((4.0,) * 3, (1.0,) * 3, 1 / 32)  # the recordings' pixels are whole 32nds, as bytes


@dataclasses.dataclass(frozen=True)
class Case:
    """A recording, and its rows as ours: right-padded, images by slots."""

    io: dict[str, np.ndarray]
    inputs: Inputs
    lengths: np.ndarray


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_golden(tmp_path_factory.mktemp("phi3_v") / "folder")


@pytest.fixture(scope="module")
def model(folder) -> Phi3V:
    return opened(folder)


def opened(folder: pathlib.Path) -> Phi3V:
    backbone = backbones.open_backbone(str(folder), max_length=4096)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    model = paths.merge(graph, load(backbone))
    model.pixels = BLOCKS
    return model


def case_of(name: str, *, pixel_order: bool = False) -> Case:
    """Reads a case. `pixel_order`: images in the order of their pixels, as the original has it."""
    io = load_file(GOLDEN / "model" / name / "io.safetensors")
    mask = io["attention_mask"].astype(bool)
    lengths, longest = mask.sum(axis=1), mask.shape[1]
    ids = np.zeros_like(io["input_ids"])
    for row, (own, real) in enumerate(zip(io["input_ids"], mask, strict=True)):
        ids[row, : real.sum()] = own[real]
    slot = np.full((*ids.shape, 1), -1, np.int32)
    patches = position = None
    if "pixel_blocks" in io:
        blocks = (io["pixel_blocks"].astype(np.int16) + 128).astype(np.uint8)
        owner = io["image_row"]
        most, each = np.bincount(owner, minlength=len(ids)).max(), blocks.shape[1]
        patches = np.zeros((len(ids), most * each, SIDE**2, 3 * PATCH**2), np.uint8)
        for row in range(len(ids)):
            tokens = []
            for i, image in enumerate(np.flatnonzero(owner == row)):
                pixels = blocks[image].repeat(6, axis=2).repeat(6, axis=3).transpose(0, 2, 3, 1)
                patches[row, i * each : (i + 1) * each] = anyres.cut_patches(pixels, PATCH)
                height, width = io["image_sizes"][image] // TILE
                tokens.append(hd_transform.slots((int(height), int(width)), SIDE, i * each))
            order = -np.unique(ids[row][ids[row] < 0])[::-1] - 1
            if not pixel_order:
                first = [np.argmax(ids[row] == -1 - i) for i in order]
                order = order[np.argsort(first)]
            if tokens:
                slot[row, ids[row] < 0, 0] = np.concatenate([tokens[i] for i in order])
        position = np.full((*patches.shape[:3], 3), -1, np.int32)  # the global views are given
    arange = np.arange(longest, dtype=np.int32)
    inputs = Inputs(
        tokens=jax.device_put(np.maximum(ids, 0)),
        length=jax.device_put(lengths.astype(np.int32)),
        live=jnp.ones(len(lengths), bool),
        positions=jax.device_put(np.where(arange < lengths[:, None], arange, 0)[..., None]),
        slot=jax.device_put(slot),
        slot_weight=None,
        patches=None if patches is None else jax.device_put(patches),
        patch_position=None if position is None else jax.device_put(position),
    )
    return Case(io, inputs, lengths)


def check(model: Phi3V, case: Case) -> None:
    """Hidden states where they are recorded, and embeddings."""
    embedding, hidden = embedded_by(model, case.inputs, ("hidden_states",))
    hidden, io = np.asarray(hidden), case.io
    mask = io["attention_mask"].astype(bool)
    if "last_hidden_state" in io:
        for row, length in enumerate(case.lengths):
            theirs = io["last_hidden_state"][row][mask[row]]
            assert_same_rows(hidden[row, :length], theirs)
    else:
        for row, length in enumerate(case.lengths):
            head = min(8, length)
            theirs = io["last_hidden_state_head"][row, :head]
            assert_same_rows(hidden[row, :head], theirs)
            if length == mask.shape[1]:
                theirs = io["last_hidden_state_tail"][row]
                assert_same_rows(hidden[row, -8:], theirs)
    compare(np.asarray(embedding), io["embedding"])


def embed(model: Phi3V, inputs: Inputs) -> np.ndarray:
    return np.asarray(embedded_by(model, inputs, ("hidden_states",))[0])


def compare(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert_same_rows(ours, theirs)
    assert np.all(np.sum(ours * theirs, axis=1) >= 0.99999)


PARITY = [  # lengths at which the row's and the batch's length choose the same factors
    "boundary_text",
    "boundary_text_plus1",
    "mixed_batch",
    "one_image",
    "one_image_more_crop_slots",
    "text_left_pad",
    "text_right_pad",
    "two_images",
]


# Tests below are of one image, two, and padding on the right.
QUICK = "boundary_text", "boundary_text_plus1", "mixed_batch", "one_image_more_crop_slots"


@for_each("name", PARITY, quick=QUICK)
def test_recorded_hidden_states_and_embeddings(model, name):
    check(model, case_of(name))


def test_without_rope_scaling(tmp_path):
    check(opened(write_golden(tmp_path, rope_scaling=None)), case_of("no_rope_scaling"))


@for_each("kind", ["su", "longrope"])
def test_both_names_of_longrope(tmp_path, kind):
    """In both spellings of the key, too."""
    scaling = json.loads((GOLDEN / "model" / "config.json").read_text())["rope_scaling"]
    factors = {key: scaling[key] for key in ("short_factor", "long_factor")}
    key = "rope_type" if kind == "longrope" else "type"
    folder = write_golden(tmp_path, rope_scaling=factors | {key: kind})
    case = case_of("text_right_pad")
    compare(embed(opened(folder), case.inputs), case.io["embedding"])


def test_the_recorded_images_must_be_seen_in_the_order_of_their_pixels(model):
    """The original ignores the numbers; here they decide, so that the recording is the other."""
    case = case_of("two_images_slots_swapped", pixel_order=True)
    check(model, case)
    honoured = embed(model, case_of("two_images_slots_swapped").inputs)
    assert np.sum(honoured * case.io["embedding"]) < 0.999


def test_a_short_row_beside_a_long_one(model):
    """As alone; the original's own choice, by the padded length, follows from longer positions."""
    case = case_of("long_text")
    ours = embed(model, case.inputs)
    compare(ours[:1], case.io["embedding"][:1])
    compare(ours[1:], case.io["embedding_row1_alone"])
    padded = jnp.broadcast_to(jnp.arange(552)[:, None], case.inputs.positions.shape)
    as_recorded = dataclasses.replace(case.inputs, positions=padded)
    compare(embed(model, as_recorded), case.io["embedding"])
    assert np.sum(case.io["embedding"][1] * case.io["embedding_row1_alone"][0]) < 0.9999


@for_each("name", ["boundary_text", "boundary_text_plus1", "long_text"])
def test_rotary_tables(model, name):
    """The last position's, the attention's scale in them."""
    case = case_of(name)
    decoder = model.language_model

    @jax.jit
    def angles(at):
        return rope.rotary_angles(at, decoder.rope_axes, decoder.rope_theta, decoder.long_rope)

    cos, sin = map(np.asarray, angles(case.inputs.positions))
    for ours, theirs in ((cos, case.io["rope_cos"]), (sin, case.io["rope_sin"])):
        np.testing.assert_allclose(ours[0, -1, 0], theirs, atol=1e-4, rtol=0)
    scale = json.loads((GOLDEN / "model" / name / "case.json").read_text())["rope_scaling_factor"]
    assert decoder.long_rope.scale == pytest.approx(scale, abs=1e-9)


@pytest.mark.slow
def test_layers_of_the_decoder_and_the_tower(model):
    case = case_of("one_image")
    inputs = case.inputs

    @jax.jit
    def states(model, inputs):
        x = model.language_model.embed_tokens(inputs.tokens, jnp.float32)
        table = model.vision_features(inputs.patches, inputs.patch_position, EXACT).table
        image = jnp.take_along_axis(table, jnp.maximum(inputs.slot, 0), axis=1)
        x = jnp.where(inputs.slot >= 0, image, x)
        decoder = model.language_model
        cos, sin = rope.rotary_angles(
            inputs.positions, decoder.rope_axes, decoder.rope_theta, decoder.long_rope
        )
        found = [x]
        for i in range(2):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], decoder.layers)
            found.append(layer(found[-1], cos, sin, "xla"))
        return found, table

    found, table = states(model, inputs)
    for i, state in enumerate(found):
        assert_same_rows(state, case.io[f"hidden_states_{i}"])
    slot = inputs.slot[0, :, 0]
    tokens = np.asarray(table[0])[np.asarray(slot[slot >= 0])]
    assert_same_rows(tokens, case.io["image_features_proj"])

    pixels = np.asarray(inputs.patches[0]).astype(np.float32) / 32 - 4
    features = jax.jit(lambda m, x: m.vision_tower(x, remat="none", implementation="xla"))(
        model, jax.device_put(pixels)
    )
    for tile in (0, 1):
        theirs = case.io[f"clip_features_tile{tile}"][1:]  # without the class token
        assert_same_rows(features[tile], theirs)


# Pixels


def tiles_of(name: str, crops: int, mean, std) -> tuple[np.ndarray, np.ndarray]:
    """Normalised tiles of a recorded image, the first one empty, and their places."""
    image = Image.open(GOLDEN / "processor" / name).convert("RGB")
    canvas = hd_transform.canvas_of((image.height, image.width), crops=crops, tile=TILE)
    cut = np.pad(hd_transform.cut_crops(image, canvas, TILE), ((1, 0), (0, 0), (0, 0), (0, 0)))
    tiles = ((cut / 255 - mean) / std).astype(np.float32)
    return anyres.cut_patches(tiles, PATCH), hd_transform.patch_places(canvas.grid, SIDE, 0)


def unpatched(tiles: np.ndarray) -> np.ndarray:
    """[n, 3, 336, 336]."""
    x = tiles.reshape(-1, SIDE, SIDE, 3, PATCH, PATCH).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, 3, TILE, TILE)


def test_recorded_pixels_and_global_views_that_are_torchs_bicubic():
    """Three images in one row, their tiles shuffled: 2 x 2, 1 x 1 and 2 x 8 crops."""
    record = json.loads((GOLDEN / "processor" / "pixels.json").read_text())
    mean, std = (np.array(record[x], np.float32) for x in ("image_mean", "image_std"))
    found = [tiles_of(one["image"], one["num_crops"], mean, std) for one in record["images"]]
    counts = [len(tiles) for tiles, _ in found]
    tiles = np.concatenate([tiles for tiles, _ in found])
    position = np.concatenate([place for _, place in found])
    position[..., 0] = np.repeat([2, 0, 1], counts)[:, None]
    unfilled = np.full((2, *position.shape[1:]), -1)
    tiles = np.concatenate([tiles, np.ones((2, *tiles.shape[1:]), np.float32)])
    position = np.concatenate([position, unfilled])
    order = np.random.default_rng(0).permutation(len(tiles))
    filled = np.zeros_like(tiles)
    filled[order] = np.asarray(
        jax.jit(fill_global_views)(
            jax.device_put(tiles[order][None]), jax.device_put(position[order][None])
        )
    )[0]
    start = 0
    for one, count in zip(record["images"], counts, strict=True):
        pixels = unpatched(filled[start : start + count])
        np.testing.assert_array_equal(
            filled[start + 1 : start + count], tiles[start + 1 : start + count]
        )
        points = tuple(np.array(one["sample_points"]).T)
        np.testing.assert_allclose(pixels[points], one["sample_values"], atol=2e-6)
        recorded = np.load(GOLDEN / "processor" / one["global_view"])["global_q13"] / 8192
        np.testing.assert_allclose(pixels[0], recorded, atol=7e-5)  # 1/8192 is all they say
        start += count
    np.testing.assert_array_equal(filled[-2:], tiles[-2:])

    # Global views are torchs bicubic. Tiles of 8 x 8 pixels, edges and all.
    import torch

    for grid in [(1, 1), (2, 4), (5, 3)]:
        canvas = (
            np.random.default_rng(0).normal(size=(3, grid[0] * 8, grid[1] * 8)).astype(np.float32)
        )
        theirs = torch.nn.functional.interpolate(
            torch.tensor(canvas)[None], size=(8, 8), mode="bicubic", align_corners=False
        )[0]
        crops = canvas.transpose(1, 2, 0).reshape(grid[0], 8, grid[1], 8, 3).swapaxes(1, 2)
        cut = np.pad(crops.reshape(-1, 8, 8, 3), ((1, 0), (0, 0), (0, 0), (0, 0)))
        tiles, position = anyres.cut_patches(cut, 2), hd_transform.patch_places(grid, 4, 5)
        filled = jax.jit(fill_global_views)(tiles[None], position[None])[0]
        view = (
            np.asarray(filled[0]).reshape(4, 4, 3, 2, 2).transpose(2, 0, 3, 1, 4).reshape(3, 8, 8)
        )
        np.testing.assert_allclose(view, theirs, atol=1e-5)
        np.testing.assert_array_equal(filled[1:], tiles[1:])


# Meshes


@pytest.mark.slow
def test_a_sharded_model_gives_the_same_embeddings(model):
    """Fused layers are apart, so that the tensor axis cuts each by its own heads."""
    case = case_of("text_right_pad")
    wide = jax.tree.map(lambda x: jnp.concatenate([x, x, x[:2]]), case.inputs)
    mesh = sharding.make_mesh(2, 2, 2)
    graph, parameters = paths.split(model)
    placed = sharding.parameter_shardings(mesh, {p: x.shape for p, x in parameters.items()})
    for layer in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj"):
        path = f"language_model.layers.{layer}.kernel"
        assert placed[path].spec == jax.P(None, "fsdp", "tensor")
    rows = jax.NamedSharding(mesh, jax.P(sharding.ROWS))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda p, x: paths.merge(graph, p)(x, EXACT))(
            jax.device_put(parameters, placed), jax.device_put(wide, rows)
        )
    np.testing.assert_allclose(np.asarray(found), embed(model, wide), atol=2e-6)
