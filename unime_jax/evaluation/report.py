"""The report of a run: one HTML file with scores, curves, similarities and ranked examples.

It reads what lies in the workdir (config.json, metrics.jsonl, evaluation.json) and takes the
rankings of mmeb.py, so it can be rebuilt at any time. The page needs no network and no script.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np

from unime_jax.evaluation import figures, gallery
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.mmeb import DatasetResult, Images

# metrics.jsonl key -> title; panels that no line has a value for are left out.
CURVES = {
    ("loss",): "Loss",
    ("positive_similarity", "hard_negative_similarity", "easy_negative_similarity"): "Cosine",
    ("batch_accuracy",): "Batch accuracy",
    ("negatives_per_query",): "Negatives per query",
    ("masked_share",): "Masked share",
    ("nearest_agreement",): "Same nearest text as the teacher, share",
    ("student_entropy",): "Entropy of the student's similarities, nats",
    ("gradient_norm",): "Gradient norm",
    ("learning_rate",): "Learning rate",
    ("pairs_per_second",): "Pairs per second",
}
SIDES = ("before", "after")
FILE = "report.html"


def write_report(
    workdir: str | os.PathLike[str],
    *,
    table: scores_lib.Table,
    before: Mapping[str, DatasetResult] | None,
    after: Mapping[str, DatasetResult] | None,
    images: Images,
    title: str = "Run report",
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Writes <workdir>/report.html and returns its path.

    Args:
      workdir: folder of the run; any of its three files may be absent.
      table: dataset -> (meta task, split).
      before, after: `mmeb.evaluate` before and after training; either may be None.
      images: encoded bytes of an image path, for the thumbnails.
      title: headline, a few words.
      facts: what a reader should know first (backbone, loss, hardware), shown under the headline.
    """
    workdir = Path(workdir)
    scores = scores_lib.read_scores(workdir)
    records = read_metrics(workdir / "metrics.jsonl")
    before, after = before or {}, after or {}
    with matplotlib.rc_context(figures.STYLE):
        panels = [figures.curve(records, keys, name) for keys, name in CURVES.items()]
        histograms = figures.histograms(before, after)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    examples, left_out = gallery.gallery(table, before, after, images)
    page = environment.get_template("report.html.j2").render(
        title=title,
        facts=dict(facts or {}),
        tiles=list(_tiles(scores, records)),
        columns=scores_lib.COLUMNS,
        before=scores.get("before"),
        after=scores.get("after"),
        groups=_bars(scores, table, after or before),
        composition=_composition(scores),
        distilled=any(_sides(scores, "distillation")),
        curves=[panel for panel in panels if panel],
        dropped=len(figures.dropped_steps(records)),
        histograms=histograms,
        heat=figures.heat(table, before, after),
        gallery=examples,
        left_out=left_out,
        config=list(_flatten(_read_json(workdir / "config.json"))),
    )
    path = workdir / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl in order of steps; a step logged again after a resume counts once.

    A last line that was cut off when the process died is left out.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    records = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            records[record["step"]] = record
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                message = f"{path}, line {number} is not a step's metrics: {line!r}"
                raise ValueError(message) from error
    return [records[step] for step in sorted(records)]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else {}


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _tiles(
    scores: Mapping[str, scores_lib.Scores], records: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, str]]:
    """Headline numbers: name, value and, where there are two, the value before."""
    pairs = {
        "MMEB hit@1, mean of datasets": [(scores.get(s) or {}).get("All") for s in SIDES],
        "Composition, mean of subsets": [
            sum(side.values()) / len(side) if side else None
            for side in _sides(scores, "composition")
        ],
    }
    for name, (first, last) in pairs.items():
        yield from _tile(name, first, last, "{:.1f} %")
    held_out = _sides(scores, "distillation")
    for name, key, form in (
        ("Held-out KL to the teacher, nats", "kl", "{:.3f}"),
        ("Top-10 neighbours as the teacher's", "overlap", "{:.1f} %"),
    ):
        first, last = (side.get(key) for side in held_out)
        yield from _tile(name, first, last, form)
    loss = figures.series(records, "loss")
    loss = loss[np.isfinite(loss)]
    if len(loss):
        yield {"name": "Loss", "value": f"{loss[-1]:.3f}", "before": f"{loss[0]:.3f}"}
    if records:
        yield {"name": "Steps", "value": f"{records[-1]['step']:,}", "before": ""}
    for key, name in (
        ("negatives_per_query", "Negatives per query, median"),
        ("pairs_per_second", "Pairs per second, median"),
    ):
        values = figures.series(records, key)
        if np.isfinite(values).any():
            yield {"name": name, "value": f"{np.nanmedian(values):,.0f}", "before": ""}


def _tile(
    name: str, first: float | None, last: float | None, form: str
) -> Iterator[dict[str, str]]:
    shown = [form.format(v) for v in (first, last) if v is not None]
    if shown:
        yield {"name": name, "value": shown[-1], "before": shown[0] if shown[1:] else ""}


def _bars(
    scores: Mapping[str, scores_lib.Scores],
    table: scores_lib.Table,
    results: Mapping[str, DatasetResult],
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Per meta task, each dataset's percent before and after, with the level of chance."""
    first, last = _sides(scores, "datasets")
    groups = []
    for meta in scores_lib.METAS:
        bars = []
        for name, (own, split) in table.items():
            if own != meta or (name not in first and name not in last):
                continue
            result = results.get(name)
            bars.append(
                {
                    "name": name,
                    "split": split,
                    "before": first.get(name),
                    "after": last.get(name),
                    "chance": float(np.mean(100 / result.candidates)) if result else None,
                    "tied": int(result.tied.sum()) if result else 0,
                }
            )
        if bars:
            groups.append((meta, bars))
    return groups


def _composition(scores: Mapping[str, scores_lib.Scores]) -> list[dict[str, Any]]:
    first, last = _sides(scores, "composition")
    shared = {"split": "", "chance": 50, "tied": 0}
    return [
        {"name": name, "before": first.get(name), "after": last.get(name)} | shared
        for name in dict.fromkeys([*first, *last])
    ]


def _sides(scores: Mapping[str, scores_lib.Scores], key: str) -> list[dict[str, float]]:
    """The group `key` of the scores before and after, {} where there is none."""
    return [(scores.get(side) or {}).get(key) or {} for side in SIDES]
