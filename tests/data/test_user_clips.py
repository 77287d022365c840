"""Clips as users hand them in: items, messages, URLs."""

import base64
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.data import clip_files
from tests.data.clip_files import FRAMES, squares, video
from tests.data.test_image_urls import LOCAL, PICTURE, Server, server  # noqa: F401
from tests.tables import for_each
from unime_jax.data import clips, image_urls
from unime_jax.data.chat_messages import conversation
from unime_jax.data.image_urls import ImageUrls
from unime_jax.data.images import ImageError
from unime_jax.data.user_inputs import split_modalities, to_item
from unime_jax.data.user_lists import listed


@pytest.fixture(scope="module")
def mp4():
    return video()


def facts(media):
    assert media.kind == "clip"
    with clips.opened(media.data) as clip:
        return clip.facts.frames, clip.facts.fps


def test_every_source_of_a_clip(tmp_path, mp4):
    (tmp_path / "a.mp4").write_bytes(mp4)
    folder = clip_files.folder(tmp_path / "frames")
    frames = squares(4)
    mixed = [frames[0], Image.fromarray(frames[1]), str(folder / "1.png"), folder / "2.png"]
    for source, expected in (
        (str(tmp_path / "a.mp4"), (FRAMES, 10.0)),
        (tmp_path / "a.mp4", (FRAMES, 10.0)),
        (mp4, (FRAMES, 10.0)),
        (folder, (FRAMES, None)),
        (np.stack(frames), (4, None)),
        ({"frames": np.stack(frames), "fps": np.float32(2)}, (4, 2.0)),
        ({"frames": mixed, "fps": 2.5}, (4, 2.5)),
        ({"frames": folder, "fps": 1}, (FRAMES, 1.0)),
        ({"frames": frames}, (4, None)),
        ("data:video/mp4;base64," + base64.b64encode(mp4).decode(), (FRAMES, 10.0)),
    ):
        (media,) = to_item({"video": source}).media
        assert facts(media) == expected, source
    item = to_item({"video": [mp4, folder], "text": "a", "image": PICTURE})
    assert [media.kind for media in item.media] == ["image", "clip", "clip"]
    assert (
        to_item({"video": frames[0][None]}).identity == to_item({"video": frames[0][None]}).identity
    )
    shown, text = split_modalities(0, {"video": mp4, "text": "<|video_1|>\nred"}, " what", "")
    assert [media.kind for media in shown.item().media] == ["clip"] and shown.suffix == " what"
    assert text.item().text == "red"


@for_each(
    "source, reason",
    [
        ("", "a video is ''; leave it out"),
        (b"", "a video is b''; leave it out"),
        (3, "a video is a int; it must be a path"),
        (np.zeros((4, 4, 3), np.uint8), r"uint8 \[frames, height, width, 3\]"),
        (np.zeros((2, 4, 4, 3)), "dtype float64"),
        ({"frames": []}, "empty list"),
        ({"frames": 3}, '"frames" of a video are a int'),
        ({"fps": 2.0}, '"frames" of a video are a NoneType'),
        ({"frames": [b"a"], "rate": 2}, r"a dict with \['rate'\]"),
        ({"frames": [b"a"], "fps": 0}, '"fps" of a video is 0'),
        ({"frames": [3]}, "an image is a int"),
        ({"frames": [b"a"]}, "cannot be read: frame 1 of 1: cannot identify"),
        ({"frames": pathlib.Path("/nowhere")}, "cannot be read: .*No such file"),
        ("/nowhere/a.mp4", "cannot be read: .*No such file"),
        ("/dev/null", "cannot be read: .*a device"),
        ("http://a.b/c.mp4", "is a URL, and nothing is fetched unless"),
        ("data:video/mp4;base64,AAAA", "no clip .it is called 'video/mp4'.: cannot identify"),
        ("data:video/mp4,AAAA", "must be data:video/...;base64"),
        ([], '"video" is an empty list, and there is no "text"'),
    ],
)
def test_what_is_no_clip_is_said(source, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        to_item({"video": source})


def test_messages_keep_the_order_of_images_and_videos(mp4):
    url = "data:video/mp4;base64," + base64.b64encode(mp4).decode()
    parts = [
        {"type": "video", "video": mp4},
        {"type": "text", "text": "<|video_1|> or <|image_1|>?"},
        {"type": "image", "image": PICTURE},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "video", "video": {"frames": squares(2), "fps": 1.0}},
    ]
    (pair,) = listed([{"role": "user", "content": parts}], embeds_images=True)
    item = to_item(pair.user_input)
    assert [media.kind for media in item.media] == ["clip", "image", "clip", "clip"]
    assert item.media[0].data == item.media[2].data == mp4
    for part, reason in (
        ({"type": "video_url", "video_url": {"url": "/a.mp4"}}, 'write {"type": "video", "video"'),
        ({"type": "video_url", "video_url": {"url": url, "fps": 2}}, r"video_url has \['fps'\]"),
        ({"type": "video", "video": mp4, "fps": 2}, "has the keys"),
    ):
        with pytest.raises(ValueError, match=reason):
            conversation([{"role": "user", "content": [part]}])
    with pytest.raises(ValueError, match="a system message with a video"):
        conversation([{"role": "system", "content": parts[:1]}, {"role": "user", "content": "a"}])


def test_clips_by_url_have_limits_of_their_own(server, mp4, monkeypatch):  # noqa: F811
    monkeypatch.setattr("tests.data.test_image_urls.PICTURE", mp4)  # what the server sends
    at = f"http://127.0.0.1:{server.server_port}"
    limits = ImageUrls(max_bytes=10, private_addresses=True, clip_timeout=0.6)
    (media,) = to_item({"video": f"{at}/a.mp4?key=secret"}, urls=limits).media
    assert media.path == f"{at}/a.mp4?..." and facts(media) == (FRAMES, 10.0)
    assert "video/*" in server.asked[-1][1]["Accept"]
    small = ImageUrls(max_clip_bytes=100, private_addresses=True)
    for url, urls, kind, reason in (
        (f"{at}/a.mp4", small, "clip", "the limit is 100"),
        (f"{at}/drip", limits, "clip", "timeout of 0.6 s"),
        (f"{at}/page", limits, "clip", "no clip .it is called 'text/html'."),
        (f"{at}/a.mp4", LOCAL, "image", "no image"),
    ):
        with pytest.raises(ImageError, match=reason):
            image_urls.fetch(url, urls, kind)
    with pytest.raises(ValueError, match="must be above 0"):
        ImageUrls(max_clip_bytes=0)
