"""The study's results as Markdown: each factor's values beside the default, and the masks."""

import datetime
import math
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from experiments import study

AVERAGES = ("All", "IND", "OOD")
Scores = Mapping[str, Mapping[int, Mapping[str, float]]]  # by variant and seed


def markdown(results: Sequence[Mapping[str, Any]], command: str) -> str:
    """All tables, of the runs that there are."""
    scores: dict[str, dict[int, Any]] = {}
    for result in results:
        if "seed" in result:
            scores.setdefault(result["variant"], {})[result["seed"]] = result["scores"]
    start = next((r["scores"]["All"] for r in results if r["variant"] == "start"), math.nan)
    lines = [
        f"`{command}`, {datetime.datetime.now(datetime.UTC):%d %B %Y}, {platform.system()} on "
        f"{os.cpu_count()} CPU cores that other work shared, jax {jax.__version__}. "
        f"The start scores {start:.1f} % (All).",
        "",
        "| factor | value | runs | All | IND | OOD | change of All | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for factor, values in study.FACTORS.items():
        for value, changes in values.items():
            name = f"{factor}:{value}" if changes else "default"
            if name in scores:
                lines.append(_line(factor, value, scores[name], scores["default"], changes))
    merges = [r for r in results if r["variant"] == "merge"]
    if merges:
        lines += ["", *_merges(merges, scores)]
    masks = sorted(
        (r for r in results if r["variant"] == "masks"), key=lambda r: r["of"] != "start"
    )
    if masks:
        lines += ["", *_masks(masks)]
    return "\n".join(lines) + "\n"


def _line(factor, value, own, default, changes) -> str:
    """A value's mean and standard deviation, and its change by seed from the default."""
    cells = [factor, value if changes else f"{value} (default)", str(len(own))]
    cells += [spread([scores[key] for scores in own.values()]) for key in AVERAGES]
    if changes:
        both = sorted(own.keys() & default.keys())
        cells += change([own[seed]["All"] - default[seed]["All"] for seed in both])
    else:
        cells += ["", ""]
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    if len(values) < 2:
        return f"{np.mean(values):.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def change(differences: Sequence[float]) -> list[str]:
    """Mean difference with its 95 % interval (Student's t), and whether it is beyond zero."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return [f"{mean:+.1f}", ""]
    wide = stats.t.ppf(0.975, len(differences) - 1)
    half = float(wide * np.std(differences, ddof=1) / math.sqrt(len(differences)))
    word = ("better" if mean > 0 else "worse") if abs(mean) > half else "within"
    return [f"{mean:+.1f} ± {half:.1f}", word]


def _merges(merges: Sequence[Mapping[str, Any]], scores: Scores) -> list[str]:
    lines = ["| merge of the seeds of | parts | best part | merged | change from the parts' mean |"]
    lines.append("|---|---|---|---|---|")
    gains = []
    for result in merges:
        parts = [scores[result["of"]][seed]["All"] for seed in result["seeds"]]
        gains.append(result["scores"]["All"] - float(np.mean(parts)))
        lines.append(
            f"| {result['of']} | {spread(parts)} | {max(parts):.1f} | "
            f"{result['scores']['All']:.1f} | {gains[-1]:+.1f} |"
        )
    text, word = change(gains)
    return [*lines, f"| all | | | | {text} {word} |"]


def _masks(masks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Share dropped, precision and recall by mask and model, and the rate of false negatives."""
    head = " | ".join(f"{result['of']}: dropped | precision | recall" for result in masks)
    lines = [f"| mask | {head} |", "|---" * (1 + 3 * len(masks)) + "|"]
    for rows in zip(*(result["masks"] for result in masks), strict=True):
        cells = [rows[0]["mask"]]
        for row in rows:
            precision = row["right"] / row["dropped"] if row["dropped"] else math.nan
            cells += [
                f"{row['dropped'] / row['pairs']:.2%}",
                f"{precision:.0%}" if row["dropped"] else "-",
                f"{row['right'] / max(row['false negatives'], 1):.0%}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    last = masks[0]["masks"][-1]
    lines += [
        "",
        f"False negatives are {last['false negatives'] / last['pairs']:.1%} of the pairs with "
        "distinct targets. "
        + " ".join(
            f"Of {result['mined']['negatives']} negatives mined by {result['of']}, "
            f"{result['mined']['right'] / result['mined']['negatives']:.1%} are right answers."
            for result in masks
        ),
    ]
    return lines
