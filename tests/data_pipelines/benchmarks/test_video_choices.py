"""MMEB-V2's videos with candidates of their rows, from raw files to words, scores and means."""

import dataclasses
import functools
import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.benchmarks import check, prepare, video_choices, video_moments
from tests.data_pipelines.benchmarks.test_video_sets import frame, make_suite, put, table
from tests.tables import for_each
from unime_jax.evaluation import score_table, scores, suite
from unime_jax.evaluation.benchmarks import mmeb_v2_video
from unime_jax.evaluation.report import page

SETS = {public.name: public for public in (*video_choices.SETS, *video_moments.SETS)}
ASK = "Given a video and a question, select the most accurate answer from the provided candidates. "
ASK += "Return only the exact text of your chosen answer."
DOES = "What actions or object interactions are being performed by the person in the video?"
SCENE = "Find the clip that corresponds to the described scene in the given video"
ACTIONS = ["wrong up", "Moving right", "wrong [something]"]
ABCDE = ["wrong a", "wrong b", "wrong c", "right", "wrong e"]
OPTIONS = ["A. wrong. no", "B. The right one.", "C.wrong"]


def rows_of(name):
    """The public columns of two rows, of MVBench's configs one each; more columns are not read."""
    return {
        "smthsmthv2": [
            {"video_id": id, "pos_text": ACTIONS[1], "neg_text": ACTIONS} for id in ("1", "2", "3")
        ],
        "nextqa": [
            {"video": id, "question": "why did she turn", "answer": answer, "qid": 0, "type": "CW"}
            | {f"a{n}": option for n, option in enumerate(ABCDE)}
            for id, answer in ((4010069381, 3), (4010069382, 0))  # the second is answered wrongly
        ],
        "egoschema": [
            {"video_idx": "e-1", "question": "What?", "question_idx": n, "option": OPTIONS}
            | {"answer": "1"}
            for n in range(2)
        ],
        "videomme": [
            {"videoID": "Xy.z", "question": "Who?", "options": OPTIONS, "answer": "B", "domain": d}
            for d in ("a", "b")
        ],
        "activitynetqa": [
            {"video_name": "Q8", "question": "is he outside", "answer": "no", "question_id": n}
            for n in range(2)
        ],
        "qvhighlight": [
            {"query": "A dog.", "video_path": f"videos/v_{n}.5_9.0.mp4"} for n in range(2)
        ],
        "charades_sta": [{"query": "sits", "video_path": f"c{n}.mp4"} for n in range(2)],
        "momentseeker": [
            {"query": "he runs", "input_frames": given}
            | {f"{side}_frames": [{"output_path": f"ego/{p}.mp4"} for p in paths.split()]
               for side, paths in (("positive", "far_1.0 near_2"), ("negative", "far_3 far_4"))}
            for given in ("", "movie/5_1.0.mp4", "q7.jpg")
        ],
    }[name]  # fmt: skip


FILES = {
    "smthsmthv2": "data/test-00000-of-00001.parquet",
    "nextqa": "MC/test-00000-of-00001.parquet",
    "egoschema": "Subset/test-00000-of-00001.parquet",
    "videomme": "videomme/test-00000-of-00001.parquet",
    "activitynetqa": "data/test-00000-of-00001.parquet",
    "qvhighlight": "data/test-00000-of-00001.parquet",
    "charades_sta": "test.json",
    "momentseeker": "data/test-00000-of-00001.parquet",
}
# A path that ends in .mp4 is a file, any other a folder with a frame.
VIDEOS = {
    "smthsmthv2": ["SSv2/1", "SSv2/2.mp4", "SSv2/3"],
    "nextqa": ["4010069381", "4010069382"],
    "egoschema": ["egoschema/e-1"],
    "videomme": ["Xy.z"],
    "activitynetqa": ["v_Q8"],
    "qvhighlight": [f"v_{n}.5_9.0/{part}" for n in range(2) for part in
                    ("query", "positive_1", "negative_far_0", "negative_far_1")],
    # The query lies apart, and clips are files, one of which has frames, too.
    "charades_sta": ["c0.mp4", "c1.mp4", *(f"clips/c{n}/{part}" for n in range(2) for part in
                     ("positive.mp4", "far.mp4", "far"))],
    "momentseeker": ["video_frames/ego_far_1.0", "raw/ego/near_2.mp4", "video_frames/ego_far_3",
                     "video_frames/ego_far_4", "video_frames/movie_5_1.0"],
}  # fmt: skip


