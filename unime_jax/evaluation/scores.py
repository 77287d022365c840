"""Averages of a run's evaluation, the MMEB table they are printed as, and evaluation.json."""

import json
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from unime_jax import files
from unime_jax.data.strange_texts import shown
from unime_jax.evaluation.benchmarks import visdoc

METAS = ("CLS", "VQA", "RET", "VG")
SPLITS = ("IND", "OOD")
# Percent, but for the last, which is a place from 1.
RETRIEVAL = ("R@1", "R@5", "R@10", "MRR", "nDCG@5", "nDCG@10", "mAP", "median_rank")
LATER = ("nDCG@5",)  # of these, what evaluations of earlier versions have not
RECALLS = RETRIEVAL[:3]  # of caption retrieval, percent
WAYS = ("t2i", "i2t")  # of it: text to image, which the papers print first, and image to text
CAPTIONS = tuple(f"{way} {name}" for way in WAYS for name in RECALLS)
COLUMNS = (*METAS, *SPLITS, "All")
WIDTH = 7  # columns of a table of a composition set; it goes on in another one
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
NOT_COUNTED = ("CIFAR-100",)  # a dataset that lies on the hub beside MMEB's


def summary(
    datasets: Mapping[str, float], table: Table, composition: Mapping[str, float] | None = None
) -> Scores:
    """Averages percents the MMEB way: "All" is the plain mean over datasets.

    "meta_mean" is the mean of the four meta tasks that UniME's first paper prints as "Overall". A
    group without datasets is None, and so is "meta_mean" unless all four are there. "missing" are
    those of MMEB's own datasets that are not there, if all that are there are its own; it is left
    out where none is missing.

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
    if table and (absent := missing(table)):
        scores["missing"] = absent
    scores["composition"] = {name: float(v) for name, v in (composition or {}).items()}
    return scores


def missing(table: Table) -> list[str]:
    """MMEB's datasets that a part of them has not; of other datasets none is missing."""
    if all(MMEB_V1.get(name) == group for name, group in table.items()):
        return [name for name in MMEB_V1 if name not in table]
    return []


def notes(scores: Mapping[str, Any]) -> list[str]:
    """Sentences that belong to MMEB's averages: what they lack, and whose words the rows are in."""
    said = []
    if absent := scores.get("missing"):
        present = len(scores["datasets"])
        said.append(
            f"All: mean of {present} of {present + len(absent)}; without {', '.join(absent)}"
        )
    if scores.get("meta_mean") is not None:
        said.append(
            f"meta_mean: {scores['meta_mean']:.1f}, the mean of {', '.join(METAS)}, which UniME's "
            "first paper prints as Overall"
        )
    if scores.get("instructions"):
        said.append(f"instructions: {scores['instructions']}")
    return said


def table(before: Scores | None, after: Scores | None, last_name: str = "after") -> str:
    """A text table CLS VQA RET VG IND OOD All, and those of the other kinds of scores.

    Retrieval and captions have the 95 % interval of the last line of scores, and a table for each
    of several sets. `last_name` begins the lines of `after`.
    """
    blocks = []
    if any((scores or {}).get("datasets") for scores in (before, after)):
        block = _block("hit@1 %", COLUMNS, before, after, last_name)
        blocks.append("\n".join([block, *notes(after or before or {})]))
    first, last = ((scores or {}).get("composition") or {} for scores in (before, after))
    for name, sides in _composition_sets(first, last).items():
        columns = list(dict.fromkeys([*sides[0], *sides[1]]))
        width = WIDTH if name else len(columns)  # subsets of no set are one table
        for start in range(0, len(columns), width):
            part = columns[start : start + width]
            blocks.append(_block(f"{shown(name) or 'composition'} %", part, *sides, last_name))
    first, last = ((scores or {}).get("distillation") or {} for scores in (before, after))
    if first or last:
        blocks.append(_block("distillation", ["kl", "overlap"], first, last, last_name, 3))
    blocks += _retrieval_blocks(before, after, last_name)
    blocks += _captions_blocks(before, after, last_name)
    first, last = ((scores or {}).get("clustering") or {} for scores in (before, after))
    if sets := list(dict.fromkeys([*first, *last])):
        blocks.append(_block("v-measure %", sets, first, last, last_name))
    return "\n\n".join(blocks)


def composition_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of composition scores by their set, "" for those of none; "<set>/<score>" has one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        start, slash, _ = name.partition("/")
        groups.setdefault(start if slash else "", []).append(name)
    return groups


def _composition_sets(
    first: Mapping[str, float], last: Mapping[str, float]
) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Scores of composition before and after, by set and by their names in it."""
    sets = {}
    for group, names in composition_groups(dict.fromkeys([*first, *last])).items():
        start = f"{group}/" if group else ""
        sides = [{n.removeprefix(start): s[n] for n in names if n in s} for s in (first, last)]
        sets[group] = (sides[0], sides[1])
    return sets


def retrieval_sets(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Retrieval scores by set, where there are several."""
    return dict((scores.get("retrieval") or {}).get("datasets") or {})


