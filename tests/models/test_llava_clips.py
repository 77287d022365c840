"""Clips in LLaVA-OneVision and LLaVE: transformers' inputs and states, alone and beside others."""

import dataclasses
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
from tests.float32 import assert_same_rows
from tests.models.oracle import EXACT, Pair, make_pair, packed
from unime_jax.batch import Item, Media
from unime_jax.data import inference_shapes
from unime_jax.data.clips import archive

TEXT = "a red circle left of a blue square"
BUCKET = 192, 12  # tokens, tiles


def frames(count: int, seed: int, size: tuple[int, int] = (28, 28)) -> list[Image.Image]:
    """Of a tile's size, so that nothing is resized."""
    return [noise(*size, seed=100 * seed + n) for n in range(count)]


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


def with_clips(pair: Pair) -> Pair:
    backbone = dataclasses.replace(pair.backbone, layout=pair.backbone.layout.with_clips())
    return dataclasses.replace(pair, backbone=backbone)


def test_states_equal_transformers_in_one_batch(pair):
    preprocess, items = pair.backbone.preprocess, list(ITEMS.values())
    assert preprocess.slots_per_token == 1 and not pair.backbone.layout.blended
    rows, expected = [preprocess(item) for item in items], [theirs(pair, item) for item in items]
    for row, (ids, _) in zip(rows, expected, strict=True):
        image_token = preprocess.prompt.image_token_id, preprocess.prompt.clip_token_id
        assert row.tokens.tolist() == ids
        np.testing.assert_array_equal(row.slot[:, 0] >= 0, np.isin(ids, image_token))
    inputs, places = packed(with_clips(pair), items, *BUCKET)
    ours = np.asarray(jax.jit(lambda x: pair.model.last_state(x, EXACT))(inputs))[places]
    assert_same_rows(ours, np.stack([states for _, states in expected]))
