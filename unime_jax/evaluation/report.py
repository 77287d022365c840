"""The report of a run: one HTML file with scores, curves, similarities and ranked examples.

It reads what lies in the workdir (config.json, metrics.jsonl, evaluation.json) and takes the
rankings of mmeb.py, so it can be rebuilt at any time. The page needs no network and no script.
"""

import base64
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.mmeb import DatasetResult, Images

# Okabe-Ito colours: they stay apart in every common form of colour blindness. The template's style
# sheet names the same values.
BLUE, VERMILLION, GREY, INK = "#0072b2", "#d55e00", "#7d8794", "#3c4654"

# metrics.jsonl key -> title; panels that no line has a value for are left out.
CURVES = {
    ("loss",): "Loss",
    ("positive_similarity", "hard_negative_similarity", "easy_negative_similarity"): "Cosine",
    ("batch_accuracy",): "Batch accuracy",
    ("negatives_per_query",): "Negatives per query",
    ("masked_share",): "Masked share",
    ("gradient_norm",): "Gradient norm",
    ("learning_rate",): "Learning rate",
    ("pairs_per_second",): "Pairs per second",
}
SIDES = ("before", "after")
EXAMPLES = 3  # per dataset in the gallery
IMAGE_BUDGET = 1_800_000  # characters of base64 in the whole page
THUMBNAIL = 144  # pixels of the longer side
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
    with matplotlib.rc_context(STYLE):
        curves = [panel for keys, name in CURVES.items() if (panel := _curve(records, keys, name))]
        histograms = _histograms(before, after)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    gallery, left_out = _gallery(table, before, after, images)
    page = environment.get_template("report.html.j2").render(
        title=title,
        facts=dict(facts or {}),
        tiles=list(_tiles(scores, records)),
        columns=scores_lib.COLUMNS,
        before=scores.get("before"),
        after=scores.get("after"),
        groups=_bars(scores, table, after or before),
        composition=_composition(scores),
        curves=curves,
        dropped=len(_dropped(records)),
        histograms=histograms,
        heat=_heat(table, before, after),
        gallery=gallery,
        left_out=left_out,
        config=list(_flatten(_read_json(workdir / "config.json"))),
    )
    path = workdir / "report.html"
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


# Numbers


def _number(value: Any) -> float:
    """A logged value, NaN where it is missing or null."""
    return float(value) if isinstance(value, int | float) else math.nan


