"""Rules of the compositional benchmarks: named scores from cosines of images with captions.

Each benchmark publishes its own; docs/evaluation.md names the source of every one.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32


@dataclasses.dataclass(frozen=True)
class Score:
    """A score in percent.

    Attributes:
      rows: that it is a share of; 0: it is a mean of shares, which has no interval by rows.
      chance: percent that guessing reaches.
    """

    percent: float
    rows: int
    chance: float


@dataclasses.dataclass(frozen=True, eq=False)
class RuleResult:
    """Cosines of the rows of one subset of a benchmark set.

    Attributes:
      cosines: of each image with each caption.
      groups: of each row, for means over groups; "": the row is in none.
      caption_cosines: of each caption with each caption, where the rule asks for them.
      right: which captions are true of the image, where the rule asks for labels.
      counted: for which captions the image counts, likewise.
    """

    set: str
    subset: str
    rule: str
    cosines: Float32[np.ndarray, "rows images captions"]
    groups: tuple[str, ...]
    caption_cosines: Float32[np.ndarray, "rows captions captions"] | None = None
    right: Bool[np.ndarray, "rows captions"] | None = None
    counted: Bool[np.ndarray, "rows captions"] | None = None


ByName = dict[str, Score]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One benchmark's rule.

    Attributes:
      images: of each row.
      captions: of each row; 0: two or more, all rows alike.
      subset_scores: scores of one subset; the name "" stands for the subset itself.
      set_scores: further scores of several subsets.
      between_captions: whether it needs cosines of captions with captions.
      labelled: whether rows say which captions are right, and which count.
    """

    images: int
    captions: int
    subset_scores: Callable[[RuleResult], ByName]
    set_scores: Callable[[Sequence[RuleResult]], ByName]
    between_captions: bool = False
    labelled: bool = False


def caption_above(cosines: Float32[np.ndarray, "rows 1 2"]) -> Bool[np.ndarray, " rows"]:
    """The first caption scores strictly higher; a tie is wrong (SugarCrepe, ARO)."""
    return cosines[:, 0, 0] > cosines[:, 0, 1]


def caption_first(cosines: Float32[np.ndarray, "rows 1 captions"]) -> Bool[np.ndarray, " rows"]:
    """No caption scores higher than the first; a tie is right (mteb's text_acc, ARO's orders)."""
    return np.argmax(cosines[:, 0], axis=1) == 0


def both_captions(cosines: Float32[np.ndarray, "rows 2 2"]) -> Bool[np.ndarray, " rows"]:
    """Each image is strictly closer to its caption than to the other one (Winoground's text)."""
    return (cosines[:, 0, 0] > cosines[:, 0, 1]) & (cosines[:, 1, 1] > cosines[:, 1, 0])


def both_images(cosines: Float32[np.ndarray, "rows 2 2"]) -> Bool[np.ndarray, " rows"]:
    """Each caption is strictly closer to its image than to the other one (Winoground's image)."""
    return (cosines[:, 0, 0] > cosines[:, 1, 0]) & (cosines[:, 1, 1] > cosines[:, 0, 1])


def positives_above(cosines: Float32[np.ndarray, "rows 1 3"]) -> Bool[np.ndarray, " rows"]:
    """Both positive captions score strictly higher than the negative (SugarCrepe++'s ITT)."""
    return np.min(cosines[:, 0, :2], axis=1) > cosines[:, 0, 2]


def positives_together(cosines: Float32[np.ndarray, "rows 3 3"]) -> Bool[np.ndarray, " rows"]:
    """The positives are strictly closer to each other than to the negative (SugarCrepe++'s TOT)."""
    return cosines[:, 0, 1] > np.maximum(cosines[:, 0, 2], cosines[:, 1, 2])


