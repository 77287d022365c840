"""Clips of LLaVA's families on the host: frames, prompts, newlines, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backbones.images import encoded, noise
from tests.backbones.tiny_dual_encoders import write_clip
from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_llava_qwen import TOKENIZER, write_llava_qwen
from tests.backbones.tiny_texts import write_bert
from tests.tables import for_each
from unime_jax.backbones import Processing, open_backbone
from unime_jax.backbones.llava import anyres
from unime_jax.backbones.preprocessing.frame_sampling import Steps, stepped
from unime_jax.batch import Item, Media
from unime_jax.data.clips import archive

TEXT = "<image>\nRepresent the given video."
PUBLISHED = TOKENIZER.parent  # LLaVE's tower: 27 patches a side


def clip(count: int, fps: float | None = None) -> Media:
    frames = [noise(9, 8, seed=n) for n in range(count)]
    return Media("a.mp4", archive(frames, fps=fps), kind="clip")


def opened(folder, max_length=512, **processing):
    own = Processing(**processing) if processing else None
    return open_backbone(str(folder), max_length=max_length, processing=own)


def tokens_of(folder, item, **processing) -> int:
    row = opened(folder, **processing).preprocess(item)
    return int((row.slot[:, 0] >= 0).sum())


@pytest.fixture(scope="module")
def llave(tmp_path_factory):
    """A tiny LLaVE, its config.json silent of clips; 4 patches along a side."""
    return write_llava_qwen(tmp_path_factory.mktemp("llave"))


def changed(folder, target, file="config.json", **changes):
    shutil.copytree(folder, target)
    path = target / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))
    return target


@for_each(
    "frames, rate, fps, limits, expected",
    [
        (10, 30.0, None, (1, 32), range(10)),
        (100, 30.0, 3.0, (1, 32), range(0, 100, 10)),
        (100, 25.0, 3.0, (1, 32), range(0, 100, 8)),  # 25 / 3 is rounded
        (7, 1.0, 3.0, (1, 32), range(7)),  # slower than asked for: every frame
        (7, None, 3.0, (1, 32), range(7)),  # mere frames are sampled already
        (9, 30.0, 3.0, (4, 32), [0, 2, 5, 8]),  # too few: evenly, cut to integers
        (3, 30.0, 3.0, (4, 32), [0, 1, 2]),
        (1, 30.0, 3.0, (1, 32), [0]),
    ],
)
def test_which_frames_are_seen(frames, rate, fps, limits, expected):
    assert stepped(frames, rate, Steps(fps, *limits)) == [*expected]


@given(
    st.integers(1, 5000),
    st.none() | st.floats(0.1, 240),
    st.none() | st.floats(0.1, 60),
    st.integers(1, 40),
    st.integers(0, 40),
)
def test_frames_ascend_within_the_limits(frames, rate, fps, least, more):
    chosen = stepped(frames, rate, Steps(fps, least, least + more))
    assert chosen == sorted(set(chosen)) and 0 <= chosen[0] <= chosen[-1] < frames
    assert min(least, frames) <= len(chosen) <= least + more
    if len(chosen) == least + more > 1 and frames > len(chosen) and fps is None:
        assert (chosen[0], chosen[-1]) == (0, frames - 1)


@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from(["one", "grid"]))
def test_tokens_of_a_clip_blend_patches_of_one_frame(frames, side, newlines):
    slot, weight = anyres.clip_slots(frames, side, newlines)
    half = -(-side // 2)
    assert len(slot) == frames * half * (half + (newlines == "grid")) + (newlines == "one")
    is_newline = (slot == anyres.NEWLINE).all(axis=1)
    assert is_newline.sum() == (1 if newlines == "one" else frames * half)
    np.testing.assert_allclose(weight.sum(axis=1), 1, rtol=1e-6)
    frame = (slot[~is_newline] - 1) // side**2
    assert (frame == np.repeat(np.arange(frames), half * half)[:, None]).all()
    assert len(set(slot[~is_newline].ravel().tolist())) <= frames * side * side


def test_published_counts_of_tokens_and_clips_of_no_use(llave):
    # 27 patches a side become 14: 14 x 15 tokens a frame, or 14 x 14 and one
    assert tokens_of(PUBLISHED, Item(TEXT, (clip(2),)), max_length=4096) == 2 * 14 * 15
    one = {"prompt": "verbatim", "clip_newlines": "one", "max_length": 8192}
    assert tokens_of(PUBLISHED, Item(TEXT, (clip(40),)), **one) == 32 * 14 * 14 + 1

    # LLaVE's rate and limit, and the run's
    item = Item(TEXT, (clip(40, fps=12),))
    assert tokens_of(llave, item) == 10 * 4 + 1
    assert tokens_of(llave, item, prompt="verbatim", fps=6.0) == 20 * 4 + 1
    assert tokens_of(llave, item, prompt="verbatim", frames=(1, 5)) == 5 * 4 + 1
    assert tokens_of(llave, item, prompt="verbatim", frames=(16, 32)) == 16 * 4 + 1

    # Clips of no use are named.
    for data, message in (
        (None, "the clip file 'a.mp4' is missing"),
        (b"no clip", "the clip 'a.mp4' cannot be read"),
        (encoded(noise(9, 9)), "the clip 'a.mp4' cannot be read: an image"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(llave).preprocess(Item("x", (Media("a.mp4", data, kind="clip"),)))


def test_what_is_too_long_says_what_to_do():
    preprocess = opened(PUBLISHED, max_length=4096).preprocess
    with pytest.raises(
        ValueError,
        match=r"clip 'a.mp4'.*: its clip tokens.* are 67\d\d tokens, and"
        r" max_length is 4096; raise it, .* fewer frames \(processing.frames\)",
    ):
        preprocess(Item(TEXT, (clip(32),)))


def test_places_of_clips_in_prompts(llave, tmp_path):
    # LLaVE's own words; either token, a marker or nothing marks a clip, in front if it is alone
    preprocess = opened(llave).preprocess
    rows = [
        preprocess(Item(text, (clip(3),)))
        for text in (
            TEXT,
            "Represent the given video.",
            "<video>\nRepresent the given video.",
            "Represent the given video. <|image_1|>",
        )
    ]
    for row in rows:
        assert row.tokens.tolist() == rows[0].tokens.tolist() and row.unmatched_markers == 0
    image = Media("a.png", encoded(noise(28, 28)))
    both = Item("<|image_1|> or <|image_2|>", (clip(1), image))
    assert preprocess.prompt.rendered(both).count("<video> or <image>") == 1

    # Tiles stand in the prompt's order, which in LLaVA-OneVision's template has images first
    preprocess = opened(write_folder(tmp_path)).preprocess
    row = preprocess(Item("x", (clip(2), image)))
    alone = preprocess(Item("x", (image,)))
    count = len(alone.patches)
    assert len(row.patches) == count + 2
    np.testing.assert_array_equal(row.patches[:count], alone.patches)
    frames = row.slot[row.tokens == preprocess.prompt.clip_token_id][:-1]
    assert frames.min() == 1 + 16 * count and frames.max() == 16 * (count + 2)
    assert preprocess.prompt.rendered(Item("x", (clip(2), image))).count("<image><video>") == 1


@for_each(
    "changes, message",
    [
        ({"mm_newline_position": "frame"}, "mm_newline_position is 'frame' .*clip_newlines"),
        ({"mm_spatial_pool_mode": "average"}, "mm_spatial_pool_mode is 'average'"),
        ({"add_faster_video": True}, "add_faster_video is True"),
    ],
)
def test_other_ways_to_see_clips_refuse_clips_alone(llave, tmp_path, changes, message):
    preprocess = opened(changed(llave, tmp_path / "a", **changes)).preprocess
    assert len(preprocess(Item("a text")).tokens) > 0
    with pytest.raises(ValueError, match=f"'a.mp4' is a clip; this model takes none: {message}"):
        preprocess(Item(TEXT, (clip(1),)))
    if "mm_newline_position" in changes:
        newlines = {"prompt": "verbatim", "clip_newlines": "grid"}
        assert tokens_of(tmp_path / "a", Item(TEXT, (clip(1),)), **newlines) == 6


def test_a_video_processor_must_treat_pixels_as_that_of_images(tmp_path):
    folder, file = write_folder(tmp_path / "a"), "video_preprocessor_config.json"
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    good = {**pixels, "size": {"height": 28, "width": 28}}
    for name, own, match in (
        ("good", good, None),
        ("mean", good | {"image_mean": [0.4] * 3}, r"image_mean of frames is \[0.4"),
        ("size", pixels, "size of frames is .*384.* in video_preprocessor_config.json"),
    ):
        preprocess = opened(changed(folder, tmp_path / name, file, **own)).preprocess
        if match is None:
            assert preprocess(Item("x", (clip(1),))).clips == 1
            continue
        with pytest.raises(ValueError, match=match):
            preprocess(Item("x", (clip(1),)))


@for_each("write", [write_llava_next, write_clip, write_bert])
def test_families_without_clips_name_those_that_take_them(tmp_path, write):
    write(tmp_path)
    preprocess = opened(tmp_path).preprocess
    with pytest.raises(ValueError, match="LLaVA-OneVision, LLaVE, Qwen2-VL|embeds texts only"):
        preprocess(Item("x", (clip(1),)))


def test_a_model_without_room_for_a_token_of_clips(llave, tmp_path):
    """The image token stands for them, as in the original; an export says it has none."""
    backbone = opened(changed(llave, tmp_path / "full", vocab_size=260))
    prompt = backbone.preprocess.prompt
    assert prompt.clip_token == prompt.image_token == "<image>"
    assert prompt.rendered(Item(TEXT, (clip(1),))).count(TEXT) == 1
    row = backbone.preprocess(Item(TEXT, (clip(2),)))
    assert (row.slot[:, 0] >= 0).sum() == 2 * 4 + 1