def _series(records: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    values = np.array([_number(record.get(key)) for record in records], np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _dropped(records: Sequence[Mapping[str, Any]]) -> list[int]:
    """Steps whose update was not applied: a non-finite loss, or `skipped_steps` went up."""
    steps, skipped = [], 0
    for record in records:
        lost = "loss" in record and not math.isfinite(_number(record["loss"]))
        if lost or (record.get("skipped_steps") or 0) > skipped:
            steps.append(record["step"])
        skipped = max(skipped, record.get("skipped_steps") or 0)
    return steps


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
        shown = [f"{v:.1f} %" for v in (first, last) if v is not None]
        if shown:
            yield {"name": name, "value": shown[-1], "before": shown[0] if shown[1:] else ""}
    loss = _series(records, "loss")
    loss = loss[np.isfinite(loss)]
    if len(loss):
        yield {"name": "Loss", "value": f"{loss[-1]:.3f}", "before": f"{loss[0]:.3f}"}
    if records:
        yield {"name": "Steps", "value": f"{records[-1]['step']:,}", "before": ""}
    for key, name in (
        ("negatives_per_query", "Negatives per query, median"),
        ("pairs_per_second", "Pairs per second, median"),
    ):
        values = _series(records, key)
        if np.isfinite(values).any():
            yield {"name": name, "value": f"{np.nanmedian(values):,.0f}", "before": ""}


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


# Figures


def _curve(
    records: Sequence[Mapping[str, Any]], keys: tuple[str, ...], title: str
) -> dict[str, Any] | None:
    values = [_series(records, key) for key in keys]
    if not any(np.isfinite(v).any() for v in values):
        return None
    steps = np.array([record["step"] for record in records], np.float64)
    figure = Figure(figsize=(3.0, 1.75))
    axes = figure.add_axes((0.15, 0.17, 0.81, 0.72))
    for value, color in zip(values, (BLUE, VERMILLION, GREY), strict=False):
        x, y = _binned(steps, value)
        axes.plot(x, y, color=color, marker="o" if len(x) == 1 else "", markersize=3)
    if keys == ("loss",) and (dropped := _dropped(records)):
        bottom = axes.get_xaxis_transform()
        axes.plot(dropped, [0.03] * len(dropped), "x", transform=bottom, color=VERMILLION, mew=1.6)
    if keys in (("masked_share",), ("batch_accuracy",)):
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.locator_params(nbins=5)
    axes.margins(x=0.02)
    if len(keys) == 1:  # all but cosines are amounts: without the zero, noise looks like news
        low, high = min(0.0, np.nanmin(values[0])), np.nanmax(values[0])
        axes.set_ylim(low, high + 0.1 * (high - low) if high > low else low + 1)
    return {"title": title, "lines": len(keys), "svg": _svg(figure, f"{title} by training step")}


def _binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= POINTS:
        return x, y
    kept = np.isfinite(y)
    parts = np.array_split(np.flatnonzero(kept), max(min(POINTS, int(kept.sum())), 1))
    means = [(x[part].mean(), y[part].mean()) for part in parts if len(part)]
    x, y = np.array(means).reshape(-1, 2).T
    return x, y


def _histograms(
    before: Mapping[str, DatasetResult], after: Mapping[str, DatasetResult]
) -> list[dict[str, Any]]:
    """Cosine of gold, hardest and easiest wrong candidate over all rows (LLaVE, Figure 1)."""
    sides = {}
    for name, results in (("Before training", before), ("After training", after)):
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


def _heat(
    table: scores_lib.Table,
    before: Mapping[str, DatasetResult],
    after: Mapping[str, DatasetResult],
) -> dict[str, Any] | None:
    """Similarity of every query with every gold of one dataset (UniME, Figure 4)."""
    both = after or before
    known = [n for n in both if n in table]
    if not known:
        return None
    # Retrieval first: its targets differ from pair to pair, labels and answers recur.
    name = max(known, key=lambda n: (len(both[n].aligned), table[n][0] == "RET"))
    sides = {
        title: results[name].aligned
        for title, results in (("Before training", before), ("After training", after))
        if name in results
    }
    low = min(float(m.min()) for m in sides.values())
    high = max(float(m.max()) for m in sides.values())
    paint = matplotlib.colormaps["Blues"]
    maps = []
    for title, matrix in sides.items():
        scaled = (matrix - low) / max(high - low, 1e-6)
        pixels = paint(scaled, bytes=True)[..., :3]
        maps.append({"title": title, "src": _data_uri(Image.fromarray(pixels), "PNG")})
    pairs = len(both[name].aligned)
    return {"name": name, "pairs": pairs, "maps": maps, "low": f"{low:.2f}", "high": f"{high:.2f}"}


# Gallery


def _gallery(
    table: scores_lib.Table,
    before: Mapping[str, DatasetResult],
    after: Mapping[str, DatasetResult],
    images: Images,
) -> tuple[list[dict[str, Any]], int]:
    """Some rows of every dataset, mistakes first, and how many had to be left out for size."""
    shown = after or before
    picks = {name: _pick(result) for name, result in shown.items()}
    thumbnails: dict[str, str] = {}
    sections: dict[str, dict[str, Any]] = {
        name: {
            "name": name,
            "meta": table[name][0] if name in table else "",
            "failures": int(np.sum(result.rank > 0)),
            "rows": len(result.ids),
            "examples": [],
        }
        for name, result in shown.items()
    }
    used = left_out = 0
    for turn in range(EXAMPLES):  # one of every dataset, then a second one, ...
        for name, rows in picks.items():
            if turn >= len(rows):
                continue
            if used > IMAGE_BUDGET:
                left_out += 1
                continue
            earlier = before.get(name) if after else None
            example = _example(shown[name], rows[turn], earlier, images, thumbnails)
            used += sum(len(card["src"]) for card in (example["query"], *example["cards"]))
            sections[name]["examples"].append(example)
    return [section for section in sections.values() if section["examples"]], left_out


def _pick(result: DatasetResult) -> list[int]:
    """The most confident mistakes and, if there is room or at least one place, a hit."""
    margin = result.gold_score - result.top_score[:, 0]
    order = np.argsort(margin, kind="stable")
    failures = [int(n) for n in order if result.rank[n] > 0]
    hits = np.flatnonzero(result.rank == 0).tolist()
    return [*failures[: EXAMPLES - 1], *hits[:1], *failures[EXAMPLES - 1 :], *hits[1:]][:EXAMPLES]


def _example(
    result: DatasetResult,
    row: int,
    earlier: DatasetResult | None,
    images: Images,
    thumbnails: dict[str, str],
) -> dict[str, Any]:
    def card(number: int) -> dict[str, Any]:
        item = result.items[number]
        if item.image_path and item.image_path not in thumbnails:
            thumbnails[item.image_path] = _thumbnail(images(item.image_path))
        text = " ".join(item.text.replace("<|image_1|>", " ").split())
        text = text if len(text) <= 200 else text[:199] + "…"
        return {"text": text, "src": thumbnails.get(item.image_path, "")}

    gold = int(result.gold[row])
    cards = [
        card(int(number)) | {"place": place, "score": float(score), "gold": number == gold}
        for place, (number, score) in enumerate(
            zip(result.top[row], result.top_score[row], strict=True), 1
        )
        if number >= 0
    ]
    if not any(c["gold"] for c in cards):
        score = float(result.gold_score[row])
        place = int(result.rank[row]) + 1
        cards.append(card(gold) | {"place": place, "score": score, "gold": True})
    if len(cards) > 1 and len({c["text"] for c in cards}) == 1:
        cards = [c | {"text": ""} for c in cards]  # one prompt for all says nothing about each
    place_before = None
    if earlier and earlier.ids[row : row + 1] == result.ids[row : row + 1]:
        place_before = int(earlier.rank[row]) + 1
    return {
        "id": result.ids[row],
        "query": card(int(result.query[row])),
        "cards": cards,
        "pictures": any(c["src"] for c in cards),
        "rank": int(result.rank[row]) + 1,
        "earlier": place_before,
        "candidates": int(result.candidates[row]),
    }


def _thumbnail(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))  # JPEG decodes small at once
        picture = image.convert("RGBA")
    if max(picture.size) <= THUMBNAIL:
        return _data_uri(picture.convert("RGB"), "PNG" if max(picture.size) <= 64 else "JPEG")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    white = Image.new("RGBA", picture.size, "white")  # transparent parts would turn black
    return _data_uri(Image.alpha_composite(white, picture).convert("RGB"), "JPEG")


def _data_uri(image: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=80, optimize=True)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