def average_precision(
    scores: Float32[np.ndarray, " images"], right: Bool[np.ndarray, " images"]
) -> float:
    """Precision at each distinct score, weighted by the recall it adds; at least one is right.

    The same as scikit-learn's and torchmetrics'.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(right[order])[ends]
    return float(np.sum(np.diff(hits, prepend=0) * (hits / (ends + 1))) / hits[-1])


def group_mean(correct: Bool[np.ndarray, " rows"], groups: Sequence[str]) -> float | None:
    """Unweighted mean over groups of the percent of their rows; None without groups."""
    named = np.array(groups)
    shares = [correct[named == group].mean() for group in np.unique(named[named != ""])]
    return 100.0 * float(np.mean(shares)) if shares else None


def kind_means(percent: Mapping[str, float]) -> dict[str, float]:
    """Unweighted means over the subsets of a kind: replace_obj, replace_att, ... -> replace."""
    kinds: dict[str, list[float]] = {}
    for name, value in percent.items():
        kinds.setdefault(name.partition("_")[0], []).append(value)
    return {kind: sum(values) / len(values) for kind, values in kinds.items()}


def named_scores(results: Iterable[RuleResult]) -> ByName:
    """All scores of benchmark sets, as "<set>/<subset>/<score>"; a single subset is not named."""
    sets: dict[str, list[RuleResult]] = {}
    for result in results:
        sets.setdefault(result.set, []).append(result)
    scores: ByName = {}
    for name, subsets in sets.items():
        for result in subsets:
            part = result.subset if len(subsets) > 1 else ""
            for score, value in RULES[result.rule].subset_scores(result).items():
                scores["/".join(filter(None, (name, part, score)))] = value
        for rule in dict.fromkeys(result.rule for result in subsets):
            alike = [result for result in subsets if result.rule == rule]
            further = RULES[rule].set_scores(alike) if len(alike) > 1 else {}
            scores |= {f"{name}/{score}": value for score, value in further.items()}
    return scores


def _share(correct: Bool[np.ndarray, " rows"], chance: float) -> Score:
    return Score(100.0 * float(np.mean(correct)), len(correct), chance)


def _sugarcrepe(result: RuleResult) -> ByName:
    return {"": _share(caption_above(result.cosines), 50.0)}


def _sugarcrepe_set(results: Sequence[RuleResult]) -> ByName:
    """Means over replace, swap and add, of subsets and of rows, and mteb's accuracy of all rows."""
    correct = {result.subset: caption_above(result.cosines) for result in results}
    macro = kind_means({name: 100.0 * float(np.mean(value)) for name, value in correct.items()})
    scores: ByName = {}
    for kind, percent in macro.items():
        rows = [value for name, value in correct.items() if name.partition("_")[0] == kind]
        if len(rows) > 1:
            scores[f"{kind}_macro"] = Score(percent, 0, 50.0)
            scores[f"{kind}_pooled"] = _share(np.concatenate(rows), 50.0)
    first = [caption_first(result.cosines) for result in results]
    return scores | {"text_acc": _share(np.concatenate(first), 50.0)}


def _text_acc(result: RuleResult) -> ByName:
    captions = result.cosines.shape[2]
    return {"text_acc": _share(caption_first(result.cosines), 100.0 / captions)}


def _aro(result: RuleResult) -> ByName:
    """mteb's accuracy and, where rows have groups, ARO's mean over relations or attributes."""
    scores = _text_acc(result)
    macro = group_mean(caption_above(result.cosines), result.groups)
    if macro is not None:
        scores["macro"] = Score(macro, 0, 50.0)
    return scores


def _winoground(result: RuleResult) -> ByName:
    text, image = both_captions(result.cosines), both_images(result.cosines)
    return {
        "text": _share(text, 25.0),
        "image": _share(image, 25.0),
        "group": _share(text & image, 100.0 / 6),
    }


def _cola(result: RuleResult) -> ByName:
    """The first is COLA's accuracy; the others are Winoground's of the same cosines."""
    text, image = both_captions(result.cosines), both_images(result.cosines)
    return {
        "text_to_image": _share(image, 25.0),
        "image_to_text": _share(text, 25.0),
        "group": _share(text & image, 100.0 / 6),
    }


def _cola_map(result: RuleResult) -> ByName:
    """Mean over captions of the average precision of their images, of those that count.

    Captions that are true of none of these are left out.
    """
    assert result.right is not None and result.counted is not None
    precision, share = [], []
    for caption in np.flatnonzero((result.right & result.counted).any(axis=0)):
        rows = result.counted[:, caption]
        right = result.right[rows, caption]
        precision.append(average_precision(result.cosines[rows, 0, caption], right))
        share.append(right.mean())
    if not precision:
        raise ValueError(f"set {result.set!r}: no caption is true of an image that counts for it")
    return {"map": Score(100.0 * float(np.mean(precision)), 0, 100.0 * float(np.mean(share)))}


def _sugarcrepe_pp(result: RuleResult) -> ByName:
    assert result.caption_cosines is not None
    return {
        "itt": _share(positives_above(result.cosines), 100.0 / 3),
        "tot": _share(positives_together(result.caption_cosines), 100.0 / 3),
    }


def _sugarcrepe_pp_set(results: Sequence[RuleResult]) -> ByName:
    """Means over subsets and over rows."""
    scores: ByName = {}
    for name in ("itt", "tot"):
        of_subsets = [_sugarcrepe_pp(result)[name] for result in results]
        rows = [score.rows for score in of_subsets]
        percent = [score.percent for score in of_subsets]
        scores[f"{name}_macro"] = Score(float(np.mean(percent)), 0, 100.0 / 3)
        pooled = float(np.average(percent, weights=rows))
        scores[f"{name}_pooled"] = Score(pooled, sum(rows), 100.0 / 3)
    return scores


def _nothing(results: Sequence[RuleResult]) -> ByName:
    return {}


RULES: Mapping[str, Rule] = {
    "sugarcrepe": Rule(1, 2, _sugarcrepe, _sugarcrepe_set),
    "text_acc": Rule(1, 0, _text_acc, _nothing),
    "aro": Rule(1, 2, _aro, _nothing),
    "winoground": Rule(2, 2, _winoground, _nothing),
    "cola": Rule(2, 2, _cola, _nothing),
    "cola_map": Rule(1, 0, _cola_map, _nothing, labelled=True),
    "sugarcrepe_pp": Rule(1, 3, _sugarcrepe_pp, _sugarcrepe_pp_set, between_captions=True),
}
