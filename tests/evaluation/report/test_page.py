"""The report as a page: complete, self-contained, and readable without any of its parts."""

import base64
import io
import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.tiny_report import (
    EVIL,
    TABLE,
    Page,
    evaluation,
    image_bytes,
    write,
    write_run,
)
from unime_jax.evaluation import score_table, scores, tasks
from unime_jax.evaluation.report import gallery
from unime_jax.evaluation.report import page as report
from unime_jax.evaluation.retrieval import scores as retrieval_scores
from unime_jax.evaluation.retrieval.data import Pairs, images_of
from unime_jax.evaluation.tasks import mmeb, retrieval


def test_report_is_complete_and_self_contained(tmp_path, results):
    write_run(tmp_path, results)
    start = time.process_time()
    text, page = write(tmp_path, *results, title=EVIL, headline={"backbone": EVIL})
    assert time.process_time() - start < 6
    assert len(text) < 3_000_000

    assert "script" not in page.tags
    assert "&lt;script&gt;" in text and "<b>bold" not in text
    for address in page.addresses:
        assert address.startswith(("data:image/", "#")), address
    assert not re.search(r"url\((?!#)|@import|https?://", text)

    words = " ".join(page.texts)
    for name in TABLE:
        assert words.count(name) >= 2  # bar and gallery
    for word in (*scores.COLUMNS, "replace", "swap", "temperature", "gold", "hit@1"):
        assert word in words
    both = scores.read_scores(tmp_path)
    for side in both.values():
        for value in (*side["datasets"].values(), side["All"], side["IND"]):
            assert f"{value:.1f}" in words
    assert f"{both['after']['All'] - both['before']['All']:+.1f}" in words
    assert page.tags.count("svg") == 7 + 2 + 1  # curves without batch_accuracy, histograms, radar
    assert "2 logged steps dropped" in words
    assert "Before training" in words and "After training" in words


def test_nothing_is_hidden_in_a_page_and_nothing_turns_it_around(tmp_path):
    """Names, texts and ids with marks of direction, control characters, and half characters."""
    strange = "exe\u202egnp \x1b[2J\x00 \ud800 {{ 7 * 7 }} <b>"
    row = {"id": strange, "qry_text": strange, "qry_img_path": "", "tgt_img_path": ["", ""]}
    rows = [row | {"tgt_text": [f"right {strange}", f"wrong {strange}"]}]
    rows[0]["qry_text"] = rows[0]["qry_text"].replace("\ud800", "")  # refused before it is encoded
    rows[0]["tgt_text"] = [text.replace("\ud800", "") for text in rows[0]["tgt_text"]]
    task = mmeb.Task(strange, rows)
    results = {strange: tasks.run(task, image_bytes, lambda items: np.eye(3))}
    (tmp_path / "config.json").write_text(json.dumps({"backbone": strange}))
    side = scores.summary({strange: 50.0}, {strange: ("RET", "IND")}, {strange: 40.0})
    scores.write_scores(tmp_path, "after", side)
    path = report.write_report(
        tmp_path,
        table={strange: ("RET", "IND")},
        before=None,
        after=results,
        images=image_bytes,
        title=strange,
        headline={strange: strange},
    )
    text = path.read_text()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    shown = "exe\\u202egnp \\x1b[2J\\x00"
    assert text.count(shown) >= 8 and "{{ 7 * 7 }}" in text and "<b>exe" not in text
    assert "\x1b" not in score_table.table(None, side) and shown in score_table.table(None, side)


def test_images_are_small_and_end_with_the_budget(tmp_path, results, monkeypatch):
    # They are small and readable.
    text, page = write(tmp_path, None, results[1])
    sources = [a for a in page.addresses if a.startswith("data:")]
    assert len(sources) > 20
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            image.load()
            assert max(image.size) <= gallery.THUMBNAIL
    assert gallery.thumbnail(image_bytes("wide")).startswith("data:image/jpeg")

    # Beyond the budget, later examples are left out.
    monkeypatch.setattr(gallery, "IMAGE_BUDGET", 10_000)
    text, _ = write(tmp_path, *results)
    assert "more examples left out" in text


@pytest.mark.usefixtures("one_curve")
def test_a_report_without_what_was_not_measured(tmp_path, results):
    # Neither composition nor scores before.
    write_run(tmp_path, results, composition=False)
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"after": json.loads(path.read_text())["after"]}))
    text, page = write(tmp_path, None, results[1])
    assert "Before training" not in text
    assert "closer to their caption" not in text

    # A composition key may be missing.
    write_run(tmp_path, results)
    path = tmp_path / "evaluation.json"
    sides = json.loads(path.read_text())
    del sides["before"]["composition"], sides["after"]["composition"]
    path.write_text(json.dumps(sides))
    text, _ = write(tmp_path, *results)
    assert "closer to their caption" not in text

    # An empty work directory.
    text, page = write(tmp_path / "new", None, None)
    assert "What the numbers mean" in text
    assert "svg" not in page.tags

    # An evaluation apart from training speaks of one model
    (tmp_path := tmp_path / "next").mkdir()
    percent = {name: result.hit_at_1 for name, result in results[1].items()}
    scores.write_scores(tmp_path, "scores", scores.summary(percent, TABLE, {"swap": 61.25}))
    text, page = write(tmp_path, None, results[1])
    words = " ".join(page.texts)
    assert "Score" in words and f"{scores.read_scores(tmp_path)['scores']['All']:.1f}" in words
    assert not re.search("before training|after training|Before|After", words)


