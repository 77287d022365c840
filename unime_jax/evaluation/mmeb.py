"""MMEB protocol: encode every distinct item once, rank each row's own candidates, keep the scores.

Models are left out (an `encode` function is handed in), so are averages (scores.py) and drawing
(report.py). Evaluation data must be complete: nothing is skipped, every gap is an error.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32

from unime_jax.batch import Item
from unime_jax.data.images import ImageError, decode
from unime_jax.data.strange_texts import text_fault

Encode = Callable[[Sequence[Item]], np.ndarray]  # n items -> float [n, D]
Images = Callable[[str], bytes]  # path -> encoded bytes
Key = tuple[str, str]  # Item.key: text and path, as all images of an evaluation are in one place
ParsedRow = tuple[str, Key, list[Key]]  # id, query, candidates with the gold first

TOP = 5  # candidates of a row that are kept for display
ALIGNED = 32  # pairs of a dataset whose full similarity matrix is kept


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetResult:
    """How one dataset's N rows were ranked. Candidate scores are cosines.

    `query`, `gold` and `top` are numbers in `items`, which carry no image bytes. `wrong` means any
    candidate that is not the gold item; a row without one has NaN for `hardest` and `easiest`.
    """

    name: str
    ids: tuple[str, ...]
    items: tuple[Item, ...]
    query: Int32[np.ndarray, " rows"]
    gold: Int32[np.ndarray, " rows"]
    candidates: Int32[np.ndarray, " rows"]  # how many the row had
    rank: Int32[np.ndarray, " rows"]  # candidates scored above the gold; 0 is a hit
    tied: Bool[np.ndarray, " rows"]  # more than one candidate holds the best score
    gold_score: Float32[np.ndarray, " rows"]
    hardest: Float32[np.ndarray, " rows"]  # best wrong candidate
    easiest: Float32[np.ndarray, " rows"]  # worst wrong candidate
    top: Int32[np.ndarray, "rows 5"]  # best candidates in order, -1 where the row has fewer
    top_score: Float32[np.ndarray, "rows 5"]
    aligned: Float32[np.ndarray, "pairs pairs"]  # first rows with distinct sides: query i . gold j

    @property
    def hit_at_1(self) -> float:
        """Percent of rows won by the gold; a tie goes to the lowest index, which is the gold."""
        return 100.0 * float(np.mean(self.rank == 0))

    @property
    def strict_hit_at_1(self) -> float:
        """Percent of rows whose gold beats every other candidate: ties lose."""
        return 100.0 * float(np.mean((self.rank == 0) & ~self.tied))


def evaluate_dataset(
    name: str, rows: Iterable[Mapping[str, Any]], encode: Encode, images: Images
) -> DatasetResult:
    """Ranks one dataset; see `evaluate`."""
    return evaluate({name: rows}, encode, images)[name]


def evaluate(
    datasets: Mapping[str, Iterable[Mapping[str, Any]]], encode: Encode, images: Images
) -> dict[str, DatasetResult]:
    """Ranks each row's candidates by cosine with its query (VLM2Vec v1 `eval.py`).

    Args:
      datasets: rows by dataset name. A row has `qry_text`, `qry_img_path`, `tgt_text` [K],
        `tgt_img_path` [K] with the gold at index 0, and optionally `id`; K may differ by row.
      encode: items -> float [n, D], called once with all distinct items of all `datasets`. Vectors
        are normalised again here, as the original does.
      images: encoded bytes of an image path; may raise KeyError or OSError where there is none.

    Raises:
      ValueError: no rows, a malformed row, a missing or corrupt image, or a vector without a
        direction (zero, infinite or NaN). The message names dataset and row, or the item.
    """
    parsed = {name: _parse_rows(name, rows) for name, rows in datasets.items()}
    wanted = (
        (f"dataset {name!r}, row {number} (id {row_id!r})", key)
        for name, rows in parsed.items()
        for number, (row_id, query, candidates) in enumerate(rows)
        for key in (query, *candidates)
    )
    index, items, vectors = encode_items(wanted, encode, images)
    return {name: _rank(name, rows, index, items, vectors) for name, rows in parsed.items()}


def encode_items(
    wanted: Iterable[tuple[str, Key]], encode: Encode, images: Images
) -> tuple[dict[Key, int], list[Item], Float32[np.ndarray, "n D"]]:
    """Encodes every distinct key of `wanted` (where it stands, key) in one call.

    Returns key -> number, the items without their bytes, and unit vectors in that order.
    """
    loaded: dict[str, bytes] = {}
    index: dict[Key, int] = {}
    items: list[Item] = []
    for where, (text, path) in wanted:
        if (text, path) in index:
            continue
        if fault := text_fault(text):
            raise ValueError(f"{where}: {fault}")
        if path and path not in loaded:
            loaded[path] = _load_image(path, images, where)
        index[text, path] = len(items)
        items.append(Item(text, path, loaded[path] if path else None))
    vectors = np.asarray(encode(items)) if items else np.zeros((0, 0), np.float32)
    if vectors.ndim != 2 or len(vectors) != len(items):
        raise ValueError(
            f"encode returned shape {vectors.shape} for {len(items)} items; expected [n, D]"
        )
    bare = [Item(item.text, item.image_path) for item in items]
    return index, bare, _normalise(vectors, bare)


def cosine(
    query: Float32[np.ndarray, " D"], candidates: Float32[np.ndarray, "M D"]
) -> Float32[np.ndarray, " M"]:
    """Cosine of unit vectors, summed in float64 and rounded once.

    BLAS may sum equal rows in different orders; without the rounding, exact copies of the gold
    could differ from it in the last bit and decide the row.
    """
    return (candidates.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)


def save_results(path: str | os.PathLike[str], results: Mapping[str, DatasetResult]) -> None:
    """Writes results to one .npz (no pickle), so that a report can be rebuilt later."""
    arrays: dict[str, np.ndarray] = {}
    head = []
    for number, result in enumerate(results.values()):
        items = [item.key for item in result.items]
        head.append({"name": result.name, "ids": result.ids, "items": items})
        for field in dataclasses.fields(result):
            if isinstance(value := getattr(result, field.name), np.ndarray):
                arrays[f"{number}.{field.name}"] = value
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)


def load_results(path: str | os.PathLike[str]) -> dict[str, DatasetResult]:
    """Reads what `save_results` wrote."""
    with np.load(Path(path), allow_pickle=False) as file:
        arrays = dict(file)
    results = {}
    for number, head in enumerate(json.loads(arrays.pop("head").tobytes())):
        start = f"{number}."
        own = {key.removeprefix(start): v for key, v in arrays.items() if key.startswith(start)}
        items = tuple(Item(*key) for key in head["items"])
        results[head["name"]] = DatasetResult(head["name"], tuple(head["ids"]), items, **own)
    return results


def _parse_rows(name: str, rows: Iterable[Mapping[str, Any]]) -> list[ParsedRow]:
    parsed = [_parse_row(row, f"dataset {name!r}, row {n}", n) for n, row in enumerate(rows)]
    if not parsed:
        raise ValueError(f"dataset {name!r} has no rows; leave it out or fetch its data again")
    return parsed


def _parse_row(row: Mapping[str, Any], where: str, number: int) -> ParsedRow:
    columns = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
    if missing := [column for column in columns if column not in row]:
        raise ValueError(f"{where}: no column {', '.join(missing)}; MMEB-eval rows have {columns}")
    texts, paths = row["tgt_text"], row["tgt_img_path"]
    if isinstance(texts, str | bytes) or isinstance(paths, str | bytes):
        raise ValueError(f"{where}: tgt_text and tgt_img_path must be lists, gold first")
    if len(texts) != len(paths):
        raise ValueError(f"{where}: {len(texts)} tgt_text but {len(paths)} tgt_img_path")
    if len(texts) == 0:
        raise ValueError(f"{where}: no candidates; index 0 must hold the gold")
    query = text_of(row["qry_text"]), text_of(row["qry_img_path"])
    candidates = [(text_of(t), text_of(p)) for t, p in zip(texts, paths, strict=True)]
    return text_of(row.get("id", number)), query, candidates


def text_of(value: Any) -> str:
    """TFDS hands strings over as UTF-8 bytes; None is MMEB's other way to say no image."""
    if isinstance(value, bytes):
        return value.decode()
    return "" if value is None else str(value)


