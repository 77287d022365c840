"""Training as the report shows it: curves, loss, counts and loss by source, from metrics.jsonl."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unime_jax import files
from unime_jax.evaluation.report import figures
from unime_jax.evaluation.report import page as report
from unime_jax.evaluation.report.figures import BLUE, GREY, VERMILLION
from unime_jax.training import metrics, outcome, tally

Records = Sequence[Mapping[str, Any]]  # lines of metrics.jsonl

# metrics.jsonl key -> title; panels that no line has a value for are left out.
CURVES = {
    ("loss",): "Loss",
    ("positive_similarity", "hard_negative_similarity", "easy_negative_similarity"): "Cosine",
    ("batch_accuracy",): "Batch accuracy",
    ("negatives_per_query",): "Negatives per query",
    ("masked_share",): "Masked share",
    ("duplicate_query_share",): "Share masked as of duplicate queries",
    ("duplicate_target_share",): "Share masked as duplicate targets",
    ("spread_out",): "Squared cosine of two items of a side, summed over sides",
    ("temperature",): "Learned temperature",
    ("nearest_agreement",): "Same nearest text as the teacher, share",
    ("student_entropy",): "Entropy of the student's similarities, nats",
    ("mean_cosine",): "Mean cosine of two inputs",
    ("gradient_norm",): "Gradient norm",
    ("learning_rate",): "Learning rate",
    ("pairs_per_second",): "Pairs per second",
}
POINTS = 240  # of a curve; longer ones are averaged in bins


def section(workdir: files.Path) -> report.TrainingSection:
    """The report's part on a run's training, from those of its files that are there.

    Raises:
      ValueError: a line of metrics.jsonl is damaged.
    """
    records = read_metrics(workdir / "metrics.jsonl")
    ended = outcome.read(workdir)
    infonce = int(report.read_config(workdir).get("infonce_steps") or 0)
    with figures.style():
        panels = [curve(records, keys, name, infonce) for keys, name in CURVES.items()]
    return report.TrainingSection(
        outcome=ended,
        tiles=tuple(_tiles(records, loss_tile(ended, records))),
        curves=tuple(panel for panel in panels if panel),
        dropped=len(dropped_steps(records)),
        counts=counts(records),
        by_source=by_source(records, infonce),
    )


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


def loss_tile(ended: Mapping[str, Any], records: Records) -> dict[str, str]:
    """The loss at the end and at the start of one objective; of several, the last.

    `ended` is the run's outcome.json; {} is no tile.
    """
    start, end = ended.get("start"), ended.get("end")
    if start and end:
        return {
            "name": f"Loss, mean of steps {end['first_step']} to {end['last_step']}",
            "value": f"{end['loss']:.3f}",
            "before": f"from {start['loss']:.3f} in steps {start['first_step']} to "
            f"{start['last_step']}, the same objective",
        }
    loss = series(records, "loss")
    loss = loss[np.isfinite(loss)]
    return (
        {"name": "Loss of the last step", "value": f"{loss[-1]:.3f}", "before": ""}
        if len(loss)
        else {}
    )


def counts(records: Records) -> list[dict[str, Any]]:
    """Totals of the counts in `tally.COUNTS` that any line has."""
    return [
        {
            "name": name.replace("_", " "),
            "meaning": meaning,
            "total": int(np.nansum(series(records, name))),
        }
        for name, meaning in tally.COUNTS.items()
        if any(name in record for record in records)
    ]


def by_source(records: Records, infonce: int) -> list[dict[str, Any]]:
    """The mean loss of every source at the start and the end of the last objective."""
    own = [record for record in records if record["step"] > infonce] or records
    names = sorted({key for record in own for key in record if key.startswith(tally.BY_SOURCE)})
    sources = []
    for name in names:
        values = series(own, name)
        values = values[np.isfinite(values)]
        if size := max(1, min(outcome.WINDOW, len(values) // 4)) if len(values) else 0:
            row = {"start": float(values[:size].mean()), "end": float(values[-size:].mean())}
            sources.append({"name": name.removeprefix(tally.BY_SOURCE)} | row)
    return sorted(sources, key=lambda row: -row["end"])


def _tiles(records: Records, loss: dict[str, str]) -> Iterator[dict[str, str]]:
    """Loss, steps and speed of the training, as far as it was logged."""
    if loss:
        yield loss
    if records:
        yield {"name": "Steps", "value": f"{records[-1]['step']:,}", "before": ""}
    for key, name in (
        ("negatives_per_query", "Negatives per query, median"),
        ("pairs_per_second", "Pairs per second, median"),
    ):
        values = series(records, key)
        if np.isfinite(values).any():
            yield {"name": name, "value": f"{np.nanmedian(values):,.0f}", "before": ""}


def number(value: Any) -> float:
    """A logged value, NaN where it is missing or null."""
    return float(value) if isinstance(value, int | float) else math.nan


def series(records: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    values = np.array([number(record.get(key)) for record in records], np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def dropped_steps(records: Sequence[Mapping[str, Any]]) -> list[int]:
    """Steps whose update was not applied: a non-finite loss, or `skipped_steps` went up."""
    steps, skipped = [], 0
    for record in records:
        lost = "loss" in record and not math.isfinite(number(record["loss"]))
        if lost or (record.get("skipped_steps") or 0) > skipped:
            steps.append(record["step"])
        skipped = max(skipped, record.get("skipped_steps") or 0)
    return steps


def curve(
    records: Sequence[Mapping[str, Any]],
    keys: tuple[str, ...],
    title: str,
    new_objective: int = 0,
) -> dict[str, Any] | None:
    """A panel of logged values by step; None if no line has any.

    The loss has a mark after step `new_objective`, where another objective began (0: none did),
    and crosses at steps that were dropped; `chance_loss` goes with it, dashed.
    """
    values = [series(records, key) for key in keys]
    if not any(np.isfinite(v).any() for v in values):
        return None
    steps = np.array([record["step"] for record in records], np.float64)
    figure, axes = figures.new_figure((3.0, 1.75), (0.15, 0.17, 0.81, 0.72))
    for value, color in zip(values, (BLUE, VERMILLION, GREY), strict=False):
        x, y = binned(steps, value)
        axes.plot(x, y, color=color, marker="o" if len(x) == 1 else "", markersize=3)
    bottom = axes.get_xaxis_transform()
    if keys == ("loss",):
        x, y = binned(steps, series(records, "chance_loss"))
        axes.plot(x, y, color=GREY, linewidth=1, linestyle=(0, (3, 2)))
        if dropped := dropped_steps(records):
            height = [0.03] * len(dropped)
            axes.plot(dropped, height, "x", transform=bottom, color=VERMILLION, mew=1.6)
    if keys == ("loss",) and 0 < new_objective < steps[-1]:
        axes.axvline(new_objective + 0.5, color=VERMILLION, linewidth=1, linestyle=(0, (1, 1)))
        axes.annotate(
            "InfoNCE until here",
            (new_objective + 0.5, 0.97),
            xycoords=bottom,
            xytext=(3, 0),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color=VERMILLION,
        )
    if keys in (("masked_share",), ("batch_accuracy",)):
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.locator_params(nbins=5)
    axes.margins(x=0.02)
    if len(keys) == 1:  # all but cosines are amounts: without the zero, noise looks like news
        low, high = min(0.0, np.nanmin(values[0])), np.nanmax(values[0])
        axes.set_ylim(low, high + 0.1 * (high - low) if high > low else low + 1)
    return {
        "title": title,
        "lines": len(keys),
        "svg": figures.svg(figure, f"{title} by training step"),
    }


def binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= POINTS:
        return x, y
    kept = np.isfinite(y)
    parts = np.array_split(np.flatnonzero(kept), max(min(POINTS, int(kept.sum())), 1))
    means = [(x[part].mean(), y[part].mean()) for part in parts if len(part)]
    x, y = np.array(means).reshape(-1, 2).T
    return x, y
