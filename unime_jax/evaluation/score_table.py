"""Scores of an evaluation as text tables: before and after, with intervals and changes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unime_jax.data.strange_texts import shown
from unime_jax.evaluation import view_scores
from unime_jax.evaluation.benchmarks import mmeb_v2_video, visdoc
from unime_jax.evaluation.scores import (
    COLUMNS,
    RETRIEVAL,
    Scores,
    composition_groups,
    flat_recalls,
    notes,
    recall_columns,
    retrieval_sets,
)

WIDTH = 7  # columns of a table of a composition set; it goes on in another one


def table(before: Scores | None, after: Scores | None, last_name: str = "after") -> str:
    """A text table CLS VQA RET VG IND OOD All, and those of the other kinds of scores.

    Retrieval and captions have the 95 % interval of the last line of scores, and a table for each
    of several sets. `last_name` begins the lines of `after`. The last table is by view of the last
    scores' vectors.
    """
    blocks = []
    if any((scores or {}).get("datasets") for scores in (before, after)):
        block = _block("hit@1 %", COLUMNS, before, after, last_name)
        blocks.append("\n".join([block, *notes(after or before or {})]))
    blocks += _video_blocks(before, after, last_name)
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
    if by_view := list(view_scores.text_table(after or before or {})):
        blocks.append("\n".join(by_view))
    return "\n\n".join(blocks)


def _video_blocks(before: Scores | None, after: Scores | None, last_name: str) -> Iterator[str]:
    """Tables of MMEB-V2's video sets: the means, then the sets of each meta task."""
    first, last = ((scores or {}).get(mmeb_v2_video.GROUP) or {} for scores in (before, after))
    if not first and not last:
        return
    block = _block("video hit@1 %", mmeb_v2_video.MEANS, before, after, last_name)
    yield "\n".join([block, *mmeb_v2_video.notes(after or before or {})])
    for meta in mmeb_v2_video.METAS:
        columns = [name for name in mmeb_v2_video.members(meta) if name in first or name in last]
        if columns:
            yield _block(f"{meta} %", columns, first, last, last_name)


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
        count = "videos" if "videos" in of else "images"
        title = f"{shown(name)}: {of[count]} {count}, {of['captions']} captions"
        columns = recall_columns(of)
        yield f"{title}\n" + _block(
            "captions %", columns, a, b, last_name, intervals=intervals or None
        )


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