def animation():
    buffer = io.BytesIO()
    moving = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 99)]
    moving[0].save(buffer, "GIF", save_all=True, append_images=moving[1:])
    return buffer.getvalue()


def write_raw(raw, name, rows=None):
    if name == "mvbench":
        for config in video_choices.MVBENCH:
            row = {"video": "v.mp4", "question": "Which?", "answer": "right"}
            row |= {"candidates": ["wrong", "right", "right"]}
            file = f"json/{config}.json" if config < "b" else f"{config}/train-00000.parquet"
            table(raw, file, [row])
            put(raw / "frames" / config / "v.mp4" / "0.jpg", frame(80))
        put(raw / "star" / "Charades_v1_480" / "v.mp4", animation())
        return
    table(raw, FILES[name], rows or rows_of(name))
    for path in VIDEOS[name]:
        is_file = path.endswith(".mp4")
        put(raw / path / ("" if is_file else "0.jpg"), animation() if is_file else frame(80))
    if name == "momentseeker":
        put(raw / "query_q7.jpg", frame(80))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """All nine sets, prepared and looked at, below sets/."""
    folder = tmp_path_factory.mktemp("choices")
    for name, public in SETS.items():
        short = name.removeprefix("mmeb_v2_")
        write_raw(folder / "raw" / name, short)
        count = 20 if short == "mvbench" else 3 if short in ("smthsmthv2", "momentseeker") else 2
        if short == "smthsmthv2":  # the first rows count
            count, public = 2, with_limit(public, 2)
        own = dataclasses.replace(public, counts={name: count})
        prepare.prepare(own, folder / "sets", folder / "raw" / name, None)
        check.check(own, folder / "sets" / name)
    return folder


def with_limit(public, limit):
    assert public.read.keywords["limit"] == public.counts[public.name] == 1000
    return dataclasses.replace(public, read=functools.partial(public.read, limit=limit))


def test_the_public_sets_are_those_of_the_means():
    assert {name: list(public.counts.values()) for name, public in SETS.items()} == {
        "mmeb_v2_smthsmthv2": [1000],
        "mmeb_v2_nextqa": [8564],
        "mmeb_v2_egoschema": [500],
        "mmeb_v2_mvbench": [4000],
        "mmeb_v2_videomme": [2700],
        "mmeb_v2_activitynetqa": [1000],
        "mmeb_v2_qvhighlight": [1083],
        "mmeb_v2_charades_sta": [727],
        "mmeb_v2_momentseeker": [1602],
    }
    assert SETS.keys() < mmeb_v2_video.SETS.keys() and len(video_choices.MVBENCH) == 20


