"""Clips in rows of training pairs, in every format and form; damaged ones are named."""

import base64
import dataclasses
import io
import pickle
import tarfile

import numpy as np
import pytest

from tests.data import clip_files
from tests.data.clip_files import FRAMES, squares, video
from tests.data.formats.writers import write_csv, write_jsonl, write_parquet
from tests.tables import for_each
from unime_jax.data import clips
from unime_jax.data.judged_rows import Writer
from unime_jax.data.pairs import open_pairs, with_form
from unime_jax.data.quarantine import BadExample
from unime_jax.data.schema import to_example


@pytest.fixture(scope="module")
def mp4():
    return video()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mp4):
    """A video, its frames as a folder, and a picture."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "a.mp4").write_bytes(mp4)
    (folder / "cut.mp4").write_bytes(mp4[:-200])
    clip_files.folder(folder / "frames")
    (folder / "q.gif").write_bytes(clip_files.animation("GIF"))
    return folder


def examples(path, columns=None):
    ((name, rows),) = open_pairs(path, columns or {}).items()
    rows = pickle.loads(pickle.dumps(rows))
    return [to_example(name, rows[index], str(index)) for index in range(len(rows))]


def kinds(item):
    return [media.kind for media in item.media]


def facts(item):
    """Of each clip: its number of frames, and their rate."""
    found = []
    for media in item.media:
        if media.kind == "clip":
            with clips.opened(media.data) as clip:
                found.append((clip.facts.frames, clip.facts.fps))
    return found


def test_clips_by_path_folder_bytes_base64_and_frames(folder, mp4):
    plain = base64.b64encode(mp4).decode()
    pictures = [f"frames/{n}.png" for n in (3, 1)]
    given = {
        "path": ("a.mp4", (FRAMES, 10.0)),
        "folder": ("frames", (FRAMES, None)),
        "folder and rate": ({"path": "frames", "fps": 2}, (FRAMES, 2.0)),
        "frames": ({"frames": pictures, "fps": 2.5}, (2, 2.5)),
        "base64": (plain, (FRAMES, 10.0)),
        "URI": (f"data:video/mp4;base64,{plain}", (FRAMES, 10.0)),
        "null": ({"path": "a.mp4", "bytes": None, "fps": None}, (FRAMES, 10.0)),
        "a GIF": ("q.gif", (FRAMES, 10.0)),
    }
    rows = [
        {"query": {"text": "?", "video": clip}, "positive": "yes"} for clip, _ in given.values()
    ]
    read = examples(write_jsonl(folder, rows, "given.jsonl"))
    assert [facts(e.query) for e in read] == [[expected] for _, expected in given.values()]
    assert all(kinds(e.query) == ["clip"] for e in read)
    assert read[0].query.media[0].data == read[4].query.media[0].data == mp4
    with clips.opened(read[3].query.media[0].data) as clip:  # frames keep their order
        (frame,) = clip.frames([0])
    assert np.array_equal(frame, squares()[2])


def test_columns_of_clips_in_every_format(folder, mp4):
    row = {"query": "<|image_1|> <|video_1|>?", "query_image": "q.gif", "query_video": "a.mp4"}
    row |= {"positive_video": "frames", "negatives": ["no", "never"]}
    row["negatives_video"] = ["a.mp4", ""]
    flat = row | {"negatives": '["no", "never"]', "negatives_video": '["a.mp4", ""]'}
    for path in (
        write_jsonl(folder, [row], "columns.jsonl"),
        write_parquet(folder, [row], "columns.parquet"),
        write_csv(folder, [flat], "columns.csv"),
    ):
        (example,) = examples(path)
        assert kinds(example.query) == ["image", "clip"]
        assert [media.path for media in example.query.media] == ["q.gif", "a.mp4"]
        assert example.positive.text == "" and facts(example.positive) == [(FRAMES, None)]
        assert [kinds(item) for item in example.negatives] == [["clip"], []]
    stored = {"video": {"bytes": mp4, "path": "x.mp4"}, "caption": "a square"}  # of HF datasets
    (example,) = examples(write_parquet(folder, [stored], "stored.parquet"))
    assert facts(example.query) == [(FRAMES, 10.0)] and example.positive.text == "a square"
    rows = [{"file_name": "a.mp4", "text": "a square"}, {"file_name": "q.gif", "text": "a GIF"}]
    read = examples(write_jsonl(folder, rows, "metadata.jsonl"))  # of a folder of clips
    assert [kinds(e.query) for e in read] == [["clip"], ["image"]]
    chosen = {"query_video": "v", "positive": "p"}
    (example,) = examples(write_jsonl(folder, [{"v": "a.mp4", "p": "p"}], "own.jsonl"), chosen)
    assert kinds(example.query) == ["clip"]
    mmeb = {"qry": "<|video_1|>", "qry_video": [mp4], "qry_video_path": ["v"], "pos_text": "p"}
    example = to_example("s", with_form("s", [mmeb], {})[0])
    assert kinds(example.query) == ["clip"] and example.query.media[0].path == "v"


def test_webdataset_of_clips_with_captions(tmp_path, mp4):
    with tarfile.open(tmp_path / "v-00000.tar", "w") as file:
        for row, (ending, data) in enumerate([("mp4", mp4), ("webm", video("webm", "libvpx"))]):
            for name, content in ((ending, data), ("txt", b"a square"), ("json", b'{"fps": 10}')):
                member = tarfile.TarInfo(f"{row:03d}.{name}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    read = examples(tmp_path)
    assert [(facts(e.query), e.positive.text) for e in read] == [([(FRAMES, 10.0)], "a square")] * 2


def test_judged_rows_have_their_clips_beside_them(folder, tmp_path):
    row = {"query": {"text": "?", "image": "q.gif", "video": "a.mp4"}, "positive": "yes"}
    row |= {"negatives": [{"video": ["frames", "a.mp4"]}]}
    (example,) = examples(write_jsonl(folder, [row], "judged.jsonl"))
    writer = Writer(tmp_path, sources={"s": 1}, block=1, provenance={})
    writer.put(writer.blocks[0], [dataclasses.replace(example, scores=(1.0, 0.5))])
    assert writer.finish()
    (again,) = examples(tmp_path / "rows")
    for before, after in ((example.query, again.query), (example.negatives[0], again.negatives[0])):
        assert after.identity == before.identity and kinds(after) == kinds(before)


@for_each(
    "clip, reason",
    [
        ("absent.mp4", "query: clip is missing: there is no file 'absent.mp4' in"),
        ("cut.mp4", "query: clip cannot be decoded: cut off"),
        (["a.mp4", "cut.mp4"], "query: clip 2 of 2 cannot be decoded: cut off"),
        ("../a.mp4", "leaves the image folder"),
        ("/etc/passwd", "leaves the image folder"),
        ("http://a.b/c.mp4", "is a URL, and nothing is fetched"),
        ({"frames": ["frames/1.png", "absent.png"]}, "clip is missing: there is no file '.*absent"),
        ({"frames": ["frames/1.png", "a.mp4"]}, 'one of the "frames" of a clip is a video'),
        ({"frames": [], "fps": 2}, 'the "frames" of a clip must be a list'),
        ({"path": "frames", "fps": 0}, 'the "fps" of a clip is 0'),
        ({"url": "a.mp4"}, "a clip is a dict of 'url'; it must have"),
        (3, "a clip is a int; it must be a path"),
        ("data:video/mp4;base64,abc", "a clip is no base64"),
    ],
)
def test_a_clip_that_cannot_be_used_is_named(folder, clip, reason):
    rows = [{"query": {"text": "?", "video": clip}, "positive": "yes"}]
    with pytest.raises(BadExample, match=reason):
        examples(write_jsonl(folder, rows, "bad.jsonl"))


def test_links_out_of_the_folder_are_not_followed(folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "frames").symlink_to(folder / "frames")
    (tmp_path / "data" / "own").mkdir()
    (tmp_path / "data" / "own" / "1.png").symlink_to(folder / "frames" / "1.png")
    for name in ("frames", "own"):
        rows = [{"query": {"video": name}, "positive": "yes"}]
        with pytest.raises(BadExample, match="leads out of the image folder"):
            examples(write_jsonl(tmp_path / "data", rows))