def _load_image(path: str, images: Images, where: str) -> bytes:
    try:
        data = images(path)
    except ImageError as error:
        raise ValueError(f"{where}: image {path!r}: {error}") from error
    except (KeyError, OSError) as error:
        raise ValueError(f"{where}: image {path!r} has no file; fetch the images again") from error
    if not data:
        raise ValueError(f"{where}: image {path!r} has no file or an empty one; fetch it again")
    try:
        decode(data)  # in full: a truncated file opens all the same
    except ImageError as error:
        raise ValueError(
            f"{where}: image {path!r} cannot be decoded ({error}); fetch it again"
        ) from error
    return data


def _normalise(vectors: np.ndarray, items: Sequence[Item]) -> Float32[np.ndarray, "n D"]:
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(items)} embeddings are zero or not finite, so they have no "
            f"cosine; the first belongs to {str(items[bad[0]])[:500]}"
        )
    return (vectors / norms[:, None]).astype(np.float32)


def _rank(
    name: str,
    rows: list[ParsedRow],
    index: Mapping[Key, int],
    items: Sequence[Item],
    vectors: Float32[np.ndarray, "n D"],
) -> DatasetResult:
    count = len(rows)
    query, gold, candidates, rank = np.zeros((4, count), np.int32)
    tied = np.zeros(count, bool)
    gold_score, hardest, easiest = np.full((3, count), np.nan, np.float32)
    top = np.full((count, TOP), -1, np.int32)
    top_score = np.full((count, TOP), np.nan, np.float32)
    for n, (_, query_key, candidate_keys) in enumerate(rows):
        query[n] = index[query_key]
        own = np.array([index[key] for key in candidate_keys], np.int32)
        scores = cosine(vectors[query[n]], vectors[own])
        gold[n], gold_score[n], candidates[n] = own[0], scores[0], len(own)
        rank[n] = np.sum(scores > scores[0])
        tied[n] = np.sum(scores == scores.max()) > 1
        wrong = scores[own != own[0]]
        if len(wrong):
            hardest[n], easiest[n] = wrong.max(), wrong.min()
        best = np.argsort(-scores, kind="stable")[:TOP]  # stable: the lowest index wins a tie
        top[n, : len(best)], top_score[n, : len(best)] = own[best], scores[best]
    pairs = _distinct_pairs(query, gold)
    kept, renumbered = np.unique(np.concatenate([query, gold, top.ravel()]), return_inverse=True)
    first = int(kept[0] == -1)  # -1 sorts first and stays -1
    query, gold, top = np.split((renumbered - first).astype(np.int32), [count, 2 * count])
    return DatasetResult(
        name=name,
        ids=tuple(row_id for row_id, _, _ in rows),
        items=tuple(items[i] for i in kept[first:]),
        query=query,
        gold=gold,
        candidates=candidates,
        rank=rank,
        tied=tied,
        gold_score=gold_score,
        hardest=hardest,
        easiest=easiest,
        top=top.reshape(count, TOP),
        top_score=top_score,
        aligned=vectors[pairs[:, 0]] @ vectors[pairs[:, 1]].T,
    )


def _distinct_pairs(
    query: Int32[np.ndarray, " rows"], gold: Int32[np.ndarray, " rows"]
) -> np.ndarray:
    """The first pairs in which no query and no gold comes twice, int32 [P, 2]."""
    pairs: dict[int, int] = {}
    for q, g in zip(query.tolist(), gold.tolist(), strict=True):
        if q not in pairs and g not in pairs.values():
            pairs[q] = g
        if len(pairs) == ALIGNED:
            break
    return np.array(list(pairs.items()), np.int32)
