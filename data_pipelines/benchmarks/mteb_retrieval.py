"""Retrieval sets in mteb's layout on the hub, as queries, corpus and judgements in BEIR's.

Their numbers are those of mteb's tasks: Flickr30K and MSCOCO here are other sets, and under other
scores, than Karpathy's five captions an image.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from data_pipelines.benchmarks.public_set import Prepared, PublicSet
from unime_jax.data import images

PARTS = {
    "queries": ("query", "queries"),
    "corpus": ("corpus",),
    "qrels": ("default", "qrels", "data"),
}
SPLIT = "test"  # else the only one
IDS = ("id", "_id")
BATCH = 64  # rows that are in memory at a time

_SPLIT_OF = re.compile(r"(.+?)(-\d+-of-\d+)?\.parquet")


def read(
    raw: Path, folder: Path, name: str, items: int | None = None, *, pages: bool = False
) -> Prepared:
    """Writes <folder>/rows/<name>/{queries,corpus,qrels}.jsonl and the images beside them.

    Queries without any judgement are left out, as mteb does. Images are files with the bytes of
    the columns.

    Args:
      items: queries and documents in sum, where only that is published; None: not compared.
      pages: as MMEB-V2 reads its visual documents: they are their images, whatever text is beside
        these, and of several judgements of a pair the highest counts.

    Raises:
      FileNotFoundError: a part is missing; the message says which.
      ValueError: a file or a row is not as mteb has them, judgements name unknown ids, or the
        numbers differ.
    """
    own = folder / "rows" / name
    own.mkdir(parents=True, exist_ok=True)
    judged: set[str] = set()
    relevant: set[str] = set()
    counts = {}
    with (own / "qrels.jsonl").open("w", encoding="utf-8") as lines:
        counts["qrels"] = 0
        for query, document, score in _judgements(raw, highest=pages):
            judged.add(query)
            relevant.add(document)
            _write(lines, {"query-id": query, "corpus-id": document, "score": score})
            counts["qrels"] += 1
    for part, key, wanted in (("queries", "query-id", judged), ("corpus", "corpus-id", relevant)):
        known: set[str] = set()
        with (own / f"{part}.jsonl").open("w", encoding="utf-8") as lines:
            for number, (where, row) in enumerate(rows_of(_files(raw, part))):
                id = _cell(row, where, *IDS, key)
                if id in known:
                    raise ValueError(f"{where}: the id {id!r} is that of an earlier row, too")
                if pages and part == "corpus":
                    row = {"image": row.get("image")}
                if part == "corpus" or id in judged:
                    known.add(id)
                    _write(lines, {"_id": id, **_item(row, where, own, f"{part}/{number:07}")})
        if unknown := sorted(wanted - known):
            raise ValueError(
                f"{raw}: qrels names {len(unknown)} ids that {part} has not, such as "
                f"{', '.join(unknown[:3])}"
            )
        counts[part] = len(known)
    if items is not None and counts["queries"] + counts["corpus"] != items:
        raise ValueError(
            f"{name}: {counts['queries']} queries and {counts['corpus']} documents are not "
            f"{items} in sum, as mteb has them; the raw files are not those of the public set"
        )
    return Prepared(f"rows/{name}", f"rows/{name}", counts)


def _judgements(raw: Path, *, highest: bool) -> Iterator[tuple[str, str, int]]:
    """Query, document and score of each row of qrels, or of each pair with its highest score."""
    best: dict[tuple[str, str], int] = {}
    for where, row in rows_of(_files(raw, "qrels")):
        query, document = (_cell(row, where, key) for key in ("query-id", "corpus-id"))
        score = _number(row, where)
        if highest:
            best[query, document] = max(score, best.get((query, document), score))
        else:
            yield query, document, score
    yield from ((query, document, score) for (query, document), score in best.items())


def rows_of(files: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each row of parquet files stands, for errors, and the row.

    Raises:
      ValueError: a file cannot be read.
    """
    for file in files:
        try:
            with pyarrow.parquet.ParquetFile(file) as content:
                number = 0
                for batch in content.iter_batches(BATCH):
                    for row in batch.to_pylist():
                        yield f"{file}, row {number}", row
                        number += 1
        except pyarrow.ArrowException as error:
            raise ValueError(f"{file} cannot be read as parquet: {error}") from error


def _files(raw: Path, part: str) -> list[Path]:
    """The parquet files of a part's split, in order."""
    folders = [raw / name for name in PARTS[part]]
    folder = next((folder for folder in folders if any(folder.glob("*.parquet"))), None)
    if folder is None:
        raise FileNotFoundError(
            f"{raw} has no {part}: no parquet files in {' or '.join(PARTS[part])}"
        )
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")):
        split = _SPLIT_OF.fullmatch(file.name)
        assert split is not None  # by the glob
        splits.setdefault(split[1], []).append(file)
    chosen = splits.get(SPLIT) or (next(iter(splits.values())) if len(splits) == 1 else None)
    if chosen is None:
        raise ValueError(f"{folder} has the splits {', '.join(splits)}, and none is {SPLIT}")
    return chosen


