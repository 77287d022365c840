"""Evaluation results on disk: rankings for a report, and results of single tasks."""

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unime_jax import files
from unime_jax.batch import Item
from unime_jax.evaluation.benchmarks.composition_rules import RuleResult
from unime_jax.evaluation.encoding.item_table import bare_item
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.tasks.captions import CaptionsResult
from unime_jax.evaluation.tasks.clustering import ClusteringResult
from unime_jax.evaluation.tasks.composition import SubsetResult
from unime_jax.evaluation.tasks.distillation import Agreement
from unime_jax.evaluation.tasks.retrieval import RetrievalResult

# Of one task.
Result = (
    DatasetResult
    | RetrievalResult
    | SubsetResult
    | RuleResult
    | CaptionsResult
    | ClusteringResult
    | Agreement
)


def save_results(
    path: files.Path,
    results: Mapping[str, DatasetResult],
    sets: Mapping[str, RetrievalResult] | None = None,
) -> None:
    """Writes results to one .npz (no pickle), so that a report can be rebuilt later.

    `results` are of MMEB's datasets, `sets` of retrieval; a name may be in both.
    """
    _write(path, *_several([*results.values(), *(sets or {}).values()]))


def load_results(path: files.Path) -> dict[str, DatasetResult]:
    """Reads MMEB's datasets from the file of `save_results`."""
    return {
        head["name"]: DatasetResult(head["name"], tuple(head["ids"]), _items(head), **arrays)
        for head, arrays in _parted(*_read(path))
        if "corpus" not in head
    }


def load_sets(path: files.Path) -> dict[str, RetrievalResult]:
    """Reads retrieval sets from the file of `save_results`."""
    return _retrievals(*_read(path))


def save_result(path: files.Path, result: Result) -> None:
    """Writes the result of one task to an .npz (no pickle)."""
    if isinstance(result, DatasetResult):
        save_results(path, {result.name: result})
    elif isinstance(result, RetrievalResult):
        save_results(path, {}, {result.name: result})
    elif isinstance(result, SubsetResult):
        _write(path, {"subset": result.name}, _arrays(result))
    elif isinstance(result, RuleResult):
        names = ("set", "subset", "rule", "groups")
        about = {name: getattr(result, name) for name in names}
        _write(path, {"composition": about}, _arrays(result))
    elif isinstance(result, CaptionsResult):
        heads, arrays = _several(list(result.ways.values()))
        arrays["captions"] = result.captions
        about = {"captions": result.name, "medium": result.medium, "ways": heads}
        _write(path, about, arrays)
    elif isinstance(result, ClusteringResult):
        _write(path, {"clustering": dataclasses.asdict(result)}, {})
    else:
        _write(path, {"agreement": result}, {})


def load_result(path: files.Path) -> Result:
    """Reads the file of `save_result`."""
    head, arrays = _read(path)
    if isinstance(head, dict) and "agreement" in head:
        return Agreement(kl=head["agreement"]["kl"], overlap=head["agreement"]["overlap"])
    if isinstance(head, dict) and "composition" in head:
        about = head["composition"]
        groups = tuple(about["groups"])
        return RuleResult(about["set"], about["subset"], about["rule"], groups=groups, **arrays)
    if isinstance(head, dict) and "clustering" in head:
        return ClusteringResult(**head["clustering"])
    if isinstance(head, dict) and "captions" in head:
        captions, ways = arrays.pop("captions"), _retrievals(head["ways"], arrays)
        t2i, i2t = ways.values()
        return CaptionsResult(head["captions"], captions, t2i, i2t, head.get("medium", "image"))
    if isinstance(head, dict):
        return SubsetResult(head["subset"], **arrays)
    of_mmeb = list(load_results(path).values())
    return of_mmeb[0] if of_mmeb else next(iter(load_sets(path).values()))


def _several(
    results: Sequence[DatasetResult | RetrievalResult],
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Heads of several results, and their arrays by number and name."""
    arrays: dict[str, np.ndarray] = {}
    heads = []
    for number, result in enumerate(results):
        items = [item.key for item in result.items]
        about: dict[str, Any] = {"name": result.name, "ids": result.ids, "items": items}
        corpus = {"corpus": result.candidates} if isinstance(result, RetrievalResult) else {}
        heads.append(about | corpus)
        arrays |= {f"{number}.{name}": value for name, value in _arrays(result).items()}
    return heads, arrays


def _parted(
    heads: Sequence[dict[str, Any]], arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """The head and the arrays of each result of `_several`."""
    for number, head in enumerate(heads):
        start = f"{number}."
        own = {key.removeprefix(start): v for key, v in arrays.items() if key.startswith(start)}
        yield head, own


def _retrievals(
    heads: Sequence[dict[str, Any]], arrays: Mapping[str, np.ndarray]
) -> dict[str, RetrievalResult]:
    """Retrieval results among those of `_several`, by name; `ndcg_5` is NaN where it is absent."""
    retrievals = {}
    for head, own in _parted(heads, arrays):
        if "corpus" in head:
            own.setdefault("ndcg_5", np.full(len(head["ids"]), np.nan))  # of an earlier version
            name, ids = head["name"], tuple(head["ids"])
            retrievals[name] = RetrievalResult(name, ids, _items(head), head["corpus"], **own)
    return retrievals


def _items(head: Mapping[str, Any]) -> tuple[Item, ...]:
    return tuple(bare_item(key) for key in head["items"])


def _arrays(result: Any) -> dict[str, np.ndarray]:
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _write(path: files.Path, head: Any, arrays: Mapping[str, np.ndarray]) -> None:
    named = {**arrays, "head": np.frombuffer(json.dumps(head).encode(), np.uint8)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **named)
    files.write_whole(path, buffer.getvalue())


def _read(path: files.Path) -> tuple[Any, dict[str, np.ndarray]]:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        arrays = dict(file)
    return json.loads(arrays.pop("head").tobytes()), arrays