LISTED = "why did she turn\nOptions:\n(A) wrong a\n(B) wrong b\n(C) wrong c\n(D) right\n(E) wrong e"
BENCH = "Which?\nOptions:\n(A) wrong\n(B) right\n(C) right"
CLIP, USER = "<|video_1|>", "Represent the user's input."
UNDERSTOOD = f"{CLIP} Understand the content of the provided video."
MOMENT = UNDERSTOOD.replace("video.", "video clip.")
# Query and candidates in VLM2Vec's words, then in Qwen3-VL-Embedding's, by set and row.
WORDS = {
    ("smthsmthv2", 0): (
        f"{CLIP} {DOES}",
        ["Moving right", "wrong up", "wrong [something]"],
        f"{CLIP}\n{DOES}",
        [f"{USER} Moving right", f"{USER} wrong up", f"{USER} wrong [something]"],
    ),
    ("nextqa", 0): (
        f"{CLIP} {ASK} Question:  {LISTED}",
        ["right", "wrong a", "wrong b", "wrong c", "wrong e"],
        f"{CLIP}\n{ASK} {LISTED}",
        [f"{USER} {each}" for each in ("(D) right", *LISTED.split("\n")[2:5], "(E) wrong e")],
    ),
    ("egoschema", 1): (
        f"{CLIP} {ASK} Question:  What?A. wrong. no B. The right one. C.wrong",
        ["The right one", "wrong. no", "C.wrong"],
        f"{CLIP}\n{ASK} What? A. wrong. no B. The right one. C.wrong",
        [f"{USER} The right one", f"{USER} wrong. no", f"{USER} C.wrong"],
    ),
    ("videomme", 0): (
        f"{CLIP} {ASK} Question:  Who?\nA. wrong. no\nB. The right one.\nC.wrong",
        ["The right one", "wrong. no", "C.wrong"],
        f"{CLIP}\n{ASK} Who?\nA. wrong. no\nB. The right one.\nC.wrong",
        [f"{USER} The right one", f"{USER} wrong. no", f"{USER} C.wrong"],
    ),
    ("activitynetqa", 0): (
        f"{CLIP} {ASK} Question:  is he outside? (A) yes; (B) no.",
        ["no", "yes"],
        f"{CLIP}\n{ASK} is he outside? (A) yes; (B) no.",
        [f"{USER} no", f"{USER} yes"],
    ),
    ("mvbench", 19): (  # of equal options the last is the answer
        f"{CLIP} {ASK} Question:  {BENCH}",
        ["(C) right", "(A) wrong", "(B) right"],
        f"{CLIP}\n{ASK} {BENCH}",
        [f"{USER} (C) right", f"{USER} (A) wrong", f"{USER} (B) right"],
    ),
    ("qvhighlight", 1): (
        f"{CLIP} {SCENE}: A dog.",
        [UNDERSTOOD] * 3,
        f"{CLIP}\n{SCENE}. A dog.",
        [f"{CLIP}\n{USER}"] * 3,
    ),
    ("charades_sta", 0): (
        f"{CLIP} {SCENE}: sits",
        [UNDERSTOOD] * 2,
        f"{CLIP}\n{SCENE}. sits",
        [f"{CLIP}\n{USER}"] * 2,
    ),
    ("momentseeker", 0): (
        "Find the clip that corresponds to the given text: he runs",
        [MOMENT] * 4,
        "Find the clip that corresponds to the given text. he runs",
        [f"{CLIP}\n{USER}"] * 4,
    ),
    ("momentseeker", 1): (
        f"{CLIP} Find the clip that corresponds to the given sentence and video segment: he runs",
        [MOMENT] * 4,
        f"{CLIP}\nFind the clip that corresponds to the given sentence and video segment. he runs",
        [f"{CLIP}\n{USER}"] * 4,
    ),
    ("momentseeker", 2): (
        "<|image_1|> Select the video clip that aligns with the given text and image: he runs",
        [MOMENT] * 4,
        "<|image_1|>\nSelect the video clip that aligns with the given text and image. he runs",
        [f"{CLIP}\n{USER}"] * 4,
    ),
}
SEEKER = ["video_frames/ego_far_1.0", "raw/ego/near_2.mp4", "video_frames/ego_far_3",
          "video_frames/ego_far_4"]  # fmt: skip
MEDIA = {  # of the same rows: video and image of the query, and the candidates' clips
    ("smthsmthv2", 0): ("SSv2/1", "", []),
    ("nextqa", 0): ("4010069381", "", []),
    ("egoschema", 1): ("egoschema/e-1", "", []),
    ("videomme", 0): ("Xy.z", "", []),
    ("activitynetqa", 0): ("v_Q8", "", []),
    ("mvbench", 19): ("frames/egocentric_navigation/v.mp4", "", []),
    ("qvhighlight", 1): (
        "v_1.5_9.0/query", "",
        [f"v_1.5_9.0/{n}" for n in ("positive_1", "negative_far_0", "negative_far_1")],
    ),
    ("charades_sta", 0): ("c0.mp4", "", ["clips/c0/positive.mp4", "clips/c0/far.mp4"]),
    ("momentseeker", 0): ("", "", SEEKER),
    ("momentseeker", 1): ("video_frames/movie_5_1.0", "", SEEKER),
    ("momentseeker", 2): ("", "query_q7.jpg", SEEKER),
}  # fmt: skip


