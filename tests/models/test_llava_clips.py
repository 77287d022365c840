"""Clips in LLaVA-OneVision and LLaVE: transformers' inputs and states, alone and beside others."""

import functools
import io

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from tests.backbones.images import encoded, noise
from tests.backbones.tiny_folders import write_folder
from tests.float32 import assert_same_rows
from tests.models.oracle import EXACT, Pair, make_pair
from tests.tables import for_each
from unime_jax import paths, sharding
from unime_jax.backbones import open_backbone
from unime_jax.backbones.llava import anyres
from unime_jax.batch import Item, Media
from unime_jax.data.clips import archive
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.inference.encode import encode_blocks, make_encoder
from unime_jax.inference.encoder_programs import Model
from unime_jax.models import forward

TEXT = "a red circle left of a blue square"
BUCKET = 192, 12  # tokens, tiles


def frames(count: int, seed: int, size: tuple[int, int] = (28, 28)) -> list[Image.Image]:
    """Of a tile's size, so that nothing is resized."""
    return [noise(*size, seed=100 * seed + n) for n in range(count)]


def smooth(width: int, height: int, seed: int) -> Image.Image:
    """As photographs are; of noise the resizing filters clip every other value."""
    return noise(5, 4, seed=seed).resize((width, height), Image.Resampling.BICUBIC)


def clip(count: int, seed: int) -> Media:
    return Media(f"{seed}.zip", archive(frames(count, seed), fps=None), kind="clip")


def image(seed: int) -> Media:
    return Media(f"{seed}.png", encoded(noise(40, 23, seed=seed)))


ITEMS = {
    "a clip": Item("", (clip(3, 1),)),
    "a frame and a text": Item(TEXT, (clip(1, 2),)),
    "a clip and an image": Item(TEXT, (clip(5, 3), image(4))),
    "two clips": Item(TEXT, (clip(2, 5), clip(2, 6))),
    "images beside a clip": Item("<|image_1|> " + TEXT, (image(7), clip(4, 8), image(9))),
    "an image": Item(TEXT, (image(10),)),
    "a text": Item(TEXT),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    """Its image maps are never shrunk: S is 4 where there are clips, and 1 elsewhere."""
    return make_pair(tmp_path_factory.mktemp("clips"), grid=2)


def processor_of(pair: Pair) -> LlavaOnevisionProcessor:
    folder = pair.backbone.folder
    return LlavaOnevisionProcessor(
        image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil"),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        video_processor=LlavaOnevisionVideoProcessor.from_pretrained(folder),
        num_image_tokens=pair.backbone.preprocess.side**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


def theirs(pair: Pair, item: Item) -> tuple[list[int], np.ndarray]:
    """transformers' token ids, and its state of the last one."""
    images = [Image.open(io.BytesIO(x.data)) for x in item.media if x.kind == "image"]
    videos = [
        np.stack(frames({1: 3, 2: 1, 3: 5, 5: 2, 6: 2, 8: 4}[seed], seed))
        for x in item.media
        if x.kind == "clip" and (seed := int(x.path.split(".")[0]))
    ]
    inputs = processor_of(pair)(
        text=[pair.backbone.preprocess.prompt.rendered(item)],
        images=[images] if images else None,
        videos=videos or None,
        return_tensors="pt",
    )
    with torch.no_grad():
        states = pair.torch_model.model(**inputs).last_hidden_state[0, -1]
    return inputs["input_ids"][0].tolist(), states.numpy()


def test_states_equal_transformers_and_do_not_depend_on_their_batch(pair):
    preprocess, items = pair.backbone.preprocess, list(ITEMS.values())
    expected = [theirs(pair, item) for item in items]
    media_tokens = preprocess.prompt.image_token_id, preprocess.prompt.clip_token_id
    assert preprocess.slots_per_token == 1
    for item, (ids, _) in zip(items, expected, strict=True):
        row = preprocess(item)
        assert row.tokens.tolist() == ids
        np.testing.assert_array_equal(row.slot[:, 0] >= 0, np.isin(ids, media_tokens))
        kinds = [media.kind for media in item.media]
        assert row.slot.shape[1] == (4 if "clip" in kinds else 1) and row.clips == kinds.count(
            "clip"
        )

    # In one program of inference, texts and images among clips
    graph, parameters = paths.split(pair.model)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    layout = pair.backbone.layout
    shapes = BatchShapes((Bucket(*BUCKET),), layout, chunk_size=8, rows=8)
    asked = []

    def by_size(tokens, tiles, clips=False):
        asked.append(clips)
        return shapes.with_clips()

    model = Model(forward.make_encode(graph, EXACT), ({}, parameters), mesh)
    (encoded,) = encode_blocks(model, items, preprocess, by_size, window=8)
    assert asked.count(True) == 2 * 5
    states = np.stack([states for _, states in expected])
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    assert_same_rows(encoded.vectors, states)

    # Alone, S is 1 without a clip
    encoder = make_encoder(model.encode, model.parameters, preprocess, shapes, mesh)
    for name in ("a frame and a text", "an image"):
        number = list(ITEMS).index(name)
        assert_same_rows(encoder([ITEMS[name]]), states[[number]])


@for_each(
    "folder, side",
    [(write_folder, 4), (functools.partial(write_folder, tile=35), 5)],
)
def test_frames_are_resized_as_by_transformers(tmp_path_factory, folder, side):
    """Stretched to a tile. Its filter and Pillow's round alike but for a few values by one."""
    folder = folder(tmp_path_factory.mktemp("frames"))
    preprocess = open_backbone(str(folder), max_length=512).preprocess
    video = LlavaOnevisionVideoProcessor.from_pretrained(folder)
    for size in ((97, 41), (20, 64)):
        images = [smooth(*size, seed) for seed in range(3)]
        data = archive(images, fps=None)
        row = preprocess(Item("", (Media("a", data, kind="clip"),)))
        stacked = np.stack([np.asarray(image) for image in images])
        (tiles,) = video([stacked], do_rescale=False, do_normalize=False, return_tensors="np")[
            "pixel_values_videos"
        ]
        expected = anyres.cut_patches(tiles.transpose(0, 2, 3, 1), 7)
        assert preprocess.side == side and row.patches.shape == expected.shape
        assert np.abs(row.patches.astype(int) - expected).max() <= 1
        assert (row.slot[:, 0] >= 0).sum() == 3 * (-(-side // 2)) ** 2 + 1
