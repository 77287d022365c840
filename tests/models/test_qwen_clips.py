"""Clips in Qwen's models against transformers', and beside other rows."""

import jax
import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoVideoProcessor, vision_utils

from tests.backbones.images import noise, picture
from tests.backbones.tiny_clips import as_tensor, clip, frames_of
from tests.backbones.tiny_families import DECODER
from tests.backbones.tiny_qwen import write_qwen2_5_vl, write_qwen2_vl
from tests.backbones.tiny_qwen3 import write_qwen3_vl
from tests.float32 import assert_same_rows
from tests.models.oracle import EXACT, pair_of
from unime_jax import backbones
from unime_jax.backbones.preprocessing import video_processor_config
from unime_jax.backbones.qwen2_5_vl import qwen2_5_vl
from unime_jax.backbones.qwen2_vl import dynamic_resolution, qwen2_vl
from unime_jax.backbones.qwen3_vl import qwen3_vl
from unime_jax.batch import Item
from unime_jax.data.bucket_filling import fill_buckets, row_numbers
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.models.qwen3_vit import bilinear_taps
from unime_jax.models.qwen_vit import windows

TEXT = DECODER | dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
VISION = dict(hidden_size=32, intermediate_size=40, num_heads=2)
CHAT = backbones.Processing(
    prompt="chat",
    grid_positions=True,
    fps=2.0,
    frames=(2, 8),
    frame_pixels=(256, 30 * 64),
    clip_pixels=200 * 64,
)
FAMILIES = {
    "qwen2_vl": (
        write_qwen2_vl,
        qwen2_vl,
        dict(
            vision=dict(embed_dim=32, depth=2, num_heads=2, mlp_ratio=2),
            mrope_section=(2, 3, 3),
            max_pixels=60 * 64,
        ),
    ),
    "qwen2_5_vl": (
        write_qwen2_5_vl,
        qwen2_5_vl,
        dict(
            vision=VISION | dict(depth=3),
            full_layers=(1,),
            mrope_section=(2, 3, 3),
            max_pixels=60 * 64,
        ),
    ),
    "qwen3_vl": (
        write_qwen3_vl,
        qwen3_vl,
        dict(
            vision=VISION
            | dict(depth=3, num_position_embeddings=49, deepstack_visual_indexes=[0, 1]),
            mrope_section=(4, 2, 2),
            pixels=(256, 60 * 64),
        ),
    ),
}
CLIPS = {  # frames, width, height, frames a second
    "a": (9, 40, 24, 4.0),
    "b": (5, 33, 21, 2.0),  # an odd number of frames, and odd sizes
    "c": (30, 60, 47, 25.0),
    "d": (3, 24, 60, None),
}
MEDIA = {  # what an item has, by its words
    "": "a",
    "a clip": "a",
    "an odd one": "b",
    "longer": "c",
    "mere frames": "d",
    "a picture and a clip": "Ia",
    "a clip and a picture": "cI",
    "two": "ab",
    "no clip": "I",
    "a text": "",
}


ROOM = 44  # tiles


def medium(name):
    if name == "I":
        return picture(41, 30, seed=9)
    return clip(*CLIPS[name], seed=ord(name))


ITEMS = [Item(text, tuple(map(medium, names))) for text, names in MEDIA.items()]


