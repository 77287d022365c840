"""MMEB-V2's mean over its 24 visual-document sets, which is given only where all of them are."""

from collections.abc import Mapping
from typing import Any

NAME, MISSING = "VisDoc", "visdoc_missing"  # in evaluation.json
METRIC = "nDCG@5"
SETS: tuple[str, ...] = tuple(
    f"visdoc_{family}_{name}"
    for family, names in {
        "vidore": "arxivqa docvqa infovqa tabfquad tatdqa shiftproject artificial_intelligence "
        "energy government_reports healthcare_industry",
        "vidore_v2": "esg_reports_human biomedical_lectures economics_reports esg_reports",
        "visrag": "arxivqa chartqa mp_docvqa slidevqa infovqa plotqa",
        "vidoseek": "page doc",
        "mmlongbench": "page doc",
    }.items()
    for name in names.split()
)


def mean(retrieval: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The mean nDCG@5 of `SETS`, or None with the names of those that are missing.

    {} where there is none of them. `retrieval` has the scores of sets by name.
    """
    missing = [name for name in SETS if name not in retrieval]
    if len(missing) == len(SETS):
        return {}
    if missing:
        return {NAME: None, MISSING: missing}
    return {NAME: sum(retrieval[name][METRIC] for name in SETS) / len(SETS)}


def notes(scores: Mapping[str, Any]) -> list[str]:
    """What belongs to the mean: of what it is, or what it lacks, and whose instructions."""
    if NAME not in scores:
        return []
    if scores[NAME] is None:
        absent = scores.get(MISSING) or []
        said = f"no mean; {len(absent)} of {len(SETS)} sets are missing: {', '.join(absent)}"
    else:
        said = f"{scores[NAME]:.1f}, the mean {METRIC} of MMEB-V2's {len(SETS)} sets"
    return [f"{NAME}: {said}", f"instructions: {scores.get('instructions')}"]
