import base64
import html.parser
import io
import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from unime_jax.evaluation import gallery, intervals, report, report_scores, scores, tasks
from unime_jax.evaluation.tasks import mmeb
from unime_jax.training import curves

TABLE = {
    "digits": ("CLS", "IND"),
    "colours": ("VQA", "OOD"),
    "scenes": ("RET", "IND"),
    "regions": ("VG", "OOD"),
}
EVIL = '<script>alert("1")</script> & <b>bold</b>'


def image_bytes(path):
    rng = np.random.default_rng(len(path) + sum(map(ord, path)))
    size = (300, 200) if "wide" in path else (40, 40)
    buffer = io.BytesIO()
    pixels = rng.integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def evaluation(signal, rows=20):
    """Random embeddings in which the gold shares `signal` with its query."""

    def encode(items):
        vectors = []
        for item in items:
            # q3 and t3 of a dataset belong together.
            own, shared = (
                np.random.default_rng([ord(c) for c in name]).normal(size=16)
                for name in (item.text + item.image_path, re.sub("[qt]", "", item.image_path))
            )
            vectors.append(own + signal * shared)
        return np.array(vectors, np.float32)

    data = {}
    for name in TABLE:
        text_only = name == "digits"
        data[name] = [
            {
                "id": f"{name}-{i}",
                "qry_text": f"<|image_1|>\n{EVIL} {i}",
                "qry_img_path": f"{name}/q{i}.png",
                "tgt_text": [f"{EVIL} {(i + k) % rows}" for k in range(8)],
                "tgt_img_path": [
                    "" if text_only else f"{name}/t{(i + k) % rows}.png" for k in range(8)
                ],
            }
            for i in range(rows)
        ]
    return {
        name: tasks.run(mmeb.Task(name, rows), image_bytes, encode) for name, rows in data.items()
    }


@pytest.fixture(scope="module")
def results():
    return evaluation(0.0), evaluation(1.0)


def write_run(workdir, results, composition=True):
    for when, side in zip(("before", "after"), results, strict=True):
        percent = {name: result.hit_at_1 for name, result in side.items()}
        subsets = {"replace": 52.5, "swap": 61.25} if composition else None
        scores.write_scores(workdir, when, scores.summary(percent, TABLE, subsets))
    lines = [
        {
            "step": s,
            "loss": None if s == 7 else 5 / s,
            "gradient_norm": float("inf") if s == 7 else 1.0,
            "learning_rate": 1e-3,
            "positive_similarity": 0.5,
            "hard_negative_similarity": 0.4,
            "easy_negative_similarity": -0.1,
            "masked_share": 0.0,
            "negatives_per_query": 31,
            "pairs_per_second": 12.5,
            "skipped_steps": int(s >= 7) + int(s >= 9),
        }
        for s in range(1, 13)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text + '{"step": 13, "lo')
    config = {"loss": {"temperature": 0.02, "note": EVIL}, "seed": 3, "sources": ["a", "b"]}
    (workdir / "config.json").write_text(json.dumps(config))


