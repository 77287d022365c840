"""Clustering from a prepared set to a score: scikit-learn's V-measure, as mteb asks for it."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import v_measure_score

from tests.tables import for_each
from unime_jax.evaluation import score_table, scores, tasks
from unime_jax.evaluation.benchmarks import prepared_set
from unime_jax.evaluation.benchmarks.prepared_set import TaskSettings
from unime_jax.evaluation.benchmarks.sets import open_benchmarks
from unime_jax.evaluation.report import page as report
from unime_jax.evaluation.stored import results
from unime_jax.evaluation.suite import Suite, summary
from unime_jax.evaluation.tasks import clustering

SETTINGS = TaskSettings("<|image_1|>\nIn one word:", "{caption} In one word:", "", 0)


def rows_of(labels, each):
    """A third texts, a third images and a third both; the first item comes twice."""
    rows = []
    for number in range(labels * each):
        sides = {"text": f"text {number}"}, {"image": "a.png"}, {"text": "see", "image": "a.png"}
        label = number % labels
        rows.append(sides[number % 3] | {"label": label if number % 2 else str(label)})
    return [*rows, rows[0]]


def write_set(folder, rows):
    (folder / "images").mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    (folder / "images" / "a.png").write_bytes(buffer.getvalue())
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {"kind": "clustering", "rows": "rows.jsonl", "images": "images", "source": "here"}
    record |= {"name": folder.name, "revision": "1", "counts": {"rows": len(rows)}}
    (folder / "set.json").write_text(json.dumps(record))


def test_a_prepared_set_is_scored_as_scikit_learn_does(tmp_path):
    rows = rows_of(4, 30)
    write_set(tmp_path / "shapes", rows)
    opened = open_benchmarks(tmp_path, (), SETTINGS)
    (task,) = opened.tasks
    assert (task.kind, task.name, dict(opened.not_run)) == ("clustering", "shapes", {})

    noise = np.random.default_rng(0)
    asked = {}

    def encode(items):
        texts = [item.text for item in items]
        assert len(texts) == len(set(texts)), "an item once"
        vectors = noise.normal(size=(len(items), 8)).astype(np.float32)
        for text, vector in zip(texts, vectors, strict=True):
            if text.startswith("text"):
                vector[int(text.split()[1]) % 4] += 4
        asked.update(zip(texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))
        return vectors

    result = tasks.run(task, prepared_set.images_of(opened.sets), encode)
    prompts = {"text 0 In one word:", SETTINGS.image_prompt, "see"}
    assert prompts <= set(asked) and len(asked) == 40 + 2
    texts = [
        f"{row['text']} In one word:"
        if "image" not in row
        else row.get("text", SETTINGS.image_prompt)
        for row in rows
    ]
    unit = np.stack([asked[text] for text in texts])
    means = MiniBatchKMeans(4, batch_size=500, n_init="auto", random_state=42).fit(unit)
    expected = 100 * v_measure_score([int(row["label"]) for row in rows], means.labels_)
    assert result.v_measure == pytest.approx(expected) and 10 < expected < 90
    assert (result.rows, result.labels) == (121, 4)

    # Stored, in the table, in evaluation.json and on the page
    results.save_result(tmp_path / "result.npz", result)
    assert results.load_result(tmp_path / "result.npz") == result
    suite = Suite(opened.tasks, {}, tmp_path, opened.sets, opened.not_run)
    found = summary(suite, {("clustering", "shapes"): {"": result}}, None)
    assert found["clustering"] == {"shapes": result.v_measure}
    assert f"v-measure %     shapes\nscore{expected:>17.1f}" in score_table.table(
        None, found, "score"
    )
    scores.write_scores(tmp_path, "scores", found)
    assert scores.read_scores(tmp_path) == {"scores": found}
    page = report.write_report(
        tmp_path, table={}, before=None, after={}, images=suite.images()
    ).read_text()
    assert 'href="#clustering"' in page and f"{expected:.1f}" in page

    # Vectors of a label are one cluster.
    own = {text: int(row["label"]) for text, row in zip(texts[::3], rows[::3])}
    right = clustering.Task("right", [r for r in rows if "image" not in r], "", "{caption}!")

    def one_hot(items):
        return np.eye(4, dtype=np.float32)[
            [own[f"{item.text[:-1]} In one word:"] for item in items]
        ]

    assert tasks.run(right, {}.__getitem__, one_hot).v_measure == pytest.approx(100)


@for_each(
    ("rows", "message"),
    [
        (
            [{"text": "a", "label": 1}, {"label": 2}],
            "clustering 'x', row 1: neither text nor image",
        ),
        ([{"text": "a"}], "row 0: the label is None; it must be a text or a whole number"),
        ([{"text": "a", "label": [1]}], r"row 0: the label is \[1\]"),
        ([{"text": "a", "label": 1}] * 2, "2 rows have 1 labels, and clusters need at least two"),
        ([], "0 rows have 0 labels"),
    ],
)
def test_rows_that_cannot_be_clustered_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        clustering.Task("x", rows, "").open({}.__getitem__)
