"""MMEB-V2's video sets: hit@1 of each, whatever kind it is of, and means where all sets are there.

A set with candidates of its rows' own is of the kind mmeb, one whose videos are ranked against all
labels is of the kind retrieval, and one of captions has hit@1 as t2v R@1.
"""

from collections.abc import Mapping
from typing import Any

NAME, GROUP, MISSING = "Video", "video", "video_missing"  # in evaluation.json
SETS: Mapping[str, str] = {  # meta task by set
    f"mmeb_v2_{name}": meta
    for meta, names in {
        "V-CLS": "kinetics700 smthsmthv2 hmdb51 ucf101 breakfast",
        "V-QA": "mvbench videomme nextqa egoschema activitynetqa",
        "V-RET": "didemo msrvtt msvd vatex youcook2",
        "V-MRET": "qvhighlight charades_sta momentseeker",
    }.items()
    for name in names.split()
}
METAS: tuple[str, ...] = tuple(dict.fromkeys(SETS.values()))
MEANS: tuple[str, ...] = (*METAS, NAME)


def members(mean: str) -> list[str]:
    """The sets that a mean is of."""
    return [name for name, meta in SETS.items() if mean in (NAME, meta)]


def summary(
    hits: Mapping[str, float],
    retrieval: Mapping[str, Mapping[str, Any]],
    captions: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """hit@1 of the sets that are there, and `MEANS`; {} where there is none of them.

    A mean is None where any of its sets is missing; "video_missing" names all that are.

    Args:
      hits: hit@1 of sets of the kind mmeb, by name.
      retrieval, captions: scores of the sets of these kinds, as in evaluation.json.
    """
    every = {
        **{name: of["t2v"]["R@1"] for name, of in captions.items() if "t2v" in of},
        **{name: of["R@1"] for name, of in retrieval.items()},
        **hits,
    }
    found = {name: float(every[name]) for name in SETS if name in every}
    if not found:
        return {}
    scores: dict[str, Any] = {GROUP: found}
    for mean in MEANS:
        own = [found.get(name) for name in members(mean)]
        scores[mean] = None if None in own else sum(own) / len(own)  # type: ignore[arg-type]
    missing = [name for name in SETS if name not in found]
    return scores | ({MISSING: missing} if missing else {})


def notes(scores: Mapping[str, Any]) -> list[str]:
    """What belongs to the means: of what they are, or which sets they lack, and whose words."""
    if not scores.get(GROUP):
        return []
    if absent := scores.get(MISSING):
        said = (
            f"no mean; {len(absent)} of MMEB-V2's {len(SETS)} video sets are missing: "
            f"{', '.join(absent)}"
        )
    else:
        said = f"{scores[NAME]:.1f}, the mean hit@1 of MMEB-V2's {len(SETS)} video sets"
    return [f"{NAME}: {said}", f"instructions: {scores.get('instructions')}"]
