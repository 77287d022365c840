"""Rows of clips beside rows of images: bytes of a batch, what refuses them, a shared beginning."""

import dataclasses

import numpy as np
import pytest

from tests.backbones.images import picture
from tests.backbones.tiny_clips import clip
from tests.backbones.tiny_qwen import write_qwen2_5_vl
from unime_jax.backbones import Processing, open_backbone
from unime_jax.batch import Example, Item, Media
from unime_jax.data import shared_prefix
from unime_jax.data.bucket_filling import bucket_shapes, fill_buckets
from unime_jax.data.inference_shapes import Ladder
from unime_jax.data.packing import prepare
from unime_jax.data.quarantine import BadExample
from unime_jax.data.shapes import BatchShapes, Bucket, pair_shapes

SMALL = Processing(
    prompt="chat", fps=2.0, frames=(2, 6), frame_pixels=(64, 20 * 64), clip_pixels=90 * 64
)
CLIP, IMAGE = clip(9, 40, 24), picture(40, 23)
ITEMS = [Item("a text"), Item("an image", (IMAGE,)), Item("a clip", (CLIP,))]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = write_qwen2_5_vl(tmp_path_factory.mktemp("clips"))
    return open_backbone(str(folder), max_length=512, processing=SMALL)


def test_rows_of_clips_beside_rows_of_images(backbone):
    rows = [backbone.preprocess(item) for item in ITEMS]
    # A batch of images has one frame of each; beside clips they have two that are equal.
    shapes = BatchShapes((Bucket(128, 6),), backbone.layout, 2, 2)
    (group,), _ = fill_buckets(rows[:2], shapes)
    assert group.patches.shape[-1] == 48
    with pytest.raises(TypeError, match=r"patches of a tile.*\(256, 96\)"):
        fill_buckets(rows[2:], shapes)
    shapes = BatchShapes((Bucket(128, 6),), backbone.layout.with_clips(), 3, 3)
    assert bucket_shapes(shapes, shapes.buckets[0]).patches.shape[-1] == 96
    (group,), _ = fill_buckets(rows, shapes)
    image = group.patches[0, 1].reshape(6, 256, 3, 2, 16)
    np.testing.assert_array_equal(image[:1, :, :, 0], rows[1].patches.reshape(1, 256, 3, 16))
    np.testing.assert_array_equal(image[:, :, :, 0], image[:, :, :, 1])
    np.testing.assert_array_equal(group.patches[0, 2, : len(rows[2].patches)], rows[2].patches)
    # Texts alone have no layout of clips.
    assert not backbone.layout.without_images().with_clips().clips

    # At inference a row says so itself.
    ladder = Ladder(backbone.layout, 1, 4, 512)
    assert ladder(100, 2, True).layout.features == 2 * ladder(100, 2).layout.features

    # One beginning, an image, of a row with a clip and one without.
    ahead = Item("", (IMAGE,)), Item("", (IMAGE, CLIP))
    raw = dataclasses.replace(SMALL, prompt="raw")
    preprocess = open_backbone(str(backbone.folder), max_length=512, processing=raw).preprocess
    one, two = (preprocess(dataclasses.replace(x, text="<|image_1|> one")) for x in ahead)
    two = preprocess(Item("<|image_1|> one <|video_1|>", (IMAGE, CLIP)))
    layout = dataclasses.replace(backbone.layout.with_clips(), segments=2)
    (packed,) = shared_prefix.pack([one, two], layout, max_tokens=512, max_patches=10**6)
    assert packed.numbers == (0, 1) and len(packed.row.patches) == len(two.patches)
    assert packed.row.patches.shape[2] == 96


def test_clips_in_training_need_their_key(backbone):
    example = Example("films", "7", ITEMS[0], ITEMS[2])
    shapes = pair_shapes([Bucket(256, 8)], backbone.layout, batch_size=1, chunk_size=1)
    with pytest.raises(BadExample, match=r"config\.data\.clips=True") as error:
        prepare(example, backbone.preprocess, shapes)
    assert error.value.item.path == "0.zip"
    with_clips = dataclasses.replace(shapes, layout=backbone.layout.with_clips())
    assert len(prepare(example, backbone.preprocess, with_clips).rows) == 2

    # What is wrong with a clip names it.
    for data, message in (
        (None, "clip file 'gone.mp4' is missing"),
        (b"\0\0\0\x18ftypmp42 and no more", "positive: clip cannot be decoded: .+"),
    ):
        broken = Item("see", (Media("gone.mp4", data, "clip"),))
        with pytest.raises(BadExample, match=message) as error:
            prepare(dataclasses.replace(example, positive=broken), backbone.preprocess, with_clips)
        assert error.value.item.path == "gone.mp4"
    long = dataclasses.replace(
        backbone.preprocess, prompt=dataclasses.replace(backbone.preprocess.prompt, max_length=20)
    )
    with pytest.raises(ValueError, match="clip tokens, .*fewer frames"):
        long(ITEMS[2])
    with pytest.raises(ValueError, match="a frame of 1 x 300 pixels is a line"):
        backbone.preprocess(Item("", (clip(3, 300, 1),)))
