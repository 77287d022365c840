"""The report of a run: one HTML file with scores, curves, similarities and ranked examples.

It reads what lies in the workdir (config.json, metrics.jsonl, evaluation.json, outcome.json) and
takes the rankings of mmeb.py, so it can be rebuilt at any time. The page needs no network and no
script.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np

from unime_jax import files
from unime_jax.data.strange_texts import shown
from unime_jax.evaluation import figures, gallery, intervals
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.mmeb import DatasetResult, Images
from unime_jax.training import metrics, outcome, tally

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
SIDES = ("before", "after")
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
      before, after: `mmeb.evaluate` before and after training; either may be None.
      images: encoded bytes of an image path, for the thumbnails.
      title: headline, a few words.
      facts: what a reader should know first (backbone, loss, hardware), shown under the headline.
      composition_rows: how many a subset of composition has; those not named have no interval.
    """
    scores = scores_lib.read_scores(workdir)
    records = read_metrics(workdir / "metrics.jsonl")
    config = _read_json(workdir / "config.json")
    before, after = before or {}, after or {}
    start = _start(config)
    infonce = int(config.get("infonce_steps") or 0)
    with matplotlib.rc_context(figures.STYLE):
        panels = [figures.curve(records, keys, name, infonce) for keys, name in CURVES.items()]
        histograms = figures.histograms(before, after, start)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_as_text,
    )
    examples, left_out = gallery.gallery(table, before, after, images)
    page = environment.get_template("report.html.j2").render(
        title=title,
        facts=dict(facts or {}),
        start=start,
        outcome=outcome.read(workdir),
        benchmark=_benchmark(config, table),
        tiles=list(
            _tiles(
                scores,
                records,
                benchmark=_benchmark(config, table),
                rows=_rows(after or before),
                start=start,
                loss=_loss(outcome.read(workdir), records),
            )
        ),
        columns=scores_lib.COLUMNS,
        intervals=_column_intervals(table, after or before),
        fell=_fell(scores, table, after),
        before=scores.get("before"),
        after=scores.get("after"),
        groups=_bars(scores, table, after or before),
        composition=_composition(scores, composition_rows or {}),
        distilled=any(_sides(scores, "distillation")),
        curves=[panel for panel in panels if panel],
        dropped=len(figures.dropped_steps(records)),
        histograms=histograms,
        heat=figures.heat(table, before, after, start),
        counts=_counts(records),
        by_source=_by_source(records, infonce),
        gallery=examples,
        left_out=left_out,
        config=list(_flatten(config)),
    )
    path = workdir / FILE
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, page)
    return path


def _as_text(value: Any) -> Any:
    """What a template writes: of plain text, nothing that is hidden or turns the page around."""
    return shown(value) if type(value) is str else value


def read_metrics(path: files.Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl in order of steps; a step logged again after a resume counts once.

    A last line that was cut off when the process died is left out.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    records = {}
    for number, line in enumerate(lines, 1):
        step = metrics.step_of(line)
        if step is not None:
            records[step] = json.loads(line)
        elif number < len(lines):
            raise ValueError(f"{path}, line {number} is not a step's metrics: {line[:100]!r}")
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
    scores: Mapping[str, scores_lib.Scores],
    records: Sequence[Mapping[str, Any]],
    *,
    benchmark: str,
    rows: int,
    start: str,
    loss: dict[str, str],
) -> Iterator[dict[str, str]]:
    """Headline numbers: name, value and, where there are two, the value before."""
    datasets = max(len(side) for side in _sides(scores, "datasets"))
    subsets = _sides(scores, "composition")
    on = f", {rows:,} rows" if rows else ""
    pairs = {
        f"hit@1, mean of {datasets} datasets{on} ({benchmark})": [
            (scores.get(s) or {}).get("All") for s in SIDES
        ],
        f"Caption chosen, mean of {max(map(len, subsets))} composition subsets": [
            sum(side.values()) / len(side) if side else None for side in subsets
        ],
    }
    for name, (first, last) in pairs.items():
        yield from _tile(name, first, last, "{:.1f} %", start)
    held_out = _sides(scores, "distillation")
    for name, key, form in (
        ("Held-out KL to the teacher, nats", "kl", "{:.3f}"),
        ("Top-10 neighbours as the teacher's", "overlap", "{:.1f} %"),
    ):
        first, last = (side.get(key) for side in held_out)
        yield from _tile(name, first, last, form, start)
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


def _tile(
    name: str, first: float | None, last: float | None, form: str, start: str
) -> Iterator[dict[str, str]]:
    shown = [form.format(v) for v in (first, last) if v is not None]
    if shown:
        before = f"from {shown[0]}{start}" if shown[1:] else ""
        yield {"name": name, "value": shown[-1], "before": before}


