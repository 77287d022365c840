"""Shapes for inference: few programs, little padding, and a place for every row."""

import dataclasses
import functools
import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_llava_qwen import write_llava_qwen
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.backbones.tiny_texts import write_bert, write_nv_embed
from tests.tables import for_each
from unime_jax.backbones import open_backbone
from unime_jax.batch import Item, Media
from unime_jax.data import inference_shapes
from unime_jax.data.shapes import Layout

PROGRAMS = 13
MOST = 4096  # tokens, where the folder says nothing
# Tiny models that cut images as the published ones do.
FAMILIES = {
    "llava_onevision": functools.partial(write_folder, tile=384, patch=14, grid=6),
    "llava_next": functools.partial(
        write_llava_next,
        tile=336,
        patch=14,
        pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
    ),
    "qwen2_vl": functools.partial(write_qwen2_vl, patch=14, min_pixels=3136, max_pixels=12845056),
    "phi3_v": functools.partial(write_phi3_v, tile=336, patch=14, crops=16),
    "llava_qwen": write_llava_qwen,  # as LLaVA-OneVision's, but with tiles of few tokens
    "bert": write_bert,
    "nv_embed": write_nv_embed,
}
PUBLISHED = {
    "llava_onevision": Layout(patches=729, table=(1, 729), unpadded=True),
    "llava_next": Layout(patches=576, table=(1, 576), unpadded=True),
    "qwen2_vl": Layout(patches=256, table=(0, 64)),
    "phi3_v": Layout(patches=576, table=(2, 144)),
    "clip": Layout(patches=576, positioned=True, separate=True),
    "texts": Layout(),
}
layouts = st.sampled_from(list(PUBLISHED.values()))


