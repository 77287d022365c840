"""Headline numbers of an evaluation by view of its vectors, as the report and tables show them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unime_jax.evaluation.benchmarks import mmeb_v2_video
from unime_jax.evaluation.scores import WAYS
from unime_jax.evaluation.views import byte_count, parts_of


@dataclasses.dataclass(frozen=True)
class Line:
    """Headline numbers of one view; those of whole float32 vectors have the name "all".

    Attributes:
      dim: numbers of a vector; None: all, of which scores do not say how many they are.
      numbers: in percent, by name.
    """

    name: str
    dim: int | None
    precision: str
    numbers: Mapping[str, float]

    @property
    def bytes(self) -> int | None:
        """Of a stored vector."""
        return None if self.dim is None else byte_count(self.dim, self.precision)


def lines(scores: Mapping[str, Any]) -> list[Line]:
    """The whole vectors' numbers, then each view's; none without views."""
    views = scores.get("views") or {}
    width = scores.get("dimension")
    every = {"": scores, **views} if views else {}
    found = []
    for name, own in every.items():
        dim, precision = parts_of(name, 0)
        found.append(Line(name or "all", dim or width, precision, headline(own)))
    return found


def columns(of: Sequence[Line]) -> list[str]:
    """Names of the numbers that any line has, in their order."""
    return list(dict.fromkeys(name for line in of for name in line.numbers))


def headline(scores: Mapping[str, Any]) -> dict[str, float]:
    """One or two numbers of each kind of task, in percent.

    Means over MMEB's datasets, over MMEB-V2's video sets where all are there, over composition's
    subsets that belong to no benchmark set, over sets of captions, of images and of clips apart,
    and of clustering.
    """
    retrieval = scores.get("retrieval") or {}
    captions = list((scores.get("captions") or {}).values())
    subsets = [v for name, v in (scores.get("composition") or {}).items() if "/" not in name]
    numbers = {
        "hit@1": scores.get("All"),
        mmeb_v2_video.NAME: scores.get(mmeb_v2_video.NAME),
        "composition": _mean(subsets),
        "R@1": retrieval.get("R@1"),
        "nDCG@10": retrieval.get("nDCG@10"),
        **{
            f"{way} R@1": _mean([of[way]["R@1"] for of in captions if way in of])
            for ways in WAYS.values()
            for way in ways
        },
        "v-measure": _mean(list((scores.get("clustering") or {}).values())),
        "neighbours": (scores.get("distillation") or {}).get("overlap"),
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def text_table(scores: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a text table: a view each."""
    found = lines(scores)
    names = columns(found)
    widths = [max(7, len(name) + 2) for name in names]
    start = max([14, *(len(line.name) + 1 for line in found)])
    if not found:
        return
    heads = zip(names, widths, strict=True)
    yield f"{'numbers, bits':<{start}}  bytes" + "".join(f"{name:>{w}}" for name, w in heads)
    for line in found:
        size = "-" if line.bytes is None else f"{line.bytes:,}"
        cells = [f"{line.numbers[n]:.1f}" if n in line.numbers else "-" for n in names]
        own = "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        yield f"{line.name:<{start}}{size:>7}{own}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
