"""What is wrong with pairs is found before a run, each row by where it stands."""

import json
import random

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from data_pipelines.validate import Options, __main__, report, scan, validate
from tests.backbones.tiny_folders import write_folder
from tests.data import clip_files
from tests.tables import for_each
from unime_jax.backbones import open_backbone
from unime_jax.batch import Item
from unime_jax.data import bucket_choice
from unime_jax.data.clips import archive
from unime_jax.data.settings import Bucket


def write_rows(folder, rows, name="pairs.jsonl"):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def write_image(path, size):
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four good rows and six bad ones; a blank line is no row."""
    folder = tmp_path_factory.mktemp("data")
    write_image(folder / "good.png", (40, 56))
    write_image(folder / "tiny.png", (4, 30))
    content = write_image(folder / "whole.jpg", (64, 64))
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    rows = [
        {"query": "one", "positive": {"image": "good.png"}},
        "",
        {"query": "two", "positive": {"image": "absent.png"}},
        {"query": {"text": "three", "image": "cut.jpg"}, "positive": "3", "id": "third"},
        {"query": "four", "positive": {"image": "tiny.png"}},
        {"query": "five", "positive": " "},
        "{broken",
        {"query": "word " * 200, "positive": "six"},
        {
            "query": "seven <|image_1|>",
            "positive": "7",
            "negatives": ["8", "7", {"image": "b.png"}],
        },
        {"query": "eight <|image_1|>", "positive": "9", "negatives": ["10", "9"]},
    ]
    write_rows(folder, rows)
    write_folder(folder / "backbone")
    return folder


def listed(result, kind):
    return [(row["row"], row["image"]) for row in result["problems"][kind]["rows"]]


def test_unusable_rows_and_lengths_under_a_backbone(folder, capsys):
    path = str(folder / "pairs.jsonl")
    plain = validate([path], Options())
    bad = [
        ("line 3", "absent.png"),
        ("line 4", "cut.jpg"),
        ("line 6", ""),
        ("line 7", ""),
        ("line 9", "b.png"),
    ]
    assert listed(plain, "unusable_rows") == bad
    (row,) = [row for row in plain["problems"]["unusable_rows"]["rows"] if row["id"] == "third"]
    assert row["file"] == path and "query: image cannot be decoded: OSError" in row["reason"]
    assert listed(plain, "tiny_images") == [("line 5", "tiny.png")]
    assert listed(plain, "positives_among_negatives") == [("line 10", "")]
    assert "backbone" not in plain and "cut_texts" not in plain["problems"]

    result = validate([path], Options(backbone=str(folder / "backbone"), max_length=160))
    assert listed(result, "unusable_rows") == bad
    assert listed(result, "cut_texts") == [("line 8", "")]
    assert listed(result, "markers_without_image") == [("line 10", "")]
    lengths = result["backbone"]
    assert (lengths["texts"]["items"], lengths["with_images"]["items"]) == (8, 2)
    assert lengths["texts"]["tokens"]["most"] == lengths["max_length"] == 160
    assert lengths["with_images"]["tiles"]["most"] > 1
    last = lengths["buckets"][-1]
    assert last["tokens"] == 160 and last["tiles"] >= lengths["with_images"]["tiles"]["most"]
    said = report.text(result)
    assert f"  {path}, line 4 (id third), image cut.jpg: query: image cannot" in said
    assert f"Bucket(tokens=160, tiles={last['tiles']})" in said
    assert "9/9 [" in capsys.readouterr().err  # progress, in rows


def test_clips_are_decoded_at_both_ends(tmp_path):
    good, small = clip_files.video(), clip_files.squares(3, (32, 14))
    (tmp_path / "good.mp4").write_bytes(good)
    (tmp_path / "cut.mp4").write_bytes(good[:-100])
    (tmp_path / "tiny.zip").write_bytes(archive(small, None))
    (tmp_path / "late.zip").write_bytes(archive([*small[:2], small[2][:8]], None))
    names = ("good.mp4", "cut.mp4", "tiny.zip", "late.zip")
    path = write_rows(tmp_path, [{"query": {"video": name}, "positive": name} for name in names])
    result = validate([path], Options())
    assert listed(result, "unusable_rows") == [("line 2", "cut.mp4"), ("line 4", "late.zip")]
    reasons = [row["reason"] for row in result["problems"]["unusable_rows"]["rows"]]
    assert "query: clip cannot be decoded: cut off" in reasons[0]
    assert "query: clip cannot be decoded: '000002.png' has 32 x 8 pixels" in reasons[1]
    assert listed(result, "tiny_images") == [("line 3", "tiny.zip")]


def test_repeats_are_those_of_all_pairs_of_rows(tmp_path):
    generator = random.Random(1)
    rows = [
        {"query": f"{generator.randrange(12)}", "positive": f"{generator.randrange(8, 40)}"}
        for _ in range(60)
    ]
    parts = write_rows(tmp_path, rows[:25], "a.jsonl"), write_rows(tmp_path, rows[25:], "b.jsonl")
    result = validate(parts, Options())
    pairs = [(row["query"], row["positive"]) for row in rows]
    targets = {target for _, target in pairs}
    places = [(parts[n // 25 > 0], f"line {n + 1 - 25 * (n > 24)}") for n in range(60)]

    def of(kind):
        return [(row["file"], row["row"]) for row in result["problems"][kind]["rows"]]

    again = [places[n] for n, pair in enumerate(pairs) if pair in pairs[:n]]
    assert again and of("duplicate_pairs") == again
    both = [places[n] for n, (query, _) in enumerate(pairs) if query in targets]
    assert both and of("queries_that_are_targets") == both

    for name, side in (("same_query", 0), ("same_target", 1)):
        false = [
            (i, j)
            for i, a in enumerate(pairs)
            for j, b in enumerate(pairs)
            if a[side] == b[side] and a != b
        ]
        share = result["likely_false_negatives"][name]
        rows_of = {i for i, _ in false}
        assert (share["rows"], share["of_rows"]) == (len(rows_of), len(rows_of) / 60)
        assert share["of_negatives"] == pytest.approx(len(false) / (60 * 59))
        if name == "same_query":
            assert of("queries_with_several_positives") == [places[i] for i in sorted(rows_of)]
    assert (result["queries"], result["targets"]) == (len({q for q, _ in pairs}), len(targets))


def test_samples_and_long_lists_are_bounded(tmp_path, folder, monkeypatch):
    path = write_rows(tmp_path, [{"query": f"{n} " * n, "positive": "p"} for n in range(1, 201)])
    options = Options(backbone=str(folder / "backbone"), sample=50, seed=3)
    monkeypatch.setattr(scan, "LISTED", 7)
    result = validate([path], options)
    lengths = result["backbone"]
    assert lengths["measured_rows"] == 50 and lengths["texts"]["items"] == 100
    assert result == validate([path], options)
    other = validate([path], Options(backbone=str(folder / "backbone"), sample=50, seed=4))
    assert other["backbone"]["texts"] != lengths["texts"]
    whole = validate([path], Options(backbone=options.backbone))
    preprocess = open_backbone(options.backbone, max_length=None).preprocess
    texts = [*(f"{n} " * n for n in range(1, 201)), *["p"] * 200]
    sizes = np.array([(len(preprocess(Item(text)).tokens), 0) for text in texts])
    buckets = bucket_choice.chosen(sizes, patches=16, limit=4096)
    assert [Bucket(**bucket) for bucket in whole["backbone"]["buckets"]] == list(buckets)

    rows = [{"query": "a", "positive": "b"}, *["{"] * 20]
    broken = validate([write_rows(tmp_path, rows, "b.jsonl")], Options())
    problem = broken["problems"]["unusable_rows"]
    assert problem["count"] == 20 and len(problem["rows"]) == 7
    assert "and 15 more" in report.text(broken)


PAIR = [{"query": "a", "positive": "b"}]
RENAMED = [{"q": "a", "p": "b"}, {"q": "c", "p": "d"}]


@for_each(
    ("rows", "options", "status", "said"),
    [
        (RENAMED, {"columns": ["query=q", "positive=p"]}, 0, "no problems"),
        ([{"query": "a", "positive": ""}, *PAIR], {}, 1, "line 1: no positive"),
        (PAIR, {"columns": ["qery=q"]}, 2, "did you mean query?"),
        (PAIR, {"backbone": "/nowhere"}, 2, "/nowhere"),
        (PAIR, {"report": "absent/report.json"}, 2, "absent/report.json"),
        ([], {}, 2, "there are no rows"),
    ],
)
def test_exit_status(tmp_path, capsys, monkeypatch, rows, options, status, said):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, rows)
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**({"report": "report.json"} | options)):
        assert __main__.main(["validate", "pairs.jsonl"]) == status
        assert __main__.main(["validate"]) == 2
    assert said in "".join(capsys.readouterr())
    assert (tmp_path / "report.json").exists() == (status < 2)
    if status < 2:
        assert json.loads((tmp_path / "report.json").read_text())["rows"] == len(rows)
    with pytest.raises(SystemExit) as stopped:
        __main__._parse(["validate", "--sample=0"])
    assert stopped.value.code == 2
