"""The report's style of figures as inline SVG, histograms of cosines, and similarity matrices."""

import base64
import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from unime_jax.data.strange_texts import shown
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.ranking import DatasetResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito colours: they stay apart in every common form of colour blindness. The template's style
# sheet names the same values.
BLUE, VERMILLION, GREY, INK = "#0072b2", "#d55e00", "#7d8794", "#3c4654"
PALE = "#a9c6da"  # of what was before training
# Of lines that stand beside each other, in this order.
SERIES = (BLUE, VERMILLION, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK, GREY)

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


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draws in `STYLE`."""
    import matplotlib  # half a second, which a run need not wait for before it begins

    with matplotlib.rc_context(STYLE):
        yield


def new_figure(
    size: tuple[float, float], place: tuple[float, float, float, float]
) -> tuple["Figure", "Axes"]:
    """A figure of so many inches and its axes, at (left, bottom, width, height) as parts of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.add_axes(place)


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
        figure, axes = new_figure((4.6, 2.3), (0.09, 0.2, 0.88, 0.75))
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


def radar(
    series: Mapping[str, Mapping[str, float | None]], colors: Sequence[str] = SERIES
) -> dict[str, Any] | None:
    """Percent by meta task as one polygon a series, on axes from 0 to 100.

    Only meta tasks that all series have; None where these are fewer than three, or no series. Of
    more series than there are colours, the first.
    """
    drawn = dict(list(series.items())[: len(colors)])
    metas = [m for m in scores_lib.METAS if all(s.get(m) is not None for s in drawn.values())]
    if len(metas) < 3 or not drawn:
        return None
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(metas)) / len(metas)  # clockwise from the top
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    around = [*range(len(metas)), 0]
    figure, axes = new_figure((3.4, 3.1), (0.02, 0.02, 0.96, 0.96))
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-135, 135)
    axes.set_ylim(-118, 118)
    for ring in (25, 50, 75, 100):
        axes.plot(*(ring * corners[around]).T, color="#d5dbe2", linewidth=0.7)
        axes.text(2, ring - 1, str(ring), color="#5b6675", fontsize=6, va="top")
    for corner, meta in zip(corners, metas, strict=True):
        axes.plot([0, 100 * corner[0]], [0, 100 * corner[1]], color="#d5dbe2", linewidth=0.7)
        side = "left" if corner[0] > 0.1 else "right" if corner[0] < -0.1 else "center"
        level = "bottom" if corner[1] > 0.1 else "top" if corner[1] < -0.1 else "center"
        x, y = 105 * corner
        axes.text(x, y, meta, color=INK, fontsize=9, ha=side, va=level)
    lines = []
    for color, (name, percent) in zip(colors, drawn.items()):
        points = np.array([[percent[meta]] for meta in metas], float) * corners
        axes.fill(*points.T, color=color, alpha=0.08 if len(drawn) < 4 else 0.02, linewidth=0)
        axes.plot(*points[around].T, color=color, linewidth=1.6, marker="o", markersize=2.5)
        lines.append({"name": name, "color": color})
    said = "; ".join(
        f"{name}: " + ", ".join(f"{meta} {percent[meta]:.1f}" for meta in metas)
        for name, percent in drawn.items()
    )
    return {"svg": svg(figure, f"Percent by meta task. {said}"), "lines": lines}


def svg(figure: "Figure", label: str) -> Markup:
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
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(shown(label))}"', 1))


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
    import matplotlib

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
    image.save(buffer, form, quality=80, optimize=form == "JPEG")  # PNGs are tiny here
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