class Page(html.parser.HTMLParser):
    """Tags, texts and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "action", "data")
        self.addresses += [value for name, value in attributes if name in names]

    def handle_data(self, data):
        self.texts.append(data)


def write(workdir, before, after, **more):
    path = report.write_report(
        workdir,
        table=TABLE,
        before=before,
        after=after,
        images=image_bytes,
        training=curves.section(workdir),
        **more,
    )
    assert path == workdir / "report.html"
    text = path.read_text()
    return text, Page(text)


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
    assert page.tags.count("svg") == 7 + 2  # curves without batch_accuracy, two histograms
    assert "2 logged steps dropped" in words
    assert "Before training" in words and "After training" in words


def test_an_evaluation_apart_from_training_speaks_of_one_model(tmp_path, results):
    percent = {name: result.hit_at_1 for name, result in results[1].items()}
    scores.write_scores(tmp_path, "scores", scores.summary(percent, TABLE, {"swap": 61.25}))
    text, page = write(tmp_path, None, results[1])
    words = " ".join(page.texts)
    assert "Score" in words and f"{scores.read_scores(tmp_path)['scores']['All']:.1f}" in words
    assert not re.search("before training|after training|Before|After", words)


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
    assert "\x1b" not in scores.table(None, side) and shown in scores.table(None, side)


def test_images_are_small_and_readable(tmp_path, results):
    text, page = write(tmp_path, None, results[1])
    sources = [a for a in page.addresses if a.startswith("data:")]
    assert len(sources) > 20
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            image.load()
            assert max(image.size) <= gallery.THUMBNAIL
    assert gallery.thumbnail(image_bytes("wide")).startswith("data:image/jpeg")


def test_report_without_composition_or_before(tmp_path, results):
    write_run(tmp_path, results, composition=False)
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"after": json.loads(path.read_text())["after"]}))
    text, page = write(tmp_path, None, results[1])
    assert "Before training" not in text
    assert "closer to their caption" not in text


def test_a_composition_key_may_be_missing(tmp_path, results):
    write_run(tmp_path, results)
    path = tmp_path / "evaluation.json"
    sides = json.loads(path.read_text())
    del sides["before"]["composition"], sides["after"]["composition"]
    path.write_text(json.dumps(sides))
    text, _ = write(tmp_path, *results)
    assert "closer to their caption" not in text


def test_report_of_an_empty_workdir(tmp_path):
    text, page = write(tmp_path / "new", None, None)
    assert "What the numbers mean" in text
    assert "svg" not in page.tags


def test_no_failures(tmp_path):
    perfect = evaluation(50.0)
    perfect = {name: perfect[name] for name in ("scenes", "regions")}
    assert all(result.hit_at_1 == 100 for result in perfect.values())
    text, _ = write(tmp_path, None, perfect)
    assert "no mistake in 20 rows" in text
    assert "✗" not in text


def test_examples_show_failures_first_and_always_the_gold(tmp_path, results):
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


def test_budget_leaves_out_later_examples(tmp_path, results, monkeypatch):
    monkeypatch.setattr(gallery, "IMAGE_BUDGET", 10_000)
    text, _ = write(tmp_path, *results)
    assert "more examples left out" in text


def test_the_same_inputs_give_the_same_file(tmp_path, results):
    write_run(tmp_path, results)
    assert write(tmp_path, *results)[0] == write(tmp_path, *results)[0]


# What a reader must not take for something else


def change(workdir, name, **changes):
    path = workdir / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def words_of(page):
    return " ".join(" ".join(page.texts).split())


def test_own_sets_have_their_name_and_mmebs_have_mmebs(tmp_path, results):
    write_run(tmp_path, results)
    change(tmp_path, "config.json", evaluation={"mmeb": "my_data/eval"})
    _, page = write(tmp_path, *results)
    words = words_of(page)
    assert "Scores on my_data/eval" in words and "MMEB" not in words
    assert "hit@1, mean of 4 datasets, 80 rows (my_data/eval)" in words
    table = {"N24News": ("CLS", "IND"), "GQA": ("VQA", "OOD")}
    assert report_scores.benchmark({}, table) == "part of MMEB"
    assert report_scores.benchmark({}, scores.MMEB_V1) == "MMEB"
    assert report_scores.benchmark({}, TABLE) == "own datasets"


@pytest.mark.parametrize(
    ("settings", "random"),
    [
        ({"init": "random"}, True),
        ({"init": "pretrained"}, False),
        ({"init": "random", "init_from": "runs/stage1"}, False),
    ],
)
def test_a_random_start_is_called_so(tmp_path, results, settings, random):
    write_run(tmp_path, results)
    change(tmp_path, "config.json", **settings)
    text, _ = write(tmp_path, *results)
    assert ("Before (random weights)" in text) == random
    assert ("Before training (random weights)" in text) == random


def test_a_dataset_that_fell_is_shown_as_a_fall(tmp_path, results):
    """The trained model's results as those before."""
    write_run(tmp_path, results[::-1])
    text, page = write(tmp_path, *results[::-1])
    fell = [name for name in TABLE if results[0][name].hit_at_1 < results[1][name].hit_at_1]
    words = words_of(page)
    assert f"{len(fell)} of 4 datasets fell:" in words and len(fell) > 1
    assert "colours (OOD) from" in words
    assert text.count('class="after fell"') == len(fell) and text.count("▼") == len(fell)
    write_run(tmp_path, results)
    text, page = write(tmp_path, *results)
    assert "datasets fell" not in words_of(page) and "▼" not in text


