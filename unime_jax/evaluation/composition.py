"""SugarCrepe: does an image lie closer to its caption than to a minimally changed wrong one?

Prompts are arguments: a family embeds captions the way it was trained.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from unime_jax.evaluation import mmeb


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetResult:
    """Cosines of one subset's N images with their caption and with its negative."""

    name: str
    caption_score: Float32[np.ndarray, " rows"]
    negative_score: Float32[np.ndarray, " rows"]

    @property
    def accuracy(self) -> float:
        """Percent of rows whose caption scores strictly higher; a tie is wrong."""
        return 100.0 * float(np.mean(self.caption_score > self.negative_score))


def evaluate(
    subsets: Mapping[str, Iterable[Mapping[str, Any]]],
    encode: mmeb.Encode,
    images: mmeb.Images,
    *,
    image_text: str,
    caption_text: str,
) -> dict[str, SubsetResult]:
    """Scores each subset's rows (`image_path`, `caption`, `negative_caption`).

    Args:
      subsets: rows by subset name.
      encode: items -> float [n, D], called once with all distinct items of all subsets.
      images: encoded bytes of an image path.
      image_text: text of the image item, with MMEB's `<|image_1|>`.
      caption_text: text of a caption item; `{caption}` stands for the caption.

    Raises:
      ValueError: no rows, a missing column or image, or a vector without a direction.
    """
    if "{caption}" not in caption_text:
        raise ValueError(f"caption_text {caption_text!r} has no {{caption}} to be replaced")
    keys: dict[str, list[tuple[mmeb.Key, mmeb.Key, mmeb.Key]]] = {}
    for name, rows in subsets.items():
        keys[name] = [
            _keys(row, f"subset {name!r}, row {n}", image_text, caption_text)
            for n, row in enumerate(rows)
        ]
        if not keys[name]:
            raise ValueError(f"subset {name!r} has no rows; leave it out or fetch its data again")
    wanted = (
        (f"subset {name!r}, row {n}", key)
        for name, triples in keys.items()
        for n, triple in enumerate(triples)
        for key in triple
    )
    index, _, vectors = mmeb.encode_items(wanted, encode, images)
    results = {}
    for name, triples in keys.items():
        numbers = [[index[key] for key in triple] for triple in triples]
        scores = np.array([mmeb.cosine(vectors[i], vectors[[c, n]]) for i, c, n in numbers])
        results[name] = SubsetResult(name, scores[:, 0], scores[:, 1])
    return results


def kind_means(percent: Mapping[str, float]) -> dict[str, float]:
    """Unweighted means over the subsets of a kind: replace_obj, replace_att, ... -> replace."""
    kinds: dict[str, list[float]] = {}
    for name, value in percent.items():
        kinds.setdefault(name.partition("_")[0], []).append(value)
    return {kind: sum(values) / len(values) for kind, values in kinds.items()}


def _keys(
    row: Mapping[str, Any], where: str, image_text: str, caption_text: str
) -> tuple[mmeb.Key, mmeb.Key, mmeb.Key]:
    columns = ("image_path", "caption", "negative_caption")
    if missing := [column for column in columns if not mmeb.text_of(row.get(column))]:
        raise ValueError(f"{where}: {', '.join(missing)} is missing or empty")
    path, caption, negative = (mmeb.text_of(row[column]) for column in columns)
    return (
        (image_text, path),
        (caption_text.replace("{caption}", caption), ""),
        (caption_text.replace("{caption}", negative), ""),
    )
