"""Averages of a run's evaluation by groups of datasets, and the file evaluation.json."""

import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from unime_jax import files
from unime_jax.batch import MediaKind
from unime_jax.evaluation.benchmarks import mmeb_v2_video, visdoc

METAS = ("CLS", "VQA", "RET", "VG")
SPLITS = ("IND", "OOD")
# Percent, but for the last, which is a place from 1.
RETRIEVAL = ("R@1", "R@5", "R@10", "MRR", "nDCG@5", "nDCG@10", "mAP", "median_rank")
LATER = ("nDCG@5",)  # of these, what evaluations of earlier versions have not
RECALLS = RETRIEVAL[:3]  # of caption retrieval, percent
RANKS = ("median_rank", "mean_rank")  # of it, too; places from 1
# Of it, by what is captioned: text to image, which the papers print first, and image to text.
WAYS: Mapping[MediaKind, tuple[str, str]] = {"image": ("t2i", "i2t"), "clip": ("t2v", "v2t")}
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


def composition_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of composition scores by their set, "" for those of none; "<set>/<score>" has one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        start, slash, _ = name.partition("/")
        groups.setdefault(start if slash else "", []).append(name)
    return groups


def retrieval_sets(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Retrieval scores by set, where there are several."""
    return dict((scores.get("retrieval") or {}).get("datasets") or {})


def ways_of(captions: Mapping[str, Any]) -> tuple[str, str]:
    """The ways of one set of captions: of clips it has the number of "videos"."""
    return WAYS["clip" if "videos" in captions else "image"]


def recall_columns(captions: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the recalls of one set of captions, "t2i R@1"."""
    return tuple(f"{way} {name}" for way in ways_of(captions) for name in RECALLS)


def flat_recalls(captions: Mapping[str, Any] | None, inner: str = "") -> dict[str, Any]:
    """Recalls of one set of captions by `recall_columns`; {} of None.

    `inner`: "intervals" for those in place of the recalls.
    """
    flat: dict[str, Any] = {}
    for way in ways_of(captions or {}):
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
    for group in ("datasets", "composition", "clustering", mmeb_v2_video.GROUP):
        values = scores.get(group, {})
        if not isinstance(values, dict) or not all(_is_number(v) for v in values.values()):
            raise ValueError(f"{side!r} has {group} that are not numbers by name")
    for absent in (scores.get(k, []) for k in ("missing", visdoc.MISSING, mmeb_v2_video.MISSING)):
        if not isinstance(absent, list) or not all(isinstance(name, str) for name in absent):
            raise ValueError(f"{side!r} has missing datasets that are no names")
    if "retrieval" in scores:
        _check_retrieval(side, scores["retrieval"])
    _check_captions(side, scores.get("captions", {}))
    views = scores.get("views", {})
    if not isinstance(views, dict):
        raise ValueError(f"{side!r} has views that are no scores by name")
    for name, of_view in views.items():
        _check_side(side, of_view if isinstance(of_view, dict) else None)
        if "views" in of_view:
            raise ValueError(f"{side!r} has views of its view {name!r}")
    for column in (*COLUMNS, "meta_mean", visdoc.NAME, *mmeb_v2_video.MEANS, "dimension"):
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
        names = ways_of(values)
        ways = [w if isinstance(w := values.get(way), dict) else {} for way in names]
        count = "videos" if "videos" in values else "images"
        needed = [*(w.get(n) for w in ways for n in RECALLS), values.get(count)]
        if not all(map(_is_number, [*needed, values.get("captions")])):
            of = ", ".join((*names, *RECALLS, count, "captions"))
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