@pytest.fixture(scope="module", params=list(FAMILIES))
def pair(request, tmp_path_factory):
    write, module, sizes = FAMILIES[request.param]
    folder = write(tmp_path_factory.mktemp(request.param) / "folder", text=TEXT, **sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", 32)
        made = pair_of(folder, processing=CHAT)
    video_processor_config.write(folder, made.backbone.video_processor)
    return made


def frames_seen(pair, name):
    """Frames of a clip as transformers' processor chooses them, in our size, and its grid."""
    count, width, height, rate = CLIPS[name]
    rule = pair.backbone.preprocess.clips
    frames = frames_of(count, width, height, seed=ord(name))
    indices = rule.frames(count, rate)
    size = rule.size(len(indices), height, width, 8)
    return [frames[i].resize(size[::-1], 3) for i in indices], indices


def torch_state(pair, item, names):
    """transformers' state of the last token, by its own pixels, positions and features."""
    row = pair.backbone.preprocess(item)
    ids = torch.tensor(row.tokens)[None].long()
    config = pair.torch_model.config
    kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    inputs = {"input_ids": ids, "mm_token_type_ids": kinds}
    processor = AutoVideoProcessor.from_pretrained(pair.backbone.folder)
    clips = [name for name in names if name != "I"]
    if clips:
        seen = [frames_seen(pair, name)[0] for name in clips]
        made = processor(
            [torch.tensor(as_tensor(frames)) for frames in seen],
            do_sample_frames=False,
            do_resize=False,
            return_tensors="pt",
        )
        inputs |= {key: made[key] for key in ("pixel_values_videos", "video_grid_thw")}
        if config.model_type == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor(
                [2 / (len(x) / CLIPS[n][0] * (CLIPS[n][3] or 2)) for n, x in zip(clips, seen)]
            )
    if "I" in names:
        image = noise(41, 30, seed=9)
        made = AutoImageProcessor.from_pretrained(pair.backbone.folder, backend="pil")(
            [image], return_tensors="pt"
        )
        inputs |= {key: made[key] for key in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        return pair.torch_model.model(**inputs).last_hidden_state[0, -1].numpy()


def states(pair, items, tokens, tiles, chunk=None):
    """Our last states of rows in one bucket that may have clips."""
    layout = pair.backbone.layout.with_clips()
    rows = [pair.backbone.preprocess(item) for item in items]
    shapes = BatchShapes((Bucket(tokens, tiles),), layout, len(rows), len(rows))
    groups, places = fill_buckets(rows, shapes)
    inputs = jax.tree.map(lambda x: jax.device_put(x[0]), groups[0])
    found = jax.jit(lambda x: pair.model.last_state(x, EXACT))(inputs)
    return np.asarray(found)[row_numbers(places, shapes)]


def cosine(a, b):
    return np.sum(a * b, axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_states_are_transformers(pair):
    """Whatever a row has, in a batch and alone, in tight and in loose buckets."""
    rows = [pair.backbone.preprocess(item) for item in ITEMS]
    tokens = max(len(row.tokens) for row in rows)
    tiles = max(len(row.patches) for row in rows if row.patches is not None)
    ours = states(pair, ITEMS, tokens + 7, tiles + 2)
    theirs = np.stack([torch_state(pair, *one) for one in zip(ITEMS, MEDIA.values(), strict=True)])
    assert_same_rows(ours, theirs)
    np.testing.assert_array_less(0.99999, cosine(ours, theirs))
    # Alone, with room for so many patches that each looks at near ones only.
    assert 3 * pair.backbone.make_model.config.vision.longest < 32 * ROOM > 32 * tiles
    alone = states(pair, ITEMS[5:6], len(rows[5].tokens), ROOM)
    np.testing.assert_allclose(alone[0], ours[5], atol=2e-5)
    # An image alone is the same with patches of one frame.
    shapes = BatchShapes((Bucket(tokens, tiles),), pair.backbone.layout, 2, 2)
    groups, places = fill_buckets(rows[8:], shapes)
    assert groups[0].patches.shape[-1] == 48
    inputs = jax.tree.map(lambda x: jax.device_put(x[0]), groups[0])
    found = jax.jit(lambda x: pair.model.last_state(x, EXACT))(inputs)
    np.testing.assert_allclose(found, ours[8:], atol=2e-5)
    # One frame more or less, another time or order is another embedding.
    assert cosine(ours[:, None], ours[None])[~np.eye(len(ours), dtype=bool)].max() < 0.9999
    # In bare texts images have rows and columns in Qwen3-VL alone.
    raw = backbones.Processing(prompt="raw")
    bare = backbones.open_backbone(str(pair.backbone.folder), max_length=512, processing=raw)
    position = bare.preprocess(ITEMS[8]).positions
    is_gridded = (position != position[:, :1]).any()
    assert is_gridded == (pair.torch_model.config.model_type == "qwen3_vl")


def test_host_integers_of_clips():
    """Segments, places, windows and taps of grids of several time steps, as of transformers."""
    rng = np.random.default_rng(0)
    number_of = jax.jit(windows, static_argnums=1)
    taps_of = jax.jit(bilinear_taps, static_argnums=2)

    def filled(x):
        """As many rows always, so that little is compiled."""
        return np.pad(x, ((0, 3072 - len(x)), (0, 0)))

    for _ in range(6):
        side, merge = int(rng.integers(1, 4)), 2
        grids = np.array([(rng.integers(1, 5), *(2 * rng.integers(1, 9, 2))) for _ in range(3)])
        theirs = torch.tensor(grids)
        steps = [tuple(map(int, grid[1:])) for grid in grids for _ in range(grid[0])]
        places = [dynamic_resolution.patch_places(step, merge) for step in steps]
        np.testing.assert_array_equal(
            np.concatenate(places), vision_utils.get_vision_position_ids(theirs, merge)
        )
        bounds = np.cumsum([0, *map(len, places)])
        np.testing.assert_array_equal(bounds, vision_utils.get_vision_cu_seqlens(theirs))
        index, weight = vision_utils.get_vision_interpolation_indices_and_weights(
            theirs, 7, align_corners=True, spatial_merge_size=merge
        )
        sizes = np.repeat(steps, [len(place) for place in places], axis=0)
        taps, parts = taps_of(filled(np.concatenate(places)), filled(sizes), 7)
        taps, parts = (np.asarray(x)[: len(sizes)] for x in (taps, parts))
        ours = taps[:, 0, :, None] * 7 + taps[:, 1, None, :]
        np.testing.assert_array_equal(ours.reshape(-1, 4), index)
        ours = parts[:, 0, :, None] * parts[:, 1, None, :]
        np.testing.assert_allclose(ours.reshape(-1, 4), weight, atol=1e-5)

        window, cuts = vision_utils.get_vision_window_index(theirs, merge, side * merge * 4, 4)
        orders = [dynamic_resolution.window_order((h // merge, w // merge), side) for h, w in steps]
        before = np.cumsum([0, *(len(order) for order in orders[:-1])])
        ours = np.concatenate([b + order for b, order in zip(before, orders, strict=True)])
        np.testing.assert_array_equal(ours, window)
        position = np.concatenate(
            [
                np.pad(
                    place.reshape(-1, 4, 2)[order].reshape(-1, 2),
                    ((0, 0), (1, 0)),
                    constant_values=number,
                )
                for number, (place, order) in enumerate(zip(places, orders, strict=True))
            ]
        )
        numbers = np.asarray(number_of(filled(position)[None], side * merge))[0, : len(position)]
        changes = 1 + np.flatnonzero(np.diff(numbers))
        np.testing.assert_array_equal([0, *changes, len(numbers)], cuts)