def test_words_candidates_and_media_are_the_published_ones_to_the_letter(sets):
    for instructions, own in (("data", 0), ("vlm2vec", 0), ("qwen3_vl", 2)):
        tasks = {task.name: task for task in make_suite(sets, instructions).tasks}
        assert tasks.keys() == SETS.keys()
        for (name, number), words in WORDS.items():
            row = tasks[f"mmeb_v2_{name}"].rows[number]
            assert (row["qry_text"], row["tgt_text"]) == words[own : own + 2], (name, instructions)
            place = f"benchmark://mmeb_v2_{name}/"
            video, image, clips = MEDIA[name, number]
            assert row["qry_video_path"] == (video and place + video)
            assert row["qry_img_path"] == (image and place + image)
            assert row["tgt_video_path"] == [place + clip for clip in clips]
        # Videos of the same name are told apart by their folders.
        paths = [row["qry_video_path"] for row in map_rows(tasks["mmeb_v2_mvbench"])]
        assert len(set(paths)) == 18 and sum(path.endswith("_480/v.mp4") for path in paths) == 3


def map_rows(task):
    return (task.rows[number] for number in range(len(task.rows)))


def encode(items):
    """Queries and right candidates point one way; wrong texts and clips far away another."""
    wrong = [
        "far" in item.media[0].path
        if "Understand" in item.text or item.text.endswith(f"\n{USER}")
        else len(item.text) < 60 and ("wrong" in item.text or item.text.endswith("yes"))
        for item in items
    ]
    return np.eye(2, dtype=np.float32)[np.array(wrong, int)]


def test_sets_are_scored_by_own_candidates_and_no_mean_is_of_a_part(sets, tmp_path):
    opened = make_suite(sets, "qwen3_vl")
    found, results = suite.evaluate(opened, encode)
    assert found["video"] == {name: 50.0 if "nextqa" in name else 100.0 for name in found["video"]}
    assert found["video"].keys() == SETS.keys() and found["datasets"] == {}
    # Of the three means those of moments alone are whole, and the first of two right clips is far.
    means = {"V-CLS": None, "V-QA": 90.0, "V-RET": None, "V-MRET": 100.0, "Video": None}
    assert {name: found[name] for name in mmeb_v2_video.MEANS} == means
    assert found["video_missing"] == [n for n in mmeb_v2_video.SETS if n not in SETS]
    assert found["instructions"] == "qwen3_vl" and found["All"] is None
    assert set(results["mmeb", "mmeb_v2_momentseeker"].candidates) == {3}
    scores.write_scores(tmp_path, "scores", found)
    assert scores.read_scores(tmp_path)["scores"] == found
    shown = score_table.table(None, found, "score")
    assert "Video: no mean; 9 of MMEB-V2's 18 video sets are missing: mmeb_v2_kinetics700" in shown
    assert "instructions: qwen3_vl" in shown and "mmeb_v2_momentseeker" in shown
    written = page.write_report(
        tmp_path,
        table=opened.table,
        before=None,
        after=suite.rankings(results),
        images=opened.images(),
        title="videos",
    ).read_text()
    assert "Video sets of MMEB-V2" in written and "Moment retrieval" in written
    assert "9 of MMEB-V2" in written and "18 video sets are missing" in written


def changed(name, **cells):
    return lambda raw: write_raw(raw, name, [row | cells for row in rows_of(name)])


def without(name, path):
    def write(raw):
        write_raw(raw, name)
        for each in sorted((raw / path).rglob("*"), reverse=True):
            each.unlink() if each.is_file() else each.rmdir()
        (raw / path).rmdir() if (raw / path).is_dir() else (raw / path).unlink()

    return write


def with_frame(name, path):
    def write(raw):
        write_raw(raw, name)
        put(raw / path, frame(1))

    return write


