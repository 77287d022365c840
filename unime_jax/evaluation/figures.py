"""The report's figures as inline SVG: curves, histograms of cosines, similarity matrices."""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.ranking import DatasetResult

# Okabe-Ito colours: they stay apart in every common form of colour blindness. The template's style
# sheet names the same values.
BLUE, VERMILLION, GREY, INK = "#0072b2", "#d55e00", "#7d8794", "#3c4654"

POINTS = 240  # of a curve; longer ones are averaged in bins

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "unime_jax",  # ids that do not change from run to run
    "font.size": 8,
    "axes.edgecolor": "#c3cad3",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 5),
    "xtick.color": "#5b6675",
    "ytick.color": "#5b6675",
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6eaef",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.5,
}


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
    """A panel of what is logged by step; None if nothing is.

    The loss has a mark after step `new_objective`, where another objective began (0: none did),
    and crosses at steps that were dropped; `chance_loss` goes with it, dashed.
    """
    values = [series(records, key) for key in keys]
    if not any(np.isfinite(v).any() for v in values):
        return None
    steps = np.array([record["step"] for record in records], np.float64)
    figure = Figure(figsize=(3.0, 1.75))
    axes = figure.add_axes((0.15, 0.17, 0.81, 0.72))
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
    return {"title": title, "lines": len(keys), "svg": _svg(figure, f"{title} by training step")}


def binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= POINTS:
        return x, y
    kept = np.isfinite(y)
    parts = np.array_split(np.flatnonzero(kept), max(min(POINTS, int(kept.sum())), 1))
    means = [(x[part].mean(), y[part].mean()) for part in parts if len(part)]
    x, y = np.array(means).reshape(-1, 2).T
    return x, y


def histograms(evaluations: Mapping[str, Mapping[str, DatasetResult]]) -> list[dict[str, Any]]:
    """Cosine of gold, hardest and easiest wrong candidate over all rows (LLaVE, Figure 1).

    `evaluations`: rankings by title of the panel; empty ones have none.
    """
    sides = {}
    for name, results in evaluations.items():
        if results:
            fields = ("gold_score", "hardest", "easiest")
            stacked = [np.concatenate([getattr(r, f) for r in results.values()]) for f in fields]
            sides[name] = [values[np.isfinite(values)] for values in stacked]
    every = np.concatenate([values for side in sides.values() for values in side] or [[]])
    if not every.size:
        return []
    span = max(every.max() - every.min(), 0.02)  # identical scores still get bins of some width
    bins = np.linspace(every.min() - 0.02 * span, every.max() + 0.02 * span, 49)
    panels = []
    for name, side in sides.items():
        figure = Figure(figsize=(4.6, 2.3))
        axes = figure.add_axes((0.09, 0.2, 0.88, 0.75))
        for values, color in zip(side[::-1], (GREY, VERMILLION, BLUE), strict=True):
            share = np.histogram(values, bins)[0] / max(len(values), 1) * 100
            axes.stairs(share, bins, fill=True, color=color, alpha=0.28, linewidth=0)
            axes.stairs(share, bins, color=color, linewidth=1.3)
        axes.set_xlabel("cosine with the query", color=INK)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        axes.locator_params(axis="y", nbins=4)
        axes.set_ylim(bottom=0)
        svg = _svg(figure, f"Cosines, {name.lower()}")
        panels.append({"title": name, "rows": len(side[0]), "svg": svg})
    return panels


def _svg(figure: Figure, label: str) -> Markup:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-z0-9]+(_[a-z0-9]+)*_\d+"', "", text)  # figure_1, axes_1: not unique
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def heat(
    table: scores_lib.Table, evaluations: Mapping[str, Mapping[str, DatasetResult]]
) -> dict[str, Any] | None:
    """Similarity of every query with every gold of one dataset (UniME, Figure 4).

    `evaluations` as in `histograms`; the dataset is chosen from the last that is not empty.
    """
    both = next((results for results in list(evaluations.values())[::-1] if results), {})
    known = [n for n in both if n in table]
    if not known:
        return None
    # Retrieval first: its targets differ from pair to pair, labels and answers recur.
    name = max(known, key=lambda n: (len(both[n].aligned), table[n][0] == "RET"))
    sides = {
        title: results[name].aligned for title, results in evaluations.items() if name in results
    }
    low = min(float(m.min()) for m in sides.values())
    high = max(float(m.max()) for m in sides.values())
    paint = matplotlib.colormaps["Blues"]
    maps = []
    for title, matrix in sides.items():
        scaled = (matrix - low) / max(high - low, 1e-6)
        pixels = paint(scaled, bytes=True)[..., :3]
        maps.append({"title": title, "src": data_uri(Image.fromarray(pixels), "PNG")})
    pairs = len(both[name].aligned)
    return {"name": name, "pairs": pairs, "maps": maps, "low": f"{low:.2f}", "high": f"{high:.2f}"}


def data_uri(image: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=80, optimize=True)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
