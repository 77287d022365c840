"""What a reader of the report must not take for something else."""

import json
import re

import pytest

from tests.evaluation.tiny_report import (
    EVIL,
    TABLE,
    change,
    words_of,
    write,
    write_run,
)
from tests.tables import for_each
from unime_jax.evaluation import scores
from unime_jax.evaluation.report import intervals
from unime_jax.evaluation.report import scores as report_scores

pytestmark = pytest.mark.usefixtures("one_curve")


def test_own_sets_have_their_name_and_mmebs_have_mmebs(tmp_path, results):
    write_run(tmp_path, results)
    change(tmp_path, "config.json", evaluation={"mmeb": "my_data/eval"})
    _, page = write(tmp_path, *results)
    words = words_of(page)
    assert "Scores on my_data/eval" in words and "MMEB" not in words
    assert "hit@1, mean of 4 datasets, 80 rows (my_data/eval)" in words
    sides = scores.read_scores(tmp_path)
    for side in sides.values():
        side |= {"missing": ["N24News", "GQA"], "instructions": "data", "meta_mean": 12.34}
    change(tmp_path, "evaluation.json", **sides)
    words = words_of(write(tmp_path, *results)[1])
    assert "hit@1, mean of 4 of 6 datasets, 80 rows" in words and "instructions: data." in words
    assert "All: mean of 4 of 6; without N24News, GQA." in words and "meta_mean: 12.3" in words
    table = {"N24News": ("CLS", "IND"), "GQA": ("VQA", "OOD")}
    assert report_scores.benchmark({}, table) == "part of MMEB"
    assert report_scores.benchmark({}, scores.MMEB_V1) == "MMEB"
    assert report_scores.benchmark({}, TABLE) == "own datasets"


@for_each(
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


def test_every_score_has_an_interval_and_galleries_are_closed(tmp_path, results):
    # Every dataset and average has an interval.
    write_run(tmp_path, results)
    text, page = write(tmp_path, *results)
    words = words_of(page)
    for name, result in results[1].items():
        low, high = intervals.wilson(int((result.rank == 0).sum()), 20)
        assert f"{low:.0f} to {high:.0f} of 20 rows" in words, name
    _, page = write(tmp_path, *results, composition_rows={"swap": 80})
    assert "50 to 71 of 80 rows" in words_of(page)  # 49 of 80
    assert words.count("±") == len(scores.COLUMNS)

    # A benchmark set has its own chance, and no part in the mean of subsets.
    sides = scores.read_scores(tmp_path)
    for when, side in sides.items():
        side["composition"] |= {"winoground/text": 30.0, "winoground/group": 10.0}
        scores.write_scores(tmp_path, when, side)
    text, page = write(
        tmp_path,
        *results,
        composition_rows={"winoground/text": 400},
        composition_sets={"winoground/text": 25.0, "winoground/group": 100 / 6},
    )
    words = words_of(page)
    assert "<h3>winoground</h3>" in text and 'title="chance: 16.7 %"' in text
    assert "26 to 35 of 400 rows" in words
    assert "Caption chosen, mean of 2 composition subsets" in words
    assert "both true captions lie strictly closer" in words

    # Galleries are closed, behind a table of contents.
    text, page = write(tmp_path, *results)
    assert not re.search(r"<details[^>]* open", text)
    targets = set(re.findall(r'<a href="#([a-z0-9-]+)"', text))
    assert {"scores", "training", "examples", "examples-4", "configuration"} <= targets
    for target in targets:
        assert text.count(f'id="{target}"') == 1, target


def test_losses_and_counts_are_of_objectives_and_sources(tmp_path, results):
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

    # Counts and losses by source are summed up
    (tmp_path := tmp_path / "next").mkdir()
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


@for_each("verdict", ["learnt_nothing", "doubtful"])
def test_what_the_run_found_stands_first(tmp_path, results, verdict):
    write_run(tmp_path, results)
    finding = {"name": "collapsed", "message": f"the model {EVIL}"}
    change(tmp_path, "outcome.json", steps=12, verdict=verdict, findings=[finding])
    text, page = write(tmp_path, *results)
    assert ("This run learnt nothing." in words_of(page)) == (verdict == "learnt_nothing")
    assert text.index("The model &lt;script&gt;") < text.index('class="tiles"')
    assert "script" not in page.tags
