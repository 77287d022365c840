"""The report's part on views of the vectors: headline numbers in fewer numbers and fewer bits."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.report import figures
from unime_jax.evaluation.view_scores import Line, columns, lines
from unime_jax.evaluation.views import BITS

COLORS = dict(zip(BITS, figures.SERIES, strict=False))  # by precision


def section(scores: Mapping[str, scores_lib.Scores]) -> dict[str, Any] | None:
    """A line a view and a panel a headline number; None if the newest scores have no views."""
    newest = lines(scores.get("after") or scores.get("before") or {})
    if not newest:
        return None
    earlier = lines(scores.get("before") or {}) if "after" in scores else []
    names = columns(newest)
    whole = newest[0].numbers
    by_size = sorted(newest, key=lambda line: (line.dim or 0, BITS[line.precision]), reverse=True)
    rows = [
        {
            "dim": f"{line.dim:,}" if line.dim else "all",
            "precision": line.precision,
            "bytes": "–" if line.bytes is None else f"{line.bytes:,}",
            "cells": [
                (line.numbers.get(name), _share(line.numbers.get(name), whole.get(name)))
                for name in names
            ],
        }
        for line in by_size
    ]
    precisions = list(dict.fromkeys(line.precision for line in newest))
    known = {line.dim for line in newest if line.dim}
    panels = [
        {"title": name, "svg": _panel(name, newest, earlier)} for name in names if len(known) > 1
    ]
    legend = [{"name": p, "color": COLORS[p]} for p in precisions]
    if earlier and panels:
        legend.append({"name": "before training, float32", "color": figures.PALE})
    return {"columns": names, "rows": rows, "panels": panels, "legend": legend}


def _share(value: float | None, whole: float | None) -> float | None:
    return None if value is None or not whole else 100 * value / whole


def _panel(name: str, newest: Sequence[Line], earlier: Sequence[Line]) -> Markup:
    figure, axes = figures.new_figure((3.0, 1.9), (0.13, 0.2, 0.83, 0.74))
    _draw(axes, name, earlier, "float32", figures.PALE)
    precisions = list(dict.fromkeys(line.precision for line in newest))
    for precision in reversed(precisions):  # float32, the first, on top
        _draw(axes, name, newest, precision, COLORS[precision])
    dims = sorted({line.dim for line in newest if line.dim})
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()
    axes.set_xlabel("numbers of a vector", color=figures.INK)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.locator_params(axis="y", nbins=5)
    said = ", ".join(f"{line.name} {line.numbers[name]:.1f}" for line in newest)
    return figures.svg(figure, f"{name} in percent by numbers of a vector: {said}")


def _draw(axes: Any, name: str, of: Sequence[Line], precision: str, color: str) -> None:
    points = sorted(
        (line.dim, line.numbers[name])
        for line in of
        if line.dim and line.precision == precision and name in line.numbers
    )
    if points:
        axes.plot(*zip(*points), color=color, marker="o", markersize=3)
