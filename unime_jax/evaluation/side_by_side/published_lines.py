"""Lines of papers, in the columns of runs on the same benchmark, and nowhere else."""

from collections.abc import Iterator, Mapping, Sequence

from unime_jax.evaluation.benchmarks.published import (
    CAPTION_SETS,
    CAPTIONS,
    MMEB,
    SUGARCREPE,
    SUGARCREPE_ROWS,
    PublishedModel,
)
from unime_jax.evaluation.side_by_side.changes import MACRO
from unime_jax.evaluation.side_by_side.columns import DATASETS, Column
from unime_jax.evaluation.side_by_side.lines import Cell, Line
from unime_jax.evaluation.side_by_side.runs import Group
from unime_jax.evaluation.side_by_side.suites import OF_DATASETS, Suite, shown_column


def published_lines(
    models: Sequence[PublishedModel],
    groups: Sequence[Group],
    suites: Mapping[str, Suite],
    titles: Mapping[Suite, str],
    lines: Sequence[Line],
) -> tuple[list[Line], list[str]]:
    """Lines of papers, with remarks on what they do not stand beside.

    Args:
      suites: datasets of the groups by name, and `titles` of these suites.
      lines: of the groups, in their order.
    """
    if not models:
        return [], []
    allowed: dict[tuple[str, str], Column] = {}
    refused: dict[str, list[str]] = {}  # names of lines by reason
    for group, line in zip(groups, lines, strict=True):
        own = dict(_comparable(group, suites[group.name], titles[suites[group.name]]))
        allowed |= {name: column for name, column in own.items() if column in line.cells}
        if why := suites[group.name][1]:
            refused.setdefault(why, []).append(group.name)
    printed, without = [], []
    for model in models:
        cells = {
            allowed[name]: Cell(value, derived=name in model.derived)
            for name, value in model.scores.items()
            if name in allowed
        }
        if cells:
            sources = tuple(s for s, of in model.sources.items() if of & allowed.keys())
            printed.append(Line(model.name, 0, cells, sources))
        else:
            without.append(model.name)
    remarks = [
        f"Published rows on MMEB do not stand beside {', '.join(names)}: {why}"
        for why, names in refused.items()
    ]
    if without:
        more = f" and {len(without) - 3} more" if without[3:] else ""
        remarks.append(
            f"No run is on the benchmarks of {', '.join(without[:3])}{more}, which are left out"
        )
    return printed, remarks


def _comparable(group: Group, suite: Suite, title: str) -> Iterator[tuple[tuple[str, str], Column]]:
    """Benchmark and column of a paper, and the column of the tables that it stands in."""
    datasets, why_not = suite
    if datasets and not why_not:
        for name in OF_DATASETS:
            yield (MMEB, name), shown_column((name,), title)
        for name in datasets:
            yield (MMEB, name), shown_column((DATASETS, name), title)
    values = group.first.values
    for printed, (name, *public) in CAPTION_SETS.items():
        if [values.get(("captions", name, key)) for key in ("images", "captions")] == public:
            for way in ("t2i", "i2t"):
                yield (CAPTIONS, f"{printed} {way}"), ("captions", name, way, "R@1")
    by_row = group.first.by_row
    own = {n: by_row.get(("composition", f"sugarcrepe/{n}"), ()) for n in SUGARCREPE_ROWS}
    if {name: len(scores) for name, scores in own.items()} == SUGARCREPE_ROWS:
        for kind in ("replace", "swap", "add"):
            yield (SUGARCREPE, kind), ("composition", f"sugarcrepe/{kind}{MACRO}")