def test_examples_are_failures_first_with_the_gold_or_say_that_there_are_none(tmp_path, results):
    # Failures come first, and the gold is always there.
    result = results[1]["scenes"]
    assert 0 < (result.rank > 0).sum() < 20
    picked = gallery.pick(result)
    assert [int(result.rank[n]) > 0 for n in picked] == [True, True, False]
    thumbnails = {}
    for name, other in results[0].items():
        for n in range(len(other.ids)):
            example = gallery.example(other, n, None, image_bytes, thumbnails)
            gold = [card for card in example["cards"] if card["gold"]]
            assert len(gold) == 1, (name, n)
            assert gold[0]["place"] == example["rank"] == other.rank[n] + 1
            assert len(example["cards"]) == (5 if other.rank[n] < 5 else 6)

    # Without a failure it says so.
    perfect = evaluation(50.0)
    perfect = {name: perfect[name] for name in ("scenes", "regions")}
    assert all(result.hit_at_1 == 100 for result in perfect.values())
    text, _ = write(tmp_path, None, perfect)
    assert "no mistake in 20 rows" in text
    assert "✗" not in text


@pytest.mark.usefixtures("one_curve")
def test_the_same_inputs_give_the_same_file(tmp_path, results):
    write_run(tmp_path, results)
    assert write(tmp_path, *results)[0] == write(tmp_path, *results)[0]


def test_retrieval_has_tables_with_intervals_and_examples(tmp_path):
    def side(signal):
        rng = np.random.default_rng(5)
        rows = [
            {
                "qry": f"{EVIL} question {n}",
                "pos_text": f"answer {n}",
                "pos_image": image_bytes("b"),
            }
            for n in range(9)
        ]
        sets = [Pairs(name, rows, tmp_path) for name in ("first set", "second set")]
        eye = np.eye(10, 16)

        def encode(items):
            numbers = [int(item.text.split()[-1]) for item in items]
            return signal * eye[numbers] + rng.standard_normal((len(items), 16))

        return {s.name: tasks.run(retrieval.Task(s), image_bytes, encode) for s in sets}, sets

    (before, sets), (after, _) = side(0.0), side(8.0)
    for when, results in (("before", before), ("after", after)):
        scores.write_scores(tmp_path, when, {"retrieval": retrieval_scores.of_sets(results)})
    in_rows = images_of({data.name: data for data in sets})
    path = report.write_report(
        tmp_path,
        table={},
        before={},
        after={},
        images=in_rows,
        retrieval={"before": before, "after": after},
    )
    text = path.read_text()
    words = " ".join(" ".join(Page(text).texts).split())
    assert "All queries: 18 queries, 18 candidates" in words
    assert "second set: 9 queries, 9 candidates" in words and "median rank" in words
    found = scores.read_scores(tmp_path)
    low, high = found["after"]["retrieval"]["intervals"]["MRR"]
    assert f"{low:.1f} to {high:.1f}" in words and "R@1, retrieval from 18 candidates" in words
    change = found["after"]["retrieval"]["R@1"] - found["before"]["retrieval"]["R@1"]
    assert change > 0 and f'<span class="up">{change:+.1f}</span>' in text
    assert "before training: place" in words and "&lt;script&gt;" in text
    assert text.count('class="candidate gold"') >= 6 and text.count("<b>bold") == 0
    assert text.count("<img src=") > 6 and "hit@1" not in words

    # A mistake in retrieval shows all relevant targets as gold
    (tmp_path := tmp_path / "next").mkdir()
    rows = [{"qry": "q", "pos_text": text} for text in ("a", "b")]
    rows += [{"qry": "other", "pos_text": text} for text in "cdefg"]
    vectors = {"q": [1, 0], "a": [4, 3], "b": [0, 1], "other": [1, 0]}
    vectors |= dict.fromkeys("cdefg", [1, 0])

    def encode(items):
        return np.array([vectors[item.text] for item in items], np.float32)

    result = tasks.run(retrieval.Task(Pairs("own", rows, tmp_path)), image_bytes, encode)
    (section,), left_out = gallery.gallery({}, {}, {}, image_bytes, {"after": {"own": result}})
    assert (section["failures"], section["rows"], left_out) == (1, 2, 0)
    mistake, hit = section["examples"]
    assert mistake["query"]["text"] == "q" and (mistake["rank"], mistake["candidates"]) == (6, 7)
    golds = [(card["place"], card["text"]) for card in mistake["cards"] if card["gold"]]
    assert golds == [(6, "a")] and len(mistake["cards"]) == 6
    assert [card["gold"] for card in hit["cards"]] == [True] * 5 and hit["rank"] == 1
