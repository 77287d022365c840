"""The report of a run: one HTML file with scores, curves, similarities and ranked examples.

It reads config.json, metrics.jsonl, evaluation.json and outcome.json in the workdir and takes the
rankings of `results`, so it can be rebuilt at any time. The page needs no network and no script.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np

from unime_jax import files
from unime_jax.data.strange_texts import shown
from unime_jax.evaluation import figures, gallery, report_scores
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.item_table import Images
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.report_training import (
    Records,
    by_source,
    counts,
    loss_tile,
    read_metrics,
)
from unime_jax.training import outcome

# metrics.jsonl key -> title; panels that no line has a value for are left out.
CURVES = {
    ("loss",): "Loss",
    ("positive_similarity", "hard_negative_similarity", "easy_negative_similarity"): "Cosine",
    ("batch_accuracy",): "Batch accuracy",
    ("negatives_per_query",): "Negatives per query",
    ("masked_share",): "Masked share",
    ("nearest_agreement",): "Same nearest text as the teacher, share",
    ("student_entropy",): "Entropy of the student's similarities, nats",
    ("mean_cosine",): "Mean cosine of two inputs",
    ("gradient_norm",): "Gradient norm",
    ("learning_rate",): "Learning rate",
    ("pairs_per_second",): "Pairs per second",
}
FILE = "report.html"


def write_report(
    workdir: files.Path,
    *,
    table: scores_lib.Table,
    before: Mapping[str, DatasetResult] | None,
    after: Mapping[str, DatasetResult] | None,
    images: Images,
    title: str = "Run report",
    facts: Mapping[str, str] | None = None,
    composition_rows: Mapping[str, int] | None = None,
) -> files.Path:
    """Writes <workdir>/report.html and returns its path.

    Args:
      workdir: folder of the run; any of its files may be absent.
      table: dataset -> (meta task, split).
      before, after: rankings by dataset before and after training; either may be None. Those of an
        evaluation apart from training are `after`.
      images: encoded bytes of an image path, for the thumbnails.
      title: headline, a few words.
      facts: backbone, hardware and the like by name, shown under the headline.
      composition_rows: how many a subset of composition has; those not named have no interval.
    """
    scores = scores_lib.read_scores(workdir)
    records = read_metrics(workdir / "metrics.jsonl")
    config = _read_json(workdir / "config.json")
    ended = outcome.read(workdir)
    before, after = before or {}, after or {}
    start = report_scores.start_note(config)
    infonce = int(config.get("infonce_steps") or 0)
    trained = "scores" not in scores
    if not trained:
        scores = {"after": scores["scores"]}
    sides = {f"Before training{start}": before, "After training" if trained else "Scores": after}
    with matplotlib.rc_context(figures.STYLE):
        panels = [figures.curve(records, keys, name, infonce) for keys, name in CURVES.items()]
        histograms = figures.histograms(sides)
    examples, left_out = gallery.gallery(table, before, after, images)
    benchmark = report_scores.benchmark(config, table)
    rows = report_scores.row_count(after or before)
    tiles = [
        *report_scores.score_tiles(scores, benchmark=benchmark, rows=rows, start=start),
        *_training_tiles(records, loss_tile(ended, records)),
    ]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            facts=dict(facts or {}),
            start=start,
            trained=trained,
            outcome=ended,
            benchmark=benchmark,
            tiles=tiles,
            columns=scores_lib.COLUMNS,
            intervals=report_scores.column_intervals(table, after or before),
            fell=report_scores.fallen(scores, table, after),
            before=scores.get("before"),
            after=scores.get("after"),
            groups=report_scores.dataset_bars(scores, table, after or before),
            composition=report_scores.composition_bars(scores, composition_rows or {}),
            distilled=any(report_scores.sides(scores, "distillation")),
            curves=[panel for panel in panels if panel],
            dropped=len(figures.dropped_steps(records)),
            histograms=histograms,
            heat=figures.heat(table, sides),
            counts=counts(records),
            by_source=by_source(records, infonce),
            gallery=examples,
            left_out=left_out,
            config=list(_flatten(config)),
        )
    )
    path = workdir / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, page)
    return path


def _training_tiles(records: Records, loss: dict[str, str]) -> Iterator[dict[str, str]]:
    """Loss, steps and speed of the training, as far as it was logged."""
    if loss:
        yield loss
    if records:
        yield {"name": "Steps", "value": f"{records[-1]['step']:,}", "before": ""}
    for key, name in (
        ("negatives_per_query", "Negatives per query, median"),
        ("pairs_per_second", "Pairs per second, median"),
    ):
        values = figures.series(records, key)
        if np.isfinite(values).any():
            yield {"name": name, "value": f"{np.nanmedian(values):,.0f}", "before": ""}


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_as_text,
    )


def _as_text(value: Any) -> Any:
    """Text of a template without hidden characters and without those that turn the page around."""
    return shown(value) if type(value) is str else value


def _read_json(path: files.Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else {}


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, value if isinstance(value, str) else json.dumps(value)