def _retrieval_blocks(before: Scores | None, after: Scores | None, last_name: str) -> Iterator[str]:
    """Tables of retrieval: of all sets, then of each where there are several."""
    first, last = ((scores or {}).get("retrieval") or {} for scores in (before, after))
    if not first and not last:
        return
    sides = retrieval_sets(before or {}), retrieval_sets(after or {})
    named = {name: (sides[0].get(name), sides[1].get(name)) for name in {**sides[0], **sides[1]}}
    for name, (a, b) in [("", (first, last)), *named.items()]:
        of = b or a or {}
        title = (
            f"{shown(name) or 'retrieval'}: {of.get('queries')} queries, "
            f"{of.get('candidates')} candidates"
        )
        block = _block("retrieval %", RETRIEVAL, a, b, last_name, intervals=of.get("intervals"))
        said = [] if name else visdoc.notes(after or before or {})
        yield "\n".join([title, block, *said])


def _captions_blocks(before: Scores | None, after: Scores | None, last_name: str) -> Iterator[str]:
    """A table of each set of captions: recalls from text to image, then from image to text."""
    first, last = ((scores or {}).get("captions") or {} for scores in (before, after))
    for name in dict.fromkeys([*first, *last]):
        a, b = (flat_recalls(side.get(name)) for side in (first, last))
        of = last.get(name) or first[name]
        intervals = flat_recalls(of, "intervals")
        title = f"{shown(name)}: {of['images']} images, {of['captions']} captions"
        yield f"{title}\n" + _block(
            "captions %", CAPTIONS, a, b, last_name, intervals=intervals or None
        )


def flat_recalls(captions: Mapping[str, Any] | None, inner: str = "") -> dict[str, Any]:
    """Recalls of one set of captions by way and name, "t2i R@1"; {} of None.

    `inner`: "intervals" for those in place of the recalls.
    """
    flat: dict[str, Any] = {}
    for way in WAYS:
        recalls = (captions or {}).get(way) or {}
        recalls = recalls.get(inner, {}) if inner else recalls
        flat |= {f"{way} {name}": recalls[name] for name in RECALLS if name in recalls}
    return flat


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
    for group in ("datasets", "composition", "clustering"):
        values = scores.get(group, {})
        if not isinstance(values, dict) or not all(_is_number(v) for v in values.values()):
            raise ValueError(f"{side!r} has {group} that are not numbers by name")
    for absent in (scores.get("missing", []), scores.get(visdoc.MISSING, [])):
        if not isinstance(absent, list) or not all(isinstance(name, str) for name in absent):
            raise ValueError(f"{side!r} has missing datasets that are no names")
    if "retrieval" in scores:
        _check_retrieval(side, scores["retrieval"])
    _check_captions(side, scores.get("captions", {}))
    for column in (*COLUMNS, "meta_mean", visdoc.NAME):
        if not (scores.get(column) is None or _is_number(scores[column])):
            raise ValueError(f"{column} of {side!r} is {scores[column]!r}")


def _check_retrieval(side: str, scores: Any) -> None:
    sets = scores.get("datasets", {}) if isinstance(scores, dict) else None
    if not isinstance(sets, dict):
        raise ValueError(f"{side!r} has retrieval that is no object of scores")
    needed = (*(name for name in RETRIEVAL if name not in LATER), "queries", "candidates")
    for name, values in {"": scores, **sets}.items():
        if not isinstance(values, dict) or not all(_is_number(values.get(n)) for n in needed):
            of = f"retrieval set {name!r}" if name else "retrieval"
            raise ValueError(f"{side!r} has {of} without {', '.join(needed)}")


def _check_captions(side: str, sets: Any) -> None:
    if not isinstance(sets, dict):
        raise ValueError(f"{side!r} has captions that are no object of scores by set")
    for name, values in sets.items():
        values = values if isinstance(values, dict) else {}
        ways = [w if isinstance(w := values.get(way), dict) else {} for way in WAYS]
        needed = [*(w.get(n) for w in ways for n in RECALLS), values.get("images")]
        if not all(map(_is_number, [*needed, values.get("captions")])):
            of = ", ".join((*WAYS, *RECALLS, "images", "captions"))
            raise ValueError(f"{side!r} has captions {name!r} without {of}")


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
    intervals: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """`intervals`: [low, high] by column, of the last line of scores."""
    names = [shown(column) for column in columns]  # of a data set's making
    widths = [max(7, len(name) + 2) for name in names]
    start = max(14, len(title) + 1)
    lines = [f"{title:<{start}}" + "".join(f"{c:>{w}}" for c, w in zip(names, widths, strict=True))]

    def add(name: str, values: list[float | None], form: str) -> None:
        cells = ["-" if v is None else format(v, form) for v in values]
        line = "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
        lines.append(f"{name:<{start}}{line}")

    first = [(before or {}).get(column) for column in columns]
    second = [(after or {}).get(column) for column in columns]
    if before:
        add("before", first, f".{digits}f")
    if after:
        add(last_name, second, f".{digits}f")
    if intervals:
        for number, name in enumerate(("95 % from", "95 % to")):
            values = [intervals[c][number] if c in intervals else None for c in columns]
            add(name, values, f".{digits}f")
    if before and after:
        pairs = zip(first, second, strict=True)
        add("change", [None if a is None or b is None else b - a for a, b in pairs], f"+.{digits}f")
    return "\n".join(lines)
