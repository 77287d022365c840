"""Prepared sets in an evaluation: what is run, and what stops alone."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.tables import for_each
from unime_jax.evaluation import suite


def png(red):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_set(folder, name, kind, subsets, images, **record):
    own = folder / name
    (own / "rows").mkdir(parents=True)
    for file, rows in subsets.items():
        (own / "rows" / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path, content in images.items():
        (own / "pictures" / path).parent.mkdir(parents=True, exist_ok=True)
        (own / "pictures" / path).write_bytes(content)
    counts = {file.partition(".")[0]: len(rows) for file, rows in subsets.items()}
    content = {"name": name, "kind": kind, "rows": "rows/*.jsonl", "images": "pictures"}
    content |= {"source": "here", "revision": "", "counts": counts} | record
    (own / "set.json").write_text(json.dumps(content))
    return own


def captioned(folder, name, reds):
    """A set whose images are called 0.png and so on, as those of all others."""
    rows = [{"image": f"{n}.png", "captions": [f"red {red}"]} for n, red in enumerate(reds)]
    pictures = {f"{n}.png": png(red) for n, red in enumerate(reds)}
    return write_set(folder, name, "captions", {f"{name}.jsonl": rows}, pictures)


@pytest.fixture
def sets(tmp_path):
    """A set of each kind, in which the same path names different images."""
    folder = tmp_path / "sets"
    captioned(folder, "one", [10, 20])
    captioned(folder, "two", [30, 40])
    mmeb = {"qry_text": "which?", "qry_img_path": "0.png", "tgt_img_path": ["", ""]}
    write_set(
        folder,
        "mmeb",
        "mmeb",
        {"VOC2007.jsonl": [mmeb | {"tgt_text": ["red 50", "red 1"]}]},
        {"0.png": png(50)},
    )
    pairs = [{"image_path": "0.png", "caption": "red 60", "negative_caption": "red 1"}]
    crepe = {"swap.jsonl": pairs, "add.jsonl": [pairs[0] | {"caption": "red 2"}]}
    rule = {"swap": "sugarcrepe", "add": "sugarcrepe"}
    write_set(folder, "crepe", "composition", crepe, {"0.png": png(60)}, rule=rule)
    beir = {
        "queries.jsonl": [{"_id": "q", "text": "red 70"}],
        "corpus.jsonl": [{"_id": "d", "image": "0.png"}, {"_id": "e", "text": "red 0"}],
        "qrels.jsonl": [{"query-id": "q", "corpus-id": "d", "score": 1}],
    }
    write_set(folder, "mteb_tiny", "retrieval", beir, {"0.png": png(70)})
    return folder


def encode(items):
    """A direction for each red."""
    reds = [
        int(np.asarray(Image.open(io.BytesIO(i.media[0].data)))[0, 0, 0])
        if i.media
        else int(i.text.rpartition(" ")[2])
        for i in items
    ]
    return np.eye(256, dtype=np.float32)[reds]


def open_suite(sets, *names, **more):
    given = {"mmeb_folder": "", "composition_folder": "", "images": "", "retrieval_data": ""}
    return suite.make_suite(
        sets.parent,
        **given | more,
        image_prompt="<|image_1|>",
        limit=0,
        agreement=None,
        columns={},
        caption_prompt="{caption}",
        video_prompt="<|video_1|>",
        benchmark_folder=sets.name,
        benchmark_names=names,
    )


def test_sets_of_all_kinds_are_run_and_their_images_are_told_apart(sets):
    (sets / "raw files").mkdir()  # no set
    write_set(sets, "nli", "pairs", {"nli.jsonl": [{"sent0": "a", "sent1": "b"}]}, {"a.png": b""})
    opened = open_suite(sets)
    assert opened.not_run == {}
    scores, results = suite.evaluate(opened, encode)
    assert {name: of["t2i"]["R@1"] for name, of in scores["captions"].items()} == {
        "one": 100,
        "two": 100,
    }
    assert scores["datasets"] == {"VOC2007": 100} == {"VOC2007": scores["CLS"]}
    composed = {"crepe/swap": 100, "crepe/add": 0, "crepe/text_acc": 100}  # the second is a tie
    assert scores["composition"] == composed
    assert scores["retrieval"]["R@1"] == 100 and "not_run" not in scores
    images = opened.images()
    ranking = results["captions", "two"].t2i
    assert images(ranking.items[ranking.gold[0]].media[0].path) == png(30)


def test_a_subset_whose_images_are_gone_stops_alone(sets):
    swap = sets / "crepe" / "rows" / "swap.jsonl"
    swap.write_text(swap.read_text().replace("0.png", "7.png"))
    opened = open_suite(sets, "one", "crepe", composition_folder="sets/crepe/rows/add.jsonl")
    assert [(task.kind, task.name) for task in opened.tasks] == [
        ("composition", "add"),
        ("captions", "one"),
        ("composition", "crepe/add"),
    ]
    assert list(opened.not_run) == ["crepe/swap"]
    assert "'crepe/swap', row 0: image '7.png' cannot be read" in opened.not_run["crepe/swap"]
    twice = open_suite(sets, "one", "mmeb", mmeb_folder="sets/mmeb/rows")
    assert "has dataset 'VOC2007' from other data, too" in twice.not_run["mmeb"]


def missing(sets):
    shutil.rmtree(sets / "two")
    return "has no set.json, which is written last"


def shorter(sets):
    path = sets / "two" / "rows" / "two.jsonl"
    path.write_text(path.read_text().partition("\n")[2])
    return "has 1 rows of 'two', but set.json says 2 rows of 'two'"


def without_rows(sets):
    (sets / "two" / "rows" / "two.jsonl").unlink()
    return "no data in .*two.rows"


def without_images(sets):
    shutil.rmtree(sets / "two" / "pictures")
    return "its images are gone"


def without_first_image(sets):
    (sets / "two" / "pictures" / "0.png").unlink()
    return "'two', row 0: image '0.png' cannot be read"


def of_another_kind(sets):
    record = json.loads((sets / "two" / "set.json").read_text())
    (sets / "two" / "set.json").write_text(json.dumps(record | {"kind": "audio"}))
    return "kind 'audio'; known are"


def half_a_record(sets):
    path = sets / "two" / "set.json"
    path.write_text(path.read_text()[:20])
    return "set.json is not JSON"


def of_another_set(sets):
    shutil.copy(sets / "one" / "set.json", sets / "two" / "set.json")
    return "is of the set 'one', not of 'two'"


def without_rule(sets):
    record = json.loads((sets / "two" / "set.json").read_text())
    (sets / "two" / "set.json").write_text(json.dumps(record | {"kind": "composition"}))
    return "has no rule of subset 'two', but None; there are sugarcrepe"


def unknown_to_mmeb(sets):
    (sets / "two").joinpath("rows", "two.jsonl").write_text("{}\n")
    record = json.loads((sets / "two" / "set.json").read_text())
    record |= {"kind": "mmeb", "counts": {"two": 1}}
    (sets / "two" / "set.json").write_text(json.dumps(record))
    return "no meta task is known for MMEB's dataset 'two'"


@for_each(
    "damage",
    [missing, shorter, without_rows, without_images, without_first_image, of_another_kind]
    + [half_a_record, of_another_set, without_rule, unknown_to_mmeb],
)
def test_a_set_that_cannot_be_used_stops_alone_and_is_named(damage, tmp_path):
    folder = tmp_path / "sets"
    captioned(folder, "one", [10, 20])
    captioned(folder, "two", [30, 40])
    reason = damage(folder)
    opened = open_suite(folder, "one", "two")
    assert [task.name for task in opened.tasks] == ["one"] and list(opened.not_run) == ["two"]
    with pytest.raises(ValueError, match=reason):
        raise ValueError(opened.not_run["two"])
    scores, _ = suite.evaluate(opened, encode)
    assert scores["not_run"] == opened.not_run and list(scores["captions"]) == ["one"]
    with pytest.raises(ValueError, match="no benchmark set in .*sets can be run:\n- two: "):
        open_suite(folder, "two")
