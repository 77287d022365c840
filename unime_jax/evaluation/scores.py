"""Averages of a run's evaluation, the MMEB table they are printed as, and evaluation.json."""

import json
import typing
from collections.abc import Mapping
from typing import Any, Literal

from unime_jax import files
from unime_jax.data.strange_texts import shown

METAS = ("CLS", "VQA", "RET", "VG")
SPLITS = ("IND", "OOD")
COLUMNS = (*METAS, *SPLITS, "All")
Side = Literal["before", "after", "scores"]  # of a training run the first two, of an evaluation one
SIDES: tuple[Side, ...] = typing.get_args(Side)

Table = Mapping[str, tuple[str, str]]  # dataset -> (meta task, split)
Scores = dict[str, Any]  # what `summary` returns; in percent


def _benchmark(groups: Mapping[tuple[str, str], str]) -> dict[str, tuple[str, str]]:
    return {name: group for group, names in groups.items() for name in names.split()}


# The 36 evaluation datasets of MMEB v1 (VLM2Vec, Table 1).
MMEB_V1: Table = _benchmark(
    {
        ("CLS", "IND"): "ImageNet-1K N24News HatefulMemes VOC2007 SUN397",
        ("CLS", "OOD"): "Place365 ImageNet-A ImageNet-R ObjectNet Country211",
        ("VQA", "IND"): "OK-VQA A-OKVQA DocVQA InfographicsVQA ChartQA Visual7W",
        ("VQA", "OOD"): "ScienceQA VizWiz GQA TextVQA",
        ("RET", "IND"): "VisDial CIRR VisualNews_t2i VisualNews_i2t MSCOCO_t2i MSCOCO_i2t NIGHTS "
        "WebQA",
        ("RET", "OOD"): "FashionIQ Wiki-SS-NQ OVEN EDIS",
        ("VG", "IND"): "MSCOCO",
        ("VG", "OOD"): "RefCOCO RefCOCO-Matching Visual7W-Pointing",
    }
)


def summary(
    datasets: Mapping[str, float], table: Table, composition: Mapping[str, float] | None = None
) -> Scores:
    """Averages percents the MMEB way: "All" is the plain mean over datasets.

    "meta_mean" is the mean of the four meta tasks that UniME's first paper prints as "Overall". A
    group without datasets is None, and so is "meta_mean" unless all four are there.

    Raises:
      ValueError: `datasets` and `table` do not name the same datasets, or a meta task or split is
        not one of MMEB's.
    """
    if datasets.keys() != table.keys():
        raise ValueError(
            f"scores and table must name the same datasets; without a score: "
            f"{sorted(table.keys() - datasets.keys())}, not in the table: "
            f"{sorted(datasets.keys() - table.keys())}"
        )
    for name, (meta, split) in table.items():
        if meta not in METAS or split not in SPLITS:
            raise ValueError(f"{name!r} is {meta!r}, {split!r}; known are {METAS} and {SPLITS}")
    scores: Scores = {"datasets": {name: float(datasets[name]) for name in table}}
    for group in (*METAS, *SPLITS):
        scores[group] = _mean([datasets[name] for name in table if group in table[name]])
    scores["All"] = _mean(list(datasets.values()))
    metas = [scores[meta] for meta in METAS]
    scores["meta_mean"] = None if None in metas else _mean(metas)
    scores["composition"] = {name: float(v) for name, v in (composition or {}).items()}
    return scores


def table(before: Scores | None, after: Scores | None, last_name: str = "after") -> str:
    """A text table CLS VQA RET VG IND OOD All, one of composition and one of distillation.

    `last_name` begins the lines of `after`.
    """
    blocks = []
    if any((scores or {}).get("datasets") for scores in (before, after)):
        blocks.append(_block("hit@1 %", COLUMNS, before, after, last_name))
    first, last = ((scores or {}).get("composition") or {} for scores in (before, after))
    if subsets := list(dict.fromkeys([*first, *last])):
        blocks.append(_block("composition %", subsets, first, last, last_name))
    first, last = ((scores or {}).get("distillation") or {} for scores in (before, after))
    if first or last:
        blocks.append(_block("distillation", ["kl", "overlap"], first, last, last_name, 3))
    return "\n\n".join(blocks)


def read_scores(workdir: files.Path) -> dict[str, Scores]:
    """Reads <workdir>/evaluation.json, {} if absent.

    A training run's is {"before": scores, "after": scores}, an evaluation's {"scores": scores}.
    """
    path = workdir / "evaluation.json"
    if not path.exists():
        return {}
    try:
        sides = files.read_object(path)
        for side, scores in sides.items():
            _check_side(side, scores)
    except ValueError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise ValueError(f"{where}{error}; remove it and evaluate again") from error
    return sides


def _check_side(side: str, scores: Any) -> None:
    if side not in SIDES or not isinstance(scores, dict):
        raise ValueError(f"{side!r} holds no scores")
    for group in ("datasets", "composition"):
        values = scores.get(group, {})
        if not isinstance(values, dict) or not all(_is_number(v) for v in values.values()):
            raise ValueError(f"{side!r} has {group} that are not numbers by name")
    for column in (*COLUMNS, "meta_mean"):
        if not (scores.get(column) is None or _is_number(scores[column])):
            raise ValueError(f"{column} of {side!r} is {scores[column]!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_scores(workdir: files.Path, when: Side, scores: Scores) -> None:
    """Writes one side of <workdir>/evaluation.json atomically and keeps the other side."""
    if when not in SIDES:
        raise ValueError(f"when is {when!r}; expected one of {', '.join(SIDES)}")
    path = workdir / "evaluation.json"
    both = read_scores(workdir) | {when: scores}
    ordered = {side: both[side] for side in SIDES if side in both}
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, json.dumps(ordered, indent=2, allow_nan=False) + "\n")


def forget_scores(workdir: files.Path, when: Side) -> None:
    """Takes one side out of <workdir>/evaluation.json, atomically; nothing if it is not there."""
    both = read_scores(workdir)
    if both.pop(when, None) is None:
        return
    files.write_whole(workdir / "evaluation.json", json.dumps(both, indent=2) + "\n")


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _block(
    title: str,
    columns: tuple[str, ...] | list[str],
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    last_name: str,
    digits: int = 1,
) -> str:
    names = [shown(column) for column in columns]  # of a data set's making
    widths = [max(7, len(name) + 2) for name in names]
    lines = [f"{title:<14}" + "".join(f"{c:>{w}}" for c, w in zip(names, widths, strict=True))]

    def add(name: str, values: list[float | None], form: str) -> None:
        cells = ["-" if v is None else format(v, form) for v in values]
        line = "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
        lines.append(f"{name:<14}{line}")

    first = [(before or {}).get(column) for column in columns]
    second = [(after or {}).get(column) for column in columns]
    if before:
        add("before", first, f".{digits}f")
    if after:
        add(last_name, second, f".{digits}f")
    if before and after:
        pairs = zip(first, second, strict=True)
        add("change", [None if a is None or b is None else b - a for a, b in pairs], f"+.{digits}f")
    return "\n".join(lines)
