"""Clips: every format gives its frames, exactly and upright; what is no clip is refused."""

import json
import pathlib
import subprocess
import sys
import zipfile
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.backbones.images import encoded, noise
from tests.data import clip_files
from tests.data.clip_files import FRAMES, SIZE, animation, squares, turned, video
from unime_jax.data import clip_containers, clip_facts, clips
from unime_jax.data.clips import ClipError, ClipFacts

ROOT = pathlib.Path(__file__).parents[2]
EXACT = ("webp", "apng", "zip")


@pytest.fixture(scope="module")
def files():
    return clip_files.every_format()


@pytest.fixture(scope="module")
def decoded(files):
    return {name: every_frame(data) for name, data in files.items()}


@pytest.fixture(scope="module")
def mp4():
    return video(g="4", bf="2")


def every_frame(data):
    with clips.opened(data) as clip:
        return [np.asarray(frame) for frame in clip.frames(range(clip.facts.frames))]


def zipped(pictures, comment=b"", method=zipfile.ZIP_DEFLATED):
    file = BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, data in pictures.items():
            made.writestr(name, data)
        made.comment = comment
    return file.getvalue()


def test_every_format_gives_the_frames_that_went_in(files):
    for name, data in files.items():
        clips.check(data)
        with clips.opened(data) as clip:
            assert clip.facts == ClipFacts(FRAMES, 10.0, *SIZE), name
            found = [np.asarray(frame, int) for frame in clip.frames(range(FRAMES))]
        away = [[np.abs(frame - other).mean() for other in squares()] for frame in found]
        assert np.argmin(away, axis=1).tolist() == list(range(FRAMES)), name
        assert np.min(away, axis=1).max() < (0.1 if name in EXACT else 14), name


@settings(max_examples=40)
@given(data=st.data())
def test_frames_that_are_asked_for_are_those_of_decoding_everything(data, files, decoded):
    name = data.draw(st.sampled_from(sorted(files)))
    whole = decoded[name]
    asked = sorted(data.draw(st.lists(st.integers(0, FRAMES - 1), max_size=6)))
    with clips.opened(files[name]) as clip:
        for again in (asked, asked[::2]):  # a clip can be asked twice
            found = [np.asarray(frame) for frame in clip.frames(again)]
            assert all(np.array_equal(f, whole[i]) for f, i in zip(found, again, strict=True))
    with clips.opened(files[name]) as clip, pytest.raises(IndexError, match="frames|ascend"):
        list(clip.frames(data.draw(st.sampled_from([[2, 1], [-1], [0, FRAMES]]))))


def test_far_frames_are_reached_from_the_key_frame_before(mp4, monkeypatch):
    with clips.opened(mp4) as clip:
        decoded, decode = [], clip._decode
        monkeypatch.setattr(
            clip, "_decode", lambda place: (decoded.append(i) or (i, f) for i, f in decode(place))
        )
        list(clip.frames([FRAMES - 1]))
        # The encoder may make a key frame earlier, not later.
        assert decoded[-1] == FRAMES - 1 and len([i for i in decoded if i >= 0]) <= 4


def test_clips_are_turned_as_their_display_matrix_says(mp4):
    stored = Image.fromarray(every_frame(mp4)[0])
    turn = Image.Transpose
    for matrix, transposes in (
        ((1, 0, 0, 1), []),
        ((0, 1, -1, 0), [turn.ROTATE_270]),  # a phone that is held upright
        ((-1, 0, 0, -1), [turn.ROTATE_180]),
        ((0, -1, 1, 0), [turn.ROTATE_90]),
        ((-1, 0, 0, 1), [turn.FLIP_LEFT_RIGHT]),
        ((0, 1, 1, 0), [turn.TRANSPOSE]),
    ):
        upright = stored
        for transpose in transposes:
            upright = upright.transpose(transpose)
        with clips.opened(turned(mp4, matrix)) as clip:
            assert (clip.facts.width, clip.facts.height) == upright.size, matrix
            (frame,) = clip.frames([0])
            assert frame == upright, matrix


def test_rates_are_averages_and_sizes_may_be_odd():
    stamps = [*range(6), *range(10, 70, 10)]  # 6 frames at 10 a second, then 6 at one a second
    for container in ("mp4", "matroska"):
        with clips.opened(video(container, stamps=stamps)) as clip:
            assert clip.facts.frames == FRAMES
            assert clip.facts.fps == pytest.approx(11 / 6, rel=0.1)
    with clips.opened(video("webm", "libvpx", rate=30, deadline="realtime")) as clip:
        assert clip.facts.fps == 30  # although its time stamps are whole milliseconds
    with clips.opened(animation("GIF", milliseconds=0)) as clip:
        assert clip.facts.fps == 10  # as browsers show it
    with clips.opened(animation("GIF", squares(1))) as clip:
        assert (clip.facts.frames, clip.facts.fps) == (1, None)

    # A video of odd size keeps it.
    data = video("webm", "libvpx-vp9", frames=squares(3, (33, 21)), deadline="realtime")
    with clips.opened(data) as clip:
        assert [frame.size for frame in clip.frames([0, 2])] == [(33, 21)] * 2


