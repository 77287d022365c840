"""The report's style of figures as inline SVG, histograms of cosines, and similarity matrices."""

import base64
import io
import re
from collections.abc import Mapping
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
        drawn = svg(figure, f"Cosines, {name.lower()}")
        panels.append({"title": name, "rows": len(side[0]), "svg": drawn})
    return panels


def svg(figure: Figure, label: str) -> Markup:
    """The figure as an <svg> element, the same from run to run, which screen readers name."""
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
