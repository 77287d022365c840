"""Text-video sets from raw files in the public layouts to scores."""

import dataclasses
import io
import json
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data_pipelines.benchmarks import check, plain_pickle, prepare, video_captions
from tests.tables import for_each
from unime_jax.data import clips
from unime_jax.evaluation import suite
from unime_jax.evaluation.report import gallery

SETS = {public.name: public for public in video_captions.SETS}
IDS = ("video7", "b-1_0_5", "c.d_2")
TEXTS = [[f"caption {n} of {id}" for n in range(3)] for id in IDS]


def frame(shade, kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def videos(raw):
    """A file, a folder of frames, and one whose frames are no files yet counted by name."""
    moving = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 10, 20)]
    buffer = io.BytesIO()
    moving[0].save(buffer, "GIF", save_all=True, append_images=moving[1:], duration=100)
    put(raw / "videos" / "all" / f"{IDS[0]}.gif", buffer.getvalue())
    for number in (1, 2, 10):
        put(raw / "frames" / IDS[1] / f"frame_{number}.jpg", frame(80 + number))
    put(raw / "frames" / IDS[2] / "0.jpg", frame(160))
    put(raw / "frames" / IDS[2] / ".hidden.jpg", frame(0))


def table(raw, file, rows):
    path = raw / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        put(path, "\n".join(lines) + "\n")
    else:
        put(path, json.dumps(rows))


def first_rows(id, text):
    return [{id: name, text: texts[0]} for name, texts in zip(IDS, TEXTS)]


def msrvtt_csv(raw):
    rows = [{"key": f"ret{n}", "vid_key": f"msr{n}"} | row for n, row in enumerate(
        first_rows("video_id", "sentence"))]  # fmt: skip
    table(raw, "MSRVTT_JSFUSION_test.csv", rows)


def msrvtt_json(raw):
    rows = [row | {"video": f"{row['video_id']}.mp4"} for row in first_rows("video_id", "caption")]
    table(raw, "msrvtt_test_1k.json", rows)


def msrvtt_hub(raw):
    table(raw, "test_1k/test-00000-of-00001.parquet", first_rows("video_id", "caption"))


def msvd_pickle(raw):
    captions = {id: [text.split() for text in texts] for id, texts in zip(IDS, TEXTS)}
    put(raw / "raw-captions.pkl", pickle.dumps(captions | {"train": [["a"]]}))
    put(raw / "test_list.txt", "\n".join(IDS) + "\n")


def msvd_json(raw):
    put(raw / "raw-captions.json", json.dumps(dict(zip(IDS, TEXTS))))
    put(raw / "test_list.txt", "\n".join(IDS) + "\n")


def hub(id, text, form="{}"):
    def write(raw):
        rows = [{id: form.format(name), text: texts} for name, texts in zip(IDS, TEXTS)]
        table(raw, "data/test-00000-of-00001.parquet", rows)

    return write


LAYOUTS = [
    ("msrvtt_1k", msrvtt_csv, 1),
    ("msrvtt_1k", msrvtt_json, 1),
    ("msrvtt_1k", msrvtt_hub, 1),
    ("msvd", msvd_pickle, 3),
    ("msvd", msvd_json, 3),
    ("msvd", hub("video_id", "caption"), 3),
    ("mmeb_v2_msvd", hub("video_id", "caption"), 1),
    ("mmeb_v2_didemo", hub("video", "caption", "videos/{}.mp4"), 1),
    ("mmeb_v2_vatex", hub("videoID", "enCap"), 1),
]


def prepared(name, make, tmp_path):
    make(tmp_path / "raw")
    videos(tmp_path / "raw")
    public = dataclasses.replace(SETS[name], counts={name: 3})  # of the fixture
    prepare.prepare(public, tmp_path / "sets", tmp_path / "raw", None)
    check.check(public, tmp_path / "sets" / name)


def make_suite(folder, instructions="data"):
    return suite.make_suite(
        folder,
        mmeb_folder="",
        instructions=instructions,
        composition_folder="",
        images="",
        image_prompt="<|image_1|> in one word:",
        limit=0,
        agreement=None,
        retrieval_data="",
        columns={},
        caption_prompt="Find me an video that matches the given caption: {caption}",
        video_prompt="<|video_1|>\nRepresent the given video.",
        benchmark_folder="sets",
        benchmark_names=(),
    )


