"""Clips of Qwen's families on the host, against transformers' video processors and positions."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from tests.backbones.images import noise, picture
from tests.backbones.tiny_clips import as_tensor, clip, frames_of
from tests.backbones.tiny_qwen import write_qwen2_5_vl, write_qwen2_vl
from tests.backbones.tiny_qwen3 import write_qwen3_vl
from unime_jax import backbones
from unime_jax.backbones import open_backbone
from unime_jax.backbones.preprocessing import video_processor_config
from unime_jax.batch import Item

FAMILIES = {
    "qwen2_vl": (write_qwen2_vl, backbones.Processing(prompt="chat")),
    "qwen2_5_vl": (write_qwen2_5_vl, backbones.Processing(prompt="chat")),
    "qwen3_vl": (write_qwen3_vl, backbones.Processing(prompt="chat", grid_positions=True)),
}
SMALL = dict(fps=2.0, frames=(2, 12), frame_pixels=(64, 40 * 64), clip_pixels=200 * 64)
START, PAD, END = "<|vision_start|>", "<|video_pad|>", "<|vision_end|>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders whose files say how small clips are seen, with our backbones and their processors."""
    made = {}
    for name, (write, processing) in FAMILIES.items():
        folder = write(tmp_path_factory.mktemp(name))
        small = dataclasses.replace(processing, **SMALL)
        told = open_backbone(str(folder), max_length=4096, processing=small)
        video_processor_config.write(folder, told.video_processor)
        opened = open_backbone(str(folder), max_length=4096, processing=processing)
        assert opened.preprocess.clips == told.preprocess.clips
        assert opened.video_processor == told.video_processor
        made[name] = opened, AutoProcessor.from_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def models(folders):
    return {
        name: AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(opened.folder))
        for name, (opened, _) in folders.items()
    }


@given(st.integers(1, 4000), st.floats(0.5, 120), st.sampled_from(list(FAMILIES)))
@example(2, 25.0, "qwen2_vl")
@example(17, 2.0, "qwen2_vl")  # where floats ask for one frame too many
def test_frames_are_those_of_the_processors(folders, frames, rate, family):
    opened, processor = folders[family]
    ours = opened.preprocess.clips.frames(frames, rate)
    assert len(ours) >= 1 and 0 <= ours[0] <= ours[-1] < frames and ours == sorted(ours)
    if frames == 1:
        assert ours == [0]
        return
    theirs = processor.video_processor.sample_frames(VideoMetadata(frames, rate), fps=2).tolist()
    if family == "qwen3_vl":
        assert ours == theirs
        return
    # Their floats may cut a whole number to the one before it, or add a frame beyond the last.
    count = len(ours)
    assert len(theirs) == count or len(theirs) == count + 1 and theirs[-1] >= frames - 1
    whole = [i * frames % count == 0 for i in range(count)]
    for i, (mine, other) in enumerate(zip(ours, theirs)):
        assert mine == other or (whole[i] and other == mine - 1), (i, mine, other)


@given(
    st.integers(2, 60), st.integers(1, 900), st.integers(1, 900), st.sampled_from(list(FAMILIES))
)
@example(9, 8, 8, "qwen3_vl")
@example(3, 4, 900, "qwen3_vl")  # a line, but not when its short side is enlarged
@example(3, 4, 900, "qwen2_vl")
def test_sizes_are_those_of_the_processors(folders, frames, height, width, family):
    opened, processor = folders[family]
    processor = processor.video_processor
    side = processor.patch_size * processor.merge_size

    def size(function):
        try:
            return function()
        except ValueError:
            return "line"

    def theirs():
        video = torch.zeros(1, dtype=torch.uint8).expand(1, frames, 3, height, width)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BaseVideoProcessor, "resize", lambda self, size, **_: size)
            limits = processor._standardize_kwargs(size=processor.size)["size"]
            found = processor.resize(
                video,
                size=limits,
                resample=3,
                factor=side,
                temporal_factor=2,
                cap_pixels_per_frame=processor.cap_pixels_per_frame,
            )
        return found.height, found.width

    ours = size(lambda: opened.preprocess.clips.size(frames, height, width, side))
    assert ours == size(theirs)
    if ours != "line":
        assert ours[0] * ours[1] <= opened.preprocess.clips.largest_area(side)


def processed(processor, text, media, **options):
    """transformers' inputs of a prompt's text, images and clips."""
    clips = [x for x in media if x[0] == "clip"]
    images = [x[1] for x in media if x[0] == "image"]
    metadata = [dict(total_num_frames=len(frames), fps=rate) for _, frames, rate in clips]
    return processor(
        text=[text],
        images=images or None,
        videos=[as_tensor(frames) for _, frames, _ in clips] or None,
        video_metadata=metadata or None,
        return_tensors="pt",
        return_metadata=True,
        **options,
    )