def picture(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


@functools.cache
def corpus(images: bool) -> list[Item]:
    """Texts of all lengths; photographs, icons and panoramas, with and without a text."""
    random = np.random.default_rng(0)
    texts = [Item("red " * int(n)) for n in np.exp(random.uniform(0, math.log(5000), 80))]
    if not images:
        return texts
    sizes = np.exp(random.uniform(math.log(60), math.log(1400), 40))
    shapes = np.exp(random.normal(0, 0.35, 40))
    return texts + [
        Item("blue " * int(n), (Media("a", picture(round(size * shape), round(size / shape))),))
        for size, shape, n in zip(sizes, shapes, random.integers(0, 60, 40), strict=True)
    ]


@for_each("name", FAMILIES)
def test_a_mixed_corpus_compiles_few_programs_with_little_padding(tmp_path, name):
    backbone = open_backbone(str(FAMILIES[name](tmp_path / name)), max_length=MOST)
    layout, longest = backbone.layout, backbone.preprocess.prompt.max_length
    if name in PUBLISHED:
        published = PUBLISHED[name]
        assert (layout.patches, layout.table) == (published.patches, published.table)
        assert layout.unpadded == published.unpadded
    sizes = []
    for item in corpus(images=bool(layout.patches)):
        try:
            row = backbone.preprocess(item)
        except ValueError as error:  # an image of more tokens than there may be
            assert "max_length" in str(error)
            continue
        sizes.append((len(row.tokens), 0 if row.patches is None else len(row.patches)))
    buckets = [inference_shapes.bucket_of(*size, layout, longest) for size in sizes]
    assert len(set(buckets)) <= PROGRAMS
    for (tokens, tiles), bucket in zip(sizes, buckets, strict=True):
        assert tokens <= bucket.tokens <= longest
        assert (tiles <= bucket.tiles) if tiles else not bucket.tiles
    for kind in (False, True):
        own = [pair for pair in zip(sizes, buckets, strict=True) if bool(pair[0][1]) == kind]
        if name == "llava_qwen" and kind:  # a tile there is a few tokens
            continue
        assert sum(b.tokens for _, b in own) <= 1.6 * sum(tokens for (tokens, _), _ in own)
        assert sum(b.tiles for _, b in own) <= 2 * sum(tiles for (_, tiles), _ in own)


@given(layouts, st.integers(20, 40_000), st.data())
def test_every_row_has_a_place(layout, max_length, data):
    """And needs no larger one, however many tiles come with however few tokens."""
    tokens = data.draw(st.integers(1, max_length))
    tiles = data.draw(st.integers(0, 300)) if layout.patches else 0
    bucket = inference_shapes.bucket_of(tokens, tiles, layout, max_length)
    assert tokens <= bucket.tokens <= max_length and tiles <= bucket.tiles
    assert bool(tiles) == bool(bucket.tiles)
    ladder = inference_shapes.image_rungs if tiles else inference_shapes.text_rungs
    smaller = [b for b in ladder(layout, max_length) if b.tokens < bucket.tokens]
    assert all(tokens > b.tokens or tiles > b.tiles for b in smaller)
    if tiles > 1:
        assert bucket.tiles < 2 * tiles or bucket in inference_shapes.image_rungs(
            layout, max_length
        )
    if tiles:  # of several segments: long texts beside an image have no tower's work
        several = dataclasses.replace(layout, segments=4)
        bucket = inference_shapes.bucket_of(tokens, tiles, several, max_length)
        assert tokens <= bucket.tokens <= max_length and tiles <= bucket.tiles < 2 * tiles


@given(st.sampled_from([196, 210]), st.integers(7000, 32_768), st.integers(0, 200))
def test_clips_of_llava_are_not_padded_as_images_would_be(per_frame, max_length, words):
    """A frame has a fraction of the tokens of an image's tile: of these a row may have many."""
    layout = dataclasses.replace(
        PUBLISHED["llava_onevision"], clip_slots=4, frame_tokens=196
    ).with_clips()
    rows = [(per_frame * frames + words + 1, frames) for frames in range(1, 33)]
    buckets = [inference_shapes.bucket_of(*row, layout, max_length) for row in rows]
    assert len(set(buckets)) <= PROGRAMS
    for (tokens, tiles), bucket in zip(rows, buckets, strict=True):
        assert tokens <= bucket.tokens <= max_length and tiles <= bucket.tiles < 2 * tiles
    assert sum(bucket.tokens for bucket in buckets) <= 2.4 * sum(tokens for tokens, _ in rows)


@given(layouts, st.integers(20, 40_000))
def test_ladders_are_short_and_rise(layout, max_length):
    texts, images = (
        f(layout, max_length) for f in (inference_shapes.text_rungs, inference_shapes.image_rungs)
    )
    assert len(texts) + bool(layout.patches) * len(images) <= PROGRAMS
    for ladder in (texts, images):
        tokens = [bucket.tokens for bucket in ladder]
        assert tokens == sorted(set(tokens)) and tokens[-1] == max_length


@given(layouts, st.integers(32, 4096), st.data())
def test_texts_are_less_than_half_padding(layout, max_length, data):
    tokens = data.draw(st.integers(32, max_length))
    assert inference_shapes.bucket_of(tokens, 0, layout, max_length).tokens < 2 * tokens


def test_the_ladder_of_texts():
    layout = PUBLISHED["qwen2_vl"]
    found = [bucket.tokens for bucket in inference_shapes.text_rungs(layout, 4096)]
    assert found == [32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert [bucket.tokens for bucket in inference_shapes.text_rungs(layout, 100)] == [32, 64, 100]

    # Sentences of NLI and captions, by their lengths in tokens
    lengths = np.clip(np.random.default_rng(0).lognormal(3.0, 0.5, 2000), 6, 90).astype(int)
    computed = sum(inference_shapes.bucket_of(n, 0, layout, 4096).tokens for n in lengths.tolist())
    from_64 = sum(64 if n <= 64 else 128 for n in lengths.tolist())
    assert lengths.sum() < computed < 0.6 * from_64


@given(st.integers(1, 4096), st.integers(1, 8), st.integers(1, 300), st.integers(1, 5000))
def test_batches_have_room_and_their_chunks_are_bounded(tokens, shards, batch_size, chunk_tokens):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference_shapes, "CHUNK_TOKENS", chunk_tokens)
        shapes = inference_shapes.shapes_of(
            PUBLISHED["texts"], shards=shards, batch_size=batch_size, max_length=4096
        )
        shapes = shapes(tokens, 0)
    (bucket,) = shapes.buckets
    assert batch_size <= shapes.rows < 2 * batch_size + shards
    assert shapes.chunk_size % shards == 0 and shapes.rows % shapes.chunk_size == 0
    assert shapes.chunk_size // shards * bucket.tokens <= max(chunk_tokens, bucket.tokens)


def test_programs_of_videos_are_those_that_videos_need():
    """Of Qwen's kind and LLaVA's: frames with words between them, and an instruction."""
    qwen = Layout(patches=256, patch_bytes=588, frames=2, table=(1, 64), segments=0)
    llava = Layout(patches=729, patch_bytes=588, table=(1, 729), clip_slots=4, frame_tokens=196)
    assert qwen.takes_clips and llava.takes_clips and not Layout(patches=729).takes_clips
    families = ((qwen, 64, 12), (llava, 196, 0))
    for (layout, per_tile, between), length in itertools.product(families, range(4096, 16385, 512)):
        rungs = inference_shapes.clip_rungs(layout, length)
        assert len(set(rungs)) == len(rungs) <= 2 * inference_shapes.IMAGE_RUNGS + 5
        for tiles, words in itertools.product(range(1, length // 256), (1, 40, 160)):
            tokens = tiles * (per_tile + between) + words
            needed = inference_shapes.bucket_of(tokens, tiles, layout.with_clips(), length)
            assert needed in rungs, (length, tiles, words)