CLIPS = [{"output_path": "ego/far_3.mp4"}]
DAMAGE = [
    ("smthsmthv2", changed("smthsmthv2", pos_text="dancing"),
     "row 0: the answer 'dancing' is none of its 3 options, such as wrong up, Moving"),
    ("smthsmthv2", changed("smthsmthv2", neg_text="dancing"), "no list of texts in neg_text"),
    ("smthsmthv2", without("smthsmthv2", "SSv2/2.mp4"), "has not 1 of the 3 videos, such as 2: a"),
    ("nextqa", changed("nextqa", answer=5), "the answer '5' is none of its options, 0 to 4"),
    ("nextqa", changed("nextqa", a4=None), "row 0 has no text in a4; it has video, question"),
    ("nextqa", changed("nextqa", video=None), "row 0 has no id in video; it has"),
    ("egoschema", changed("egoschema", answer="B"), "the answer 'B' is none of its options, 0 to"),
    ("videomme", changed("videomme", answer="D"), "the answer 'D' is none of its 3 options, such"),
    ("activitynetqa", changed("activitynetqa", answer="red"), "'red' is none of its 2 options"),
    ("mvbench", without("mvbench", "moving_count"), "no annotations: moving_count/train"),
    ("mvbench", without("mvbench", "frames/moving_count"),
     "has not 1 of the 20 videos, such as moving_count/v.mp4: a folder of frames of this path"),
    ("qvhighlight", changed("qvhighlight", video_path=None), "row 0 has no text in video_path"),
    ("qvhighlight", without("qvhighlight", "v_1.5_9.0/positive_1"),
     "has not 1 of the 2 videos, such as v_1.5_9.0/positive: a file, or a folder"),
    ("qvhighlight", with_frame("qvhighlight", "v_1.5_9.0/positive_2/0.jpg"),
     "row 1: v_1.5_9.0 has 2 right clips in place of 1"),
    ("momentseeker", changed("momentseeker", input_frames=""),
     "row 1 is that of .*row 0: MMEB-V2 counts VLM2Vec/MomentSeeker, which has no row twice"),
    ("momentseeker", changed("momentseeker", positive_frames=CLIPS),
     "row 0: ego/far_3.mp4 is both right and wrong"),
    ("momentseeker", changed("momentseeker", negative_frames=[{"path": "a"}]),
     "row 0 has no output_path in negative_frames; it has query"),
    ("momentseeker", without("momentseeker", "query_q7.jpg"),
     "has not 1 of the 6 videos, such as query_q7.jpg: a file of this path"),
]  # fmt: skip


@for_each(("name", "damage", "message"), DAMAGE)
def test_what_is_not_as_in_the_public_files_is_said_and_nothing_is_written(
    name, damage, message, tmp_path
):
    damage(tmp_path / "raw")
    public = SETS[f"mmeb_v2_{name}"]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare.prepare(public, tmp_path / "sets", tmp_path / "raw", None)
    own = tmp_path / "sets" / public.name
    assert not (own / "rows").exists() and not (own / "set.json").exists()


def test_rows_that_are_too_few_or_without_words_are_said(sets, tmp_path):
    raw = sets / "raw" / "mmeb_v2_egoschema"
    with pytest.raises(ValueError, match="has 2 in place of 500. The raw files are not those of"):
        prepare.prepare(SETS["mmeb_v2_egoschema"], tmp_path, raw, None)
    assert not (tmp_path / "mmeb_v2_egoschema" / "set.json").exists()
    own = tmp_path / "sets" / "mmeb_v2_nextqa"
    made = sets / "sets" / own.name
    put(own / "set.json", (made / "set.json").read_text())
    lines = (made / "rows" / f"{own.name}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    bare = [{k: v for k, v in row.items() if k != "words"} | {"right": 9} for row in rows]
    put(own / "rows" / f"{own.name}.jsonl", "".join(json.dumps(row) + "\n" for row in bare))
    (task,) = make_suite(tmp_path, "qwen3_vl").tasks
    with pytest.raises(ValueError, match="'mmeb_v2_nextqa', row 0: no column words"):
        task.open(bytes)
    (task,) = make_suite(tmp_path, "data").tasks
    with pytest.raises(ValueError, match="row 0.*: right is 9, and there are 5 candidates"):
        task.open(bytes)