@given(
    st.sampled_from(list(FAMILIES)),
    st.lists(
        st.one_of(
            st.tuples(st.integers(5, 60), st.integers(5, 60)),
            st.tuples(
                st.integers(2, 21),
                st.one_of(st.integers(5, 60), st.just(40)),
                st.one_of(st.integers(5, 60), st.just(24)),
                st.sampled_from([1.0, 2.0, 7.5, 24.0]),
            ),
        ),
        min_size=1,
        max_size=3,
    ),
)
@settings(max_examples=40)
def test_rows_are_what_the_processors_make(folders, models, family, sizes):
    """Tokens, patches in reading order, and positions by the model's own get_rope_index."""
    opened, processor = folders[family]
    given_media, media = [], []
    for i, size in enumerate(sizes):
        if len(size) == 2:
            media.append(picture(*size, seed=i))
            given_media.append(("image", noise(*size, seed=i)))
        else:
            media.append(clip(*size, seed=i))
            given_media.append(("clip", frames_of(*size[:3], seed=i), size[3]))
    item = Item("what happens?", tuple(media))
    row = opened.preprocess(item)
    order = opened.preprocess.prompt.order(item)
    text = opened.preprocess.prompt.rendered(item)
    inputs = processed(processor, text, given_media)
    ids = inputs["input_ids"][0].tolist()
    start, pad, end = processor.tokenizer.convert_tokens_to_ids([START, PAD, END])
    seen = {pad, opened.preprocess.prompt.image_token_id}
    if family == "qwen3_vl":  # 5.24 leaves the template's tokens around the words of a clip
        around = zip([None, *ids[:-1]], ids, [*ids[1:], None], strict=True)
        ids = [
            token
            for before, token, after in around
            if not (token == start and after not in seen)
            and not (token == end and before not in seen)
        ]
    assert row.tokens.tolist() == ids

    kinds = np.where(row.tokens == pad, 2, 0) + (
        row.tokens == opened.preprocess.prompt.image_token_id
    )
    positions, _ = models[family].model.get_rope_index(
        torch.tensor([ids]),
        torch.tensor(kinds)[None],
        image_grid_thw=inputs.get("image_grid_thw"),
        video_grid_thw=inputs.get("video_grid_thw"),
        **(
            {"second_per_grid_ts": inputs["second_per_grid_ts"]}
            if "second_per_grid_ts" in inputs
            else {}
        ),
    )
    np.testing.assert_array_equal(row.positions, positions[:, 0].T)

    # Patches: as many frames in every one of the row, images repeated.
    features = 48 * (2 if any(medium.kind == "clip" for medium in media) else 1)
    assert row.patches.shape[1:] == (256, features)
    slots = row.slot[row.slot[:, 0] >= 0, 0]
    used = row.patches.reshape(-1, features)[(4 * slots[:, None] + np.arange(4)).ravel()]
    places = row.patch_position.reshape(-1, 3)[(4 * slots[:, None] + np.arange(4)).ravel()]
    start, step = 0, 0
    mean, std = (
        np.repeat(np.asarray(x, np.float32), 2 * 16)
        for x in (processor.video_processor.image_mean, processor.video_processor.image_std)
    )
    following = {"image": 0, "clip": 0}
    for number in order:
        kind = media[number].kind
        key = "image" if kind == "image" else "video"
        grid = inputs[f"{key}_grid_thw"][following[kind]].tolist()
        before = int(inputs[f"{key}_grid_thw"][: following[kind]].prod(dim=1).sum())
        following[kind] += 1
        count = int(np.prod(grid))
        if kind == "clip":
            theirs = inputs["pixel_values_videos"][before : before + count].numpy()
            theirs = (theirs * std + mean) * 255
            off = np.abs(theirs - used[start : start + count])
            exact = same_size(sizes[number], grid)
            assert off.max() < 0.01 if exact else off.mean() < 1  # torchvision rounds otherwise
        elif features == 96:
            frames = used[start : start + count].reshape(count, 3, 2, 16)
            np.testing.assert_array_equal(frames[:, :, 0], frames[:, :, 1])
        numbers = np.repeat(np.arange(step, step + grid[0]), grid[1] * grid[2])
        np.testing.assert_array_equal(places[start : start + count, 0], numbers)
        start, step = start + count, step + grid[0]
    assert start == len(used)
    # Every time step starts a tile.
    assert {row.patch_position[n, 0, 0] for n in range(len(row.patches))} == set(range(step))


def same_size(size, grid):
    """Whether nothing is resized."""
    return (4 * grid[2], 4 * grid[1]) == size[1:3]