def _loss(found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The loss at the end and at the start of one objective; of several, the last."""
    start, end = found.get("start"), found.get("end")
    if start and end:
        return {
            "name": f"Loss, mean of steps {end['first_step']} to {end['last_step']}",
            "value": f"{end['loss']:.3f}",
            "before": f"from {start['loss']:.3f} in steps {start['first_step']} to "
            f"{start['last_step']}, the same objective",
        }
    loss = figures.series(records, "loss")
    loss = loss[np.isfinite(loss)]
    return (
        {"name": "Loss of the last step", "value": f"{loss[-1]:.3f}", "before": ""}
        if len(loss)
        else {}
    )


def _start(config: Mapping[str, Any]) -> str:
    """What "before" is of, where a reader might take it for a trained model."""
    random = config.get("init") == "random" and not config.get("init_from")
    return " (random weights)" if random else ""


def _benchmark(config: Mapping[str, Any], table: scores_lib.Table) -> str:
    """MMEB if every dataset is one of its own; else what the config calls the sets."""
    if table and all(scores_lib.MMEB_V1.get(name) == group for name, group in table.items()):
        return "MMEB" if len(table) == len(scores_lib.MMEB_V1) else "part of MMEB"
    return str((config.get("evaluation") or {}).get("mmeb") or "own datasets")


def _rows(results: Mapping[str, DatasetResult]) -> int:
    return sum(len(result.ids) for result in results.values())


def _hits(result: DatasetResult) -> tuple[int, int]:
    return int(np.sum(result.rank == 0)), len(result.ids)


def _column_intervals(
    table: scores_lib.Table, results: Mapping[str, DatasetResult]
) -> dict[str, float | None]:
    """By column of the scores, half its 95 % interval."""
    counts = {name: _hits(results[name]) for name in table if name in results}
    return {
        column: intervals.of_mean(
            [count for name, count in counts.items() if column == "All" or column in table[name]]
        )
        for column in scores_lib.COLUMNS
    }


def _fell(
    scores: Mapping[str, scores_lib.Scores],
    table: scores_lib.Table,
    after: Mapping[str, DatasetResult],
) -> list[dict[str, Any]]:
    """Datasets with a lower score than before, and whether that is more than rows explain."""
    first, last = _sides(scores, "datasets")
    fell = []
    for name, (_, split) in table.items():
        if name in first and name in last and last[name] < first[name]:
            high = intervals.wilson(*_hits(after[name]))[1] if name in after else 100.0
            change = {"name": name, "split": split, "before": first[name], "after": last[name]}
            fell.append(change | {"certain": first[name] > high})
    return fell


def _counts(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Totals of what was counted in the batches, where it was."""
    return [
        {
            "name": name.replace("_", " "),
            "meaning": meaning,
            "total": int(np.nansum(figures.series(records, name))),
        }
        for name, meaning in tally.COUNTS.items()
        if any(name in record for record in records)
    ]


def _by_source(records: Sequence[Mapping[str, Any]], infonce: int) -> list[dict[str, Any]]:
    """The mean loss of every source at the start and the end of the last objective."""
    own = [record for record in records if record["step"] > infonce] or records
    names = sorted({key for record in own for key in record if key.startswith(tally.BY_SOURCE)})
    found = []
    for name in names:
        values = figures.series(own, name)
        values = values[np.isfinite(values)]
        if size := max(1, min(outcome.WINDOW, len(values) // 4)) if len(values) else 0:
            row = {"start": float(values[:size].mean()), "end": float(values[-size:].mean())}
            found.append({"name": name.removeprefix(tally.BY_SOURCE)} | row)
    return sorted(found, key=lambda row: -row["end"])


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
                    "interval": intervals.wilson(*_hits(result)) if result else None,
                    "rows": len(result.ids) if result else None,
                }
            )
        if bars:
            groups.append((meta, bars))
    return groups


def _composition(
    scores: Mapping[str, scores_lib.Scores], rows: Mapping[str, int]
) -> list[dict[str, Any]]:
    first, last = _sides(scores, "composition")
    bars: list[dict[str, Any]] = []
    for name in dict.fromkeys([*first, *last]):
        percent, count = last.get(name, first.get(name, 0.0)), rows.get(name)
        interval = intervals.wilson(round(percent * count / 100), count) if count else None
        bar = {"name": name, "before": first.get(name), "after": last.get(name)}
        bars.append(
            bar | {"split": "", "chance": 50, "tied": 0, "interval": interval, "rows": count}
        )
    return bars


def _sides(scores: Mapping[str, scores_lib.Scores], key: str) -> list[dict[str, float]]:
    """The group `key` of the scores before and after, {} where there is none."""
    return [(scores.get(side) or {}).get(key) or {} for side in SIDES]