def test_every_dataset_and_average_has_an_interval(tmp_path, results):
    write_run(tmp_path, results)
    text, page = write(tmp_path, *results)
    words = words_of(page)
    for name, result in results[1].items():
        low, high = intervals.wilson(int((result.rank == 0).sum()), 20)
        assert f"{low:.0f} to {high:.0f} of 20 rows" in words, name
    _, page = write(tmp_path, *results, composition_rows={"swap": 80})
    assert "50 to 71 of 80 rows" in words_of(page)  # 49 of 80
    assert words.count("±") == len(scores.COLUMNS)


def test_losses_of_two_objectives_are_marked_and_not_compared(tmp_path, results):
    write_run(tmp_path, results)
    text, _ = write(tmp_path, *results)
    assert "InfoNCE until here" not in text
    change(tmp_path, "config.json", infonce_steps=5)
    window = {"chance_loss": 2.2, "mean_cosine": 0.3}
    change(
        tmp_path,
        "outcome.json",
        steps=12,
        verdict="learnt",
        findings=[],
        start={"first_step": 6, "last_step": 8, "loss": 1.25} | window,
        end={"first_step": 10, "last_step": 12, "loss": 0.75} | window,
    )
    text, page = write(tmp_path, *results)
    words = words_of(page)
    assert "InfoNCE until here" in text
    assert "Loss, mean of steps 10 to 12 0.750 from 1.250 in steps 6 to 8, the same obj" in words


@pytest.mark.parametrize("verdict", ["learnt_nothing", "doubtful"])
def test_what_the_run_found_stands_first(tmp_path, results, verdict):
    write_run(tmp_path, results)
    finding = {"name": "collapsed", "message": f"the model {EVIL}"}
    change(tmp_path, "outcome.json", steps=12, verdict=verdict, findings=[finding])
    text, page = write(tmp_path, *results)
    assert ("This run learnt nothing." in words_of(page)) == (verdict == "learnt_nothing")
    assert text.index("The model &lt;script&gt;") < text.index('class="tiles"')
    assert "script" not in page.tags


def test_counts_and_losses_by_source_are_summed_up(tmp_path, results):
    write_run(tmp_path, results)
    lines = [
        {"step": s, "loss": 1.0, "truncated_rows": 700, "source_loss/digits": 10 - s}
        for s in range(1, 9)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    change(tmp_path, "config.json", infonce_steps=4)
    words = words_of(write(tmp_path, *results)[1])
    assert "5,600 truncated rows rows whose text was cut" in words
    assert "digits 5.000 2.000" in words  # the first and the last of steps 5 to 8


def test_galleries_are_closed_behind_a_table_of_contents(tmp_path, results):
    write_run(tmp_path, results)
    text, page = write(tmp_path, *results)
    assert not re.search(r"<details[^>]* open", text)
    targets = set(re.findall(r'<a href="#([a-z0-9-]+)"', text))
    assert {"scores", "training", "examples", "examples-4", "configuration"} <= targets
    for target in targets:
        assert text.count(f'id="{target}"') == 1, target
