"""Report on training pairs: what `scan` and `repeats` say, as JSON and as a text."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines.validate.repeats import repeats
from data_pipelines.validate.scan import Finding, Opened, Size, scan
from unime_jax.backbones import Backbone, open_backbone
from unime_jax.data import bucket_choice
from unime_jax.data.pairs import open_pairs
from unime_jax.data.settings import check_keys
from unime_jax.data.strange_texts import shown
from unime_jax.training.progress import Progress

KINDS = {  # of problems, in the order of the report
    "unusable_rows": "rows that training would leave out",
    "tiny_images": "tiny images",
    "duplicate_pairs": "duplicate pairs",
    "queries_that_are_targets": "queries that are also targets",
    "queries_with_several_positives": "queries with several positives, each a negative of the rest",
    "positives_among_negatives": "positives among their own negatives",
    "cut_texts": "rows with a text that is cut",
    "markers_without_image": "rows with image markers without an image",
}
QUANTILES = {"least": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "most": 1.0}
SHOWN = 5  # rows of a kind in the text


@dataclasses.dataclass(frozen=True)
class Options:
    """What is looked at.

    Attributes:
      columns: as `data.columns`.
      backbone: a folder or hub id; "": lengths are left out.
      max_length: the most tokens of a row; None: as many as the backbone takes.
      sample: rows whose lengths are measured; None: all.
      seed: of that sample.
    """

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    backbone: str = ""
    max_length: int | None = None
    sample: int | None = None
    seed: int = 0


def validate(paths: Sequence[str], options: Options) -> dict[str, Any]:
    """The report on files, folders or globs; progress is shown on stderr.

    Raises:
      OSError, ValueError: data or backbone cannot be opened, or there are no rows.
    """
    check_keys(options.columns, "columns")
    sources = [
        Opened(path, name, rows)
        for path in paths
        for name, rows in open_pairs(path, options.columns).items()
    ]
    ends = np.cumsum([len(opened.rows) for opened in sources])
    total = int(ends[-1])
    if not total:
        raise ValueError(f"there are no rows in {', '.join(paths)}")
    backbone = None
    if options.backbone:
        backbone = open_backbone(options.backbone, max_length=options.max_length, weights=False)
    measured = np.zeros(total, np.bool_)
    if backbone is not None:
        size = total if options.sample is None else min(options.sample, total)
        generator = np.random.default_rng(options.seed)
        measured[generator.choice(total, size, replace=False, shuffle=False)] = True
    progress = Progress(total, 0, unit="row")
    try:
        preprocess = None if backbone is None else backbone.preprocess
        result = scan(sources, preprocess, measured, lambda done: progress.show(done, {}))
    finally:
        progress.close()

    def finding(number: int, reason: str) -> Finding:
        source = int(np.searchsorted(ends, number, side="right"))
        return sources[source].finding(
            number - int(ends[source]) + len(sources[source].rows), reason
        )

    repeated = repeats(result, finding)
    findings = result.findings
    report = {
        "files": [
            {"file": opened.file, "source": opened.name, "rows": len(opened.rows)}
            for opened in sources
        ],
        "rows": total,
        "usable_rows": int(result.usable.sum()),
        "queries": repeated.queries,
        "targets": repeated.targets,
        "problems": {
            kind: {
                "count": findings[kind].count,
                "rows": [row._asdict() for row in findings[kind].rows],
            }
            for kind in KINDS
            if findings[kind].count
        },
        "likely_false_negatives": {
            "same_target": repeated.same_target._asdict(),
            "same_query": repeated.same_query._asdict(),
        },
    }
    if backbone is not None:
        report["backbone"] = {
            "name": options.backbone,
            "max_length": backbone.preprocess.prompt.max_length,
            "measured_rows": int(measured.sum()),
            **_lengths(result.sizes, backbone),
        }
    return report


def _lengths(sizes: Counter[Size], backbone: Backbone) -> dict[str, Any]:
    """Quantiles of tokens and tiles, and buckets that fit."""
    if not sizes:
        return {}
    texts = Counter({size: count for size, count in sizes.items() if not size[1]})
    images = sizes - texts
    chosen = bucket_choice.chosen(
        np.repeat(np.array([*sizes]), [*sizes.values()], axis=0),
        patches=backbone.layout.patches,
        limit=backbone.preprocess.prompt.max_length,
    )
    return {
        "texts": {"items": texts.total(), "tokens": _quantiles(texts, 0)},
        "with_images": {
            "items": images.total(),
            "tokens": _quantiles(images, 0),
            "tiles": _quantiles(images, 1),
        },
        "buckets": [{"tokens": bucket.tokens, "tiles": bucket.tiles} for bucket in chosen],
    }


def _quantiles(sizes: Counter[Size], axis: int) -> dict[str, int]:
    """Of tokens, axis 0, or tiles, axis 1; {} of no items."""
    numbers: Counter[Size] = Counter()
    for size, count in sizes.items():
        numbers[size[axis], 0] += count
    if not numbers:
        return {}
    ranked = _ranked(numbers, np.array([*QUANTILES.values()]))[:, 0].tolist()
    return dict(zip(QUANTILES, ranked, strict=True))


def _ranked(sizes: Counter[Size], shares: Any) -> Int[np.ndarray, "n 2"]:
    """The sizes at these shares of all items, in order."""
    ordered = sorted(sizes)
    ends = np.cumsum([sizes[size] for size in ordered])
    ranks = np.rint(shares * (ends[-1] - 1))
    return np.array(ordered)[np.searchsorted(ends, ranks, side="right")]


def text(report: Mapping[str, Any]) -> str:
    """The report for people: counts, and the first rows of each kind of problem."""
    return "\n".join(map(shown, _lines(report))) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    for file in report["files"]:
        yield f"{file['file']}, source {file['source']}: {file['rows']} rows"
    yield (
        f"{report['usable_rows']} of {report['rows']} rows can be used: "
        f"{report['queries']} different queries, {report['targets']} different targets"
    )
    for kind, problem in report["problems"].items():
        yield f"{KINDS[kind]}: {problem['count']}"
        for row in problem["rows"][:SHOWN]:
            id = f" (id {row['id']})" if row["id"] not in ("", row["row"]) else ""
            image = f", image {row['image']}" if row["image"] else ""
            yield f"  {row['file']}, {row['row']}{id}{image}: {row['reason']}"
        if problem["count"] > SHOWN:
            yield f"  and {problem['count'] - SHOWN} more"
    false = report["likely_false_negatives"]
    for name, what in (
        ("same_target", "rows whose target another query has, too (loss.mask_same_target)"),
        ("same_query", "rows whose query has another positive, too"),
    ):
        share = false[name]
        yield (
            f"likely false negatives, {what}: {share['rows']} ({share['of_rows']:.1%}), "
            f"{100 * share['of_negatives']:.2g}% of in-batch negatives"
        )
    if "backbone" in report:
        yield from _backbone_lines(report["backbone"])
    if not report["problems"]:
        yield "no problems"


def _backbone_lines(backbone: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"under {backbone['name']}, at most {backbone['max_length']} tokens, "
        f"{backbone['measured_rows']} rows measured:"
    )
    for name, what in (("texts", "texts"), ("with_images", "items with images")):
        group = backbone.get(name, {"items": 0})
        if group["items"]:
            listed = "; ".join(
                f"{unit}: " + ", ".join(f"{n} {key}" for key, n in group[unit].items())
                for unit in ("tokens", "tiles")
                if unit in group
            )
            yield f"  {group['items']} {what}; {listed}"
    if "buckets" in backbone:
        buckets = ", ".join(
            f"Bucket(tokens={bucket['tokens']}, tiles={bucket['tiles']})"
            for bucket in backbone["buckets"]
        )
        yield f"  --config.data.buckets='({buckets},)'"


def as_json(report: Mapping[str, Any]) -> str:
    """The report for programs."""
    return json.dumps(report, indent=2) + "\n"
