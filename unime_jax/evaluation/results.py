"""Evaluation results on disk: rankings for a report, and results of single tasks."""

import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from unime_jax import files
from unime_jax.evaluation.item_table import bare_item
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.tasks.composition import SubsetResult
from unime_jax.evaluation.tasks.distillation import Agreement

Result = DatasetResult | SubsetResult | Agreement  # of one task


def save_results(path: files.Path, results: Mapping[str, DatasetResult]) -> None:
    """Writes results to one .npz (no pickle), so that a report can be rebuilt later."""
    arrays: dict[str, np.ndarray] = {}
    head = []
    for number, result in enumerate(results.values()):
        items = [item.key for item in result.items]
        head.append({"name": result.name, "ids": result.ids, "items": items})
        arrays |= {f"{number}.{name}": value for name, value in _arrays(result).items()}
    _write(path, head, arrays)


def load_results(path: files.Path) -> dict[str, DatasetResult]:
    """Reads the file of `save_results`."""
    heads, arrays = _read(path)
    results = {}
    for number, head in enumerate(heads):
        start = f"{number}."
        own = {key.removeprefix(start): v for key, v in arrays.items() if key.startswith(start)}
        items = tuple(bare_item(key) for key in head["items"])
        results[head["name"]] = DatasetResult(head["name"], tuple(head["ids"]), items, **own)
    return results


def save_result(path: files.Path, result: Result) -> None:
    """Writes the result of one task to an .npz (no pickle)."""
    if isinstance(result, DatasetResult):
        save_results(path, {result.name: result})
    elif isinstance(result, SubsetResult):
        _write(path, {"subset": result.name}, _arrays(result))
    else:
        _write(path, {"agreement": result}, {})


def load_result(path: files.Path) -> Result:
    """Reads the file of `save_result`."""
    head, arrays = _read(path)
    if isinstance(head, dict) and "agreement" in head:
        return Agreement(kl=head["agreement"]["kl"], overlap=head["agreement"]["overlap"])
    if isinstance(head, dict):
        return SubsetResult(head["subset"], **arrays)
    (result,) = load_results(path).values()
    return result


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