def encode(texts):
    """One direction a video, by the shade of its first frame, which its captions share."""

    def run(items):
        vectors = []
        for item in items:
            texts.add(item.text)
            row = next((n for n, id in enumerate(IDS) if id in item.text), -1)
            for media in item.media:
                assert media.kind == "clip"
                with clips.opened(media.data) as clip:
                    assert clip.facts.frames == (3, 3, 1)[row := _row(clip)]
            vectors.append(np.eye(3, dtype=np.float32)[row])
        return np.array(vectors)

    return run


def _row(clip):
    (first,) = clip.frames([0])
    return round(np.asarray(first)[0, 0, 0] / 80)


@for_each(("name", "make", "captions"), LAYOUTS)
def test_raw_layouts_become_scores_of_clips(name, make, captions, tmp_path):
    prepared(name, make, tmp_path)
    opened, texts = make_suite(tmp_path), set()
    found, results = suite.evaluate(opened, encode(texts))
    of_set = found["captions"][name]
    assert of_set["videos"] == 3 and of_set["captions"] == 3 * captions
    assert {of_set[way][f"R@{k}"] for way in ("t2v", "v2t") for k in (1, 5, 10)} == {100.0}
    ranking = results["captions", name].i2t
    assert ranking.candidates == (3 if name == "msvd" else 3 * captions)
    if name == "msrvtt_1k":  # LLaVE's words are the configuration's
        prompt = "Find me an video that matches the given caption: caption 0 of video7"
        assert {prompt, "<|video_1|>\nRepresent the given video."} <= texts
        # The report shows a strip of three frames.
        images = opened.images()
        clip = next(item for item in results["captions", name].t2i.items if item.media)
        card = gallery.card(clip, images, {})
        assert card["lost"] == 0 and card["images"][0].startswith("data:image/png")


def test_sets_of_mmeb_v2_have_its_words(tmp_path):
    prepared("mmeb_v2_msrvtt", msrvtt_hub, tmp_path)
    expected = {
        "data": "Find a video that contains the following visual content: caption 0 of video7",
        "qwen3_vl": "Find a video that contains the following visual content. caption 0 of video7",
    }
    for instructions, query in expected.items():
        texts: set[str] = set()
        suite.evaluate(make_suite(tmp_path, instructions), encode(texts))
        assert query in texts
        target = "<|video_1|> Understand the content of the provided video."
        default = "<|video_1|>\nRepresent the user's input."
        assert (default if instructions == "qwen3_vl" else target) in texts


def test_what_is_missing_or_unsafe_is_said(tmp_path):
    raw = tmp_path / "raw"
    msrvtt_csv(raw)
    public = dataclasses.replace(SETS["msrvtt_1k"], counts={})
    put(raw / "videos" / f"{IDS[0]}.mp4", b"a video")
    with pytest.raises(FileNotFoundError, match=r"has not 2 of the 3 videos, such as b-1_0_5, c.d"):
        prepare.prepare(public, tmp_path / "sets", raw, None)
    with pytest.raises(FileNotFoundError, match=r"has no annotations: MSRVTT_JSFUSION_test.csv or"):
        video_captions.read(tmp_path, tmp_path, name="x", layout=video_captions.MSRVTT)
    table(raw, "MSRVTT_JSFUSION_test.csv", [{"id": "a", "text": "b"}])
    with pytest.raises(ValueError, match=r"row 0 has no texts in video_id, sentence or caption"):
        video_captions.read(raw, tmp_path, name="x", layout=video_captions.MSRVTT)

    class Harmful:
        def __reduce__(self):
            return print, ("run",)

    put(raw / "captions.pkl", pickle.dumps({"a": Harmful()}))
    with pytest.raises(ValueError, match=r"names builtins.print may run any code"):
        plain_pickle.read(raw / "captions.pkl")
    put(raw / "captions.pkl", b"\x80\x04")
    with pytest.raises(ValueError, match=r"captions.pkl is no pickle, or damaged"):
        plain_pickle.read(raw / "captions.pkl")
