"""LLaVE's model against what its original code gave on a tiny checkpoint of its own."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.backbones.images import encoded, noise
from tests.float32 import assert_same_rows
from tests.models.oracle import EXACT, embedded_by, load
from tests.tables import for_each
from unime_jax import backbones, paths
from unime_jax.backbones import Processing
from unime_jax.batch import Inputs, Item, Media, Row
from unime_jax.data.clips import archive
from unime_jax.models.llava import Llava
from unime_jax.models.vlm import Pixels, merge_image_tokens

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "llave"
COSINE = 0.99999
IMAGE_TOKEN = 259  # ours, and 260 of clips; -200 in the original
pytestmark = pytest.mark.usefixtures("unchecked_shapes")  # the recorded pixels are signed
CASES = [
    "image_2x2",
    "image_token_moved_to_front",
    "mixed_batch",
    "text_only_dummy",
    "text_only_no_images",
]


@pytest.fixture(scope="module")
def backbone():
    """As the original: a marker without an image is an image of zeros."""
    processing = Processing(prompt="verbatim", missing_images="image")
    return backbones.open_backbone(str(GOLDEN / "model"), max_length=4096, processing=processing)


@pytest.fixture(scope="module")
def model(backbone) -> Llava:
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    return paths.merge(graph, load(backbone))


@pytest.fixture(scope="module")
def on_blocks(model) -> Llava:
    """The same for recorded pixels, which are bytes / 32."""
    graph, parameters = paths.split(model)
    other = paths.merge(graph, parameters)
    other.pixels = Pixels((0.0,) * 3, (1.0,) * 3, 1 / 32)
    return other


def recorded(case: str):
    folder = GOLDEN / "model" / case
    return json.loads((folder / "case.json").read_text()), load_file(folder / "io.safetensors")


def rows_of(backbone, facts, data) -> list[Row]:
    """Rows of images of the recorded sizes, with the recorded pixels in their place."""
    rows, first = [], 0
    texts = facts["texts"]
    for i, (text, count) in enumerate(
        zip(texts, data.get("blocks_per_image", [0] * len(texts)), strict=True)
    ):
        media: tuple[Media, ...] = ()
        if count:
            media = (Media("a.png", encoded(noise(*facts["image_sizes_wh"][i]))),)
        row = backbone.preprocess(Item(text, media))
        if count:
            row = dataclasses.replace(row, patches=patches_of(data, first, count))
            first += count
        rows.append(row)
    return rows


def patches_of(data, first: int, count: int) -> np.ndarray:
    """Recorded pixels as patches of tiles; the pixels that fill none are left out."""
    tiles = data["pixel_blocks"][first : first + count].repeat(6, axis=2).repeat(6, axis=3)
    tiles = tiles[:, :, : 27 * 14, : 27 * 14].reshape(count, 3, 27, 14, 27, 14)
    return tiles.transpose(0, 2, 4, 1, 3, 5).reshape(count, 729, 588)


def inputs_of(rows: list[Row]) -> Inputs:
    """One chunk, padded to its longest row; signed pixels stay so."""
    length = np.array([len(row.tokens) for row in rows])
    count, longest, blend = len(rows), length.max(), rows[0].slot.shape[1]
    tokens = np.zeros((count, longest), np.int32)
    slot = np.full((count, longest, blend), -1, np.int32)
    weight = np.zeros(slot.shape, np.float32)
    tiles = max(0 if row.patches is None else len(row.patches) for row in rows)
    patches = np.zeros((count, tiles, 729, 588), np.int16)
    position = np.full((count, tiles, 729, 3), -1, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : length[i]], slot[i, : length[i]] = row.tokens, row.slot
        if row.slot_weight is not None:
            weight[i, : length[i]] = row.slot_weight
        if row.patches is not None:
            patches[i, : len(row.patches)] = row.patches
            position[i, : len(row.patches)] = row.patch_position
    return Inputs(
        tokens=jax.device_put(tokens),
        length=jax.device_put(length),
        live=jnp.ones(count, bool),
        positions=jnp.broadcast_to(jnp.arange(longest)[None, :, None], (count, longest, 1)),
        slot=jax.device_put(slot),
        slot_weight=jax.device_put(weight) if blend > 1 else None,
        patches=jax.device_put(patches) if tiles else None,
        patch_position=jax.device_put(position) if tiles else None,
    )


def cut_to(row: Row, tokens: int) -> Row:
    return dataclasses.replace(row, tokens=row.tokens[:tokens], slot=row.slot[:tokens])


def run(model: Llava, inputs: Inputs):
    """Embeddings, hidden states, what the decoder gets, and the table of image tokens."""

    names = "hidden_states", "vision_features"
    embeddings, hidden, vision = embedded_by(model, inputs, names)
    table = None if vision is None else vision.table
    return embeddings, hidden, given_to_the_decoder(model, inputs, table), table


@jax.jit
def given_to_the_decoder(model: Llava, inputs: Inputs, table):
    x = model.language_model.embed_tokens(inputs.tokens, EXACT.dtype)
    return x if table is None else merge_image_tokens(x, table, inputs.slot, inputs.slot_weight)


def check(found, data, length):
    embeddings, hidden, x, _ = (None if y is None else np.asarray(y) for y in found)
    everywhere = np.arange(hidden.shape[1])
    for name, ours in (("last_hidden_state", hidden), ("inputs_embeds", x)):
        if f"{name}_sampled" in data:
            expected, where = data[f"{name}_sampled"], data["sampled_positions"]
        elif name in data:
            expected, where = data[name], everywhere
        else:
            continue
        assert expected.shape[1] == len(where)
        for row, count in enumerate(length):
            real = where < count
            assert_same_rows(ours[row, where[real]], expected[row, real])
    assert_same_rows(embeddings, data["embedding"])
    assert np.sum(embeddings * data["embedding"], axis=1).min() >= COSINE


def check_tokens(rows, data):
    """The original's ids, a single one where we have an image's tokens."""
    for i, row in enumerate(rows):
        ids = data["input_ids"][i][data["attention_mask"][i].astype(bool)]
        is_image = row.slot[:, 0] >= 0
        first = is_image & ~np.concatenate([[False], is_image[:-1]])
        kept = row.tokens[~is_image | first]
        np.testing.assert_array_equal(np.where(kept >= IMAGE_TOKEN, -200, kept), ids)


@for_each("case", CASES)
def test_recorded_tokens(backbone, case):
    facts, data = recorded(case)
    rows = rows_of(backbone, facts, data)
    check_tokens(rows, data)
    assert [len(row.tokens) for row in rows] == list(data["expanded_lengths"])


# The others' rows are of the same kinds, as their tokens are above.
@for_each("case", CASES, quick=("image_token_moved_to_front", "text_only_dummy"))
def test_recorded_embeddings(backbone, on_blocks, case):
    facts, data = recorded(case)
    rows = rows_of(backbone, facts, data)
    found = run(on_blocks, inputs_of(rows))
    check(found, data, data["expanded_lengths"])
    if "blocks_per_image" in data:
        tile = found[3][0, 1 : 1 + 729 : 9]
        assert_same_rows(tile, data["projected_tile0"])


@for_each("newlines", ["grid", "one"])
def test_recorded_videos(on_blocks, newlines):
    """Read from its config.json, or as the run says."""
    facts, data = recorded({"grid": "video_grid", "one": "video_one_token"}[newlines])
    processing = Processing(prompt="verbatim", missing_images="image")
    if newlines == "one":
        processing = dataclasses.replace(processing, clip_newlines="one")
    backbone = backbones.open_backbone(
        str(GOLDEN / "model"), max_length=4096, processing=processing
    )
    count = int(data["blocks_per_image"][0])
    frames = archive([noise(50, 30, seed=n) for n in range(count)], fps=None)
    row = backbone.preprocess(Item(facts["texts"][0], (Media("a.zip", frames, kind="clip"),)))
    check_tokens([row], data)
    assert [len(row.tokens)] == list(data["expanded_lengths"]) and row.clips == 1
    row = dataclasses.replace(row, patches=patches_of(data, 0, count))
    found = run(on_blocks, inputs_of([row]))
    check(found, data, data["expanded_lengths"])
    assert_same_rows(found[3][0, 1 : 1 + 729 : 9], data["projected_tile0"])


def test_recorded_embedding_of_an_image_file(backbone, model):
    """From a PNG and a text, through our own pixels."""
    facts, data = recorded("png_image_text")
    row = backbone.preprocess(
        Item(facts["texts"][0], (Media("a.png", (GOLDEN / "processor" / "a.png").read_bytes()),))
    )
    check_tokens([row], data)
    found = run(model, inputs_of([row]))
    check(found, data, data["expanded_lengths"])
    tile = found[3][0, 1 : 1 + 729 : 9]
    assert_same_rows(tile, data["projected_tile0"])


def test_recorded_tower(model):
    """Features of the last layer that is left, without the norm after it."""
    _, data = recorded("png_image_text")
    strip = np.asarray(Image.open(GOLDEN / "processor" / "a_tiles.png").convert("RGB"))
    tiles = (strip.reshape(-1, 384, 384, 3)[:, :378, :378] / 255 - 0.5) / 0.5
    tiles = tiles.reshape(-1, 27, 14, 27, 14, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 729, 588)
    tower = jax.jit(lambda x: model.vision_tower(x, remat="none", implementation="xla"))
    found = tower(jnp.asarray(tiles, jnp.float32))
    assert_same_rows(found[0, ::9], data["vision_tower_tile0"])
    assert_same_rows(found[-1, ::27], data["vision_tower_last_tile"])


def test_the_originals_cut_on_the_right_and_we_the_text(backbone, on_blocks):
    # The originals cut on the right. Its row of 600 tokens ends within the image; we never make
    # such a row, see below.
    facts, data = recorded("truncated")
    cut = cut_to(rows_of(backbone, facts, data)[0], 600)
    assert cut.slot[-1, 0] >= 0 and list(data["expanded_lengths"]) == [600]
    check(run(on_blocks, inputs_of([cut])), data, [600])

    # We shorten the text instead.
    facts, _ = recorded("truncated")
    text, image = facts["texts"][0], encoded(noise(300, 300))
    whole = backbone.preprocess(Item(text, (Media("a.png", image),)))
    opened = backbones.open_backbone(str(GOLDEN / "model"), max_length=len(whole.tokens) - 20)
    row = opened.preprocess(Item(text, (Media("a.png", image),)))
    assert row.truncated == 20 and len(row.tokens) == len(whole.tokens) - 20
    assert (row.slot >= 0).sum() == (whole.slot >= 0).sum() == 1485
    np.testing.assert_array_equal(row.tokens[-16:], whole.tokens[-16:])  # the turn's end
    few = backbones.open_backbone(str(GOLDEN / "model"), max_length=600)
    with pytest.raises(ValueError, match=r"image tokens, .* are 15\d\d tokens"):
        few.preprocess(Item(text, (Media("a.png", image),)))


def test_images_that_are_not_there(backbone, model, on_blocks):
    # A marker without an image in company. Row 2 of the mixed batch by the real normalisation,
    # beside an image that is no part of it.
    facts, data = recorded("mixed_batch")
    other = backbone.preprocess(Item("<|image_1|>\n", (Media("a.png", encoded(noise(30, 30))),)))
    rows = [other, backbone.preprocess(Item(facts["texts"][2]))]
    found = np.asarray(run(model, inputs_of(rows))[0][1])
    assert_same_rows(found, data["embedding"][2])
    assert found @ data["embedding"][2] >= COSINE

    # An image of zeros is none of bytes. The grey image is exactly zero after normalisation,
    # which 127 and 128 are not.
    row = backbone.preprocess(Item("<|image_1|>\nFind a Wikipedia image."))
    assert row.unmatched_markers == 1 and (row.slot[:, 0] >= 0).sum() == 730
    assert row.patches.shape == (1, 729, 588) and (row.patch_position == -1).all()
    patches, position = jax.device_put(row.patches[None]), jax.device_put(row.patch_position[None])
    table = jax.jit(lambda p, q: on_blocks.vision_features(p, q, EXACT).table)
    zeros = table(patches, position)
    np.testing.assert_array_equal(zeros, table(patches + 77, position))
    np.testing.assert_array_equal(zeros, table(patches, position + 1))  # value 0 is byte 0 here
    assert np.abs(zeros - table(patches + 1, position + 1)).max() > 1e-4