def _item(row: Mapping[str, Any], where: str, own: Path, name: str) -> dict[str, str]:
    """Text and image of a row; the image is written to <own>/images/<name>.<ending>."""
    item = {
        key: str(text)
        for key, text in (
            ("title", row.get("title")),
            ("text", row.get("text") or row.get("query")),
        )
        if text
    }
    image = row.get("image")
    if image is not None:
        data = image.get("bytes") if isinstance(image, Mapping) else image
        if not isinstance(data, bytes):
            raise ValueError(f"{where}: image holds no content of a file, but {str(image)[:60]}")
        try:
            ending = images.suffix(data)
        except Exception as error:  # hostile bytes can raise anything in a decoder
            raise ValueError(f"{where}: the image cannot be identified: {error}") from error
        item["image"] = f"images/{name}{ending}"
        file = own / item["image"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    if not item:
        raise ValueError(f"{where}: neither text nor image; its columns are {', '.join(row)}")
    return item


def _cell(row: Mapping[str, Any], where: str, *names: str) -> str:
    """The id in the first of these columns that is there, as text."""
    for name in names:
        if row.get(name) is not None:
            return str(row[name])
    raise ValueError(f"{where}: no {' or '.join(names)}; its columns are {', '.join(row)}")


def _number(row: Mapping[str, Any], where: str) -> int:
    try:
        return int(row["score"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: the score {row.get('score')!r} is no whole number") from error


def _write(lines: IO[str], row: Mapping[str, Any]) -> None:
    lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def _set(
    name: str,
    repository: str,
    revision: str,
    licence: str,
    *,
    counts: Mapping[str, int] | None = None,
    items: int | None = None,
) -> PublicSet:
    reader: Callable[[Path, Path], Prepared] = functools.partial(read, name=name, items=items)
    return PublicSet(
        name=name,
        kind="retrieval",
        repository=repository,
        revision=revision,
        files=("*.parquet",),
        counts=counts or {},
        read=reader,
        licence=licence,
    )


SETS = (
    _set(
        "mteb_flickr30k_t2i",
        "mteb/flickr30kt2i",
        "e819702b287bfbe084e129a61f308a802b7c108e",
        "CC BY-SA 4.0",
        counts={"queries": 5000, "corpus": 1000},
    ),
    _set(
        "mteb_flickr30k_i2t",
        "mteb/flickr30ki2t",
        "e26fbfcb4532ab61e3c8512fdf3dd9008f2575bd",
        "CC BY-SA 4.0",
        counts={"queries": 1000, "corpus": 5000},
    ),
    _set(
        "mteb_mscoco_t2i",
        "mteb/mbeir_mscoco_task0",
        "8dfc4d250094f4e241bcb93211d6c5fbc99bb0bd",
        "CC BY-SA 4.0",
        counts={"queries": 24809, "corpus": 5000},
    ),
    _set(
        "mteb_mscoco_i2t",
        "mteb/mbeir_mscoco_task3",
        "ec63d7122301171948387e757351fabd193fc39f",
        "CC BY-SA 4.0",
        counts={"queries": 5000, "corpus": 24809},
    ),
    *(
        _set(f"mteb_vidore_{name}", f"mteb/{repository}", revision, "MIT", items=items)
        for name, repository, revision, items in (
            (
                "arxivqa",
                "arxivqa_test_subsampled_beir",
                "179762404662be6bf48c30b4fb2b2ef8c6891290",
                1000,
            ),
            (
                "docvqa",
                "docvqa_test_subsampled_beir",
                "e78cd130055fcb8d69bb0ff4115c4712a157f3d3",
                951,
            ),
            (
                "infovqa",
                "infovqa_test_subsampled_beir",
                "74d396242cc281c021eeb38d0ee5f6f30afc1fad",
                994,
            ),
            (
                "tabfquad",
                "tabfquad_test_subsampled_beir",
                "24a4541c4c461f5ff4f4af4e97ec820715281a06",
                350,
            ),
            ("tatdqa", "tatdqa_test_beir", "dc7924ec102addd7f85c1ccfdd8625848179f615", 1923),
            (
                "shiftproject",
                "shiftproject_test_beir",
                "78e6f5ad3bbc1af50ae9c0f006f57462213269fb",
                1100,
            ),
            (
                "artificial_intelligence",
                "syntheticDocQA_artificial_intelligence_test_beir",
                "12c5b7a81fc19d66f1844642acdb88e8ad79af16",
                1068,
            ),
            (
                "energy",
                "syntheticDocQA_energy_test_beir",
                "eda52c9a0519252cfaacb7ae5e5da516b7d4b8cb",
                1077,
            ),
            (
                "government_reports",
                "syntheticDocQA_government_reports_test_beir",
                "ec534abea699035a18f9fd76f215277de9db9600",
                1072,
            ),
            (
                "healthcare_industry",
                "syntheticDocQA_healthcare_industry_test_beir",
                "81d53880628d641aaf7365f3b2e65f57c814ecca",
                1065,
            ),
        )
    ),
)