def test_damaged_and_foreign_files_are_refused_without_a_word_of_ffmpeg(files, capfd):
    for name, data in files.items():
        for end in (0.3, 0.7, 0.95):
            with pytest.raises(ClipError, match="cut off|damaged|BadZip"):
                every_frame(data[: int(len(data) * end)])
        middle = bytearray(data)
        middle[len(data) // 2 : len(data) // 2 + 64] = bytes(range(64))
        try:  # some decoders hide it
            every_frame(bytes(middle))
        except ClipError as error:
            assert "\n" not in str(error), name
    for data, reason in (
        (b"", "cannot identify"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "cannot identify"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot identify"),
        (b"<html>404 Not Found</html>", "cannot identify"),
        (encoded(noise(8, 8)), "an image, not a clip"),
        (encoded(noise(8, 8), "JPEG"), "an image, not a clip"),
        (encoded(noise(8, 8), "WEBP"), "an image, not a clip"),
        (encoded(noise(8, 8), "AVIF"), "an image, not a clip"),
        (zipped({"a.txt": b"text"}), "without pictures"),
        (zipped({"a.png": b"text"}), "'a.png': cannot identify"),
    ):
        for use in (clips.check, every_frame):
            with pytest.raises(ClipError, match=reason):
                use(data)
    assert capfd.readouterr().err == ""


def test_limits_hold_before_frames_are_decoded(mp4, files, monkeypatch):
    for data in (mp4, files["gif"], files["zip"]):
        with pytest.raises(ClipError, match="32 x 24 pixels, the limit is 700"):
            clips.check(data, max_pixels=700)
    for name, limit, word in (
        ("MAX_FRAMES", 5, "frames|files"),
        ("MAX_SECONDS", 1, "1 seconds, the limit is 1"),
    ):
        with monkeypatch.context() as patch:
            for module in (clip_facts, clip_containers, clips, clips.clip_pictures):
                if hasattr(module, name):
                    patch.setattr(module, name, limit)
            for data in (mp4, files["webm"], files["gif"], files["zip"]):
                with pytest.raises(ClipError, match=word):
                    every_frame(data)
    frames = [encoded(noise(8, 6))] * 3
    with zipfile.ZipFile(BytesIO(clips.archive(frames, None))) as made:
        size = made.start_dir  # where the last frame ends
    for call, most in (
        (lambda: clips.check(mp4), len(mp4)),
        (lambda: clips.archive(frames, None), size),
    ):
        monkeypatch.setattr(clips, "MAX_BYTES", most)
        call()
        monkeypatch.setattr(clips, "MAX_BYTES", most - 1)
        with pytest.raises(ClipError, match=f"{most - 1} bytes|the limit is {most - 1}"):
            call()


def test_a_video_without_pyav_says_what_to_install(mp4, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for use in (clips.check, every_frame):
        with pytest.raises(ClipError, match=r"pip install 'unime_jax\[video\]'"):
            use(mp4)
    assert len(every_frame(files["gif"])) == FRAMES


def test_mere_frames_become_one_file():
    jpeg = encoded(noise(8, 6), "JPEG")
    frames = [jpeg, noise(8, 6, "RGBA"), np.asarray(noise(8, 6)), encoded(noise(8, 6), "WEBP")]
    data = clips.archive(frames, 2.5)
    assert data == clips.archive(frames, 2.5) != clips.archive(frames, None)
    with zipfile.ZipFile(BytesIO(data)) as made:
        names = made.namelist()
        assert names == ["000000.jpg", "000001.png", "000002.png", "000003.webp"]
        assert made.read(names[0]) == jpeg and all(
            entry.compress_type == zipfile.ZIP_STORED for entry in made.infolist()
        )
    with clips.opened(data) as clip:
        assert clip.facts == ClipFacts(4, 2.5, 8, 6)
        assert next(clip.frames([2])) == noise(8, 6)
    with clips.opened(clips.archive(frames, None)) as clip:
        assert clip.facts.fps is None
    for bad, fps, reason in (
        ([], None, "without frames"),
        ([b"text"], None, "frame 1 of 1: cannot identify"),
        ([np.zeros((4, 4), np.uint8)], None, "uint8 .height, width, 3."),
        ([np.zeros((4, 4, 3))], None, "float64"),
        ([np.zeros((0, 4, 3), np.uint8)], None, "4 x 0 pixels"),
        (frames, 0, "rate of 0"),
        (frames, float("nan"), "rate of nan"),
    ):
        with pytest.raises(ClipError, match=reason):
            clips.archive(bad, fps)


def test_a_zip_of_pictures_is_read_in_the_order_of_its_numbers():
    pictures = {f"shots/frame{n}.png": encoded(noise(8, 6, seed=n)) for n in (10, 9, 1)}
    hidden = {"__MACOSX/shots/frame1.png": b"x", "shots/.frame.png": b"x", "read me.txt": b"x"}
    data = zipped(pictures | hidden, json.dumps({"fps": "many"}).encode())
    with clips.opened(data) as clip:
        assert clip.facts == ClipFacts(3, None, 8, 6)
        assert list(clip.frames(range(3))) == [noise(8, 6, seed=n) for n in (1, 9, 10)]
    uneven = zipped({"1.png": encoded(noise(8, 6)), "2.png": encoded(noise(6, 8))})
    with clips.opened(uneven) as clip, pytest.raises(ClipError, match="one size"):
        list(clip.frames([0, 1]))


def fuzz(count, seed):
    command = [sys.executable, "-m", "tests.data.fuzz_clips", str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["decoded"] > count // 20 and found["refused"] > count // 10
    assert found["slowest"] < 5


def test_damaged_clips_end_in_frames_or_an_error():
    """In a process of its own, of bounded memory and with an alarm clock for every file."""
    fuzz(300, seed=1)


@pytest.mark.slow
def test_many_damaged_clips_end_in_frames_or_an_error():
    fuzz(20_000, seed=2)
