"""MMEB-V2's 24 visual-document sets: ViDoRe, ViDoRe v2, VisRAG, ViDoSeek and MMLongBench.

They are those of VLM2Vec's evaluation, in whose words queries and pages are put. ViDoRe v2's
queries are those of all four languages at once, save in the set that people have labelled.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from data_pipelines.benchmarks import mteb_retrieval
from data_pipelines.benchmarks.public_set import Prepared, PublicSet

# By `evaluation.instructions`. The hub's files have no instructions: "data" are VLM2Vec's.
_VLM2VEC = "Find a document image that matches the given query: {text}"
_VLM2VEC_PAGE = "<|image_1|> Understand the content of the provided document image."
QUERY_TEXT = {
    "data": _VLM2VEC,
    "vlm2vec": _VLM2VEC,
    "qwen3_vl": "Find a document image that matches the given query. {text}",
}
TARGET_TEXT = {
    "data": _VLM2VEC_PAGE,
    "vlm2vec": _VLM2VEC_PAGE,
    "qwen3_vl": "<|image_1|>\nRepresent the user's input.",
}


def read(raw: Path, folder: Path, name: str) -> Prepared:
    """Queries, pages and judgements from parquet files, and the words around them.

    Raises:
      FileNotFoundError, ValueError: as `mteb_retrieval.read`.
    """
    prepared = mteb_retrieval.read(raw, folder, name, pages=True)
    words = {"query_text": QUERY_TEXT, "target_text": TARGET_TEXT}
    return dataclasses.replace(prepared, extra=words)


def _set(
    name: str, repository: str, revision: str, licence: str, counts: Mapping[str, int]
) -> PublicSet:
    return PublicSet(
        name=name,
        kind="retrieval",
        repository=repository,
        revision=revision,
        files=("*.parquet",),
        counts=counts,
        read=functools.partial(read, name=name),
        licence=licence,
    )


def _sets(
    family: str, repository: str, licence: str, rows: tuple[tuple[str, str, str, int, int], ...]
) -> tuple[PublicSet, ...]:
    """`rows` have the name, the repository's `{}`, the commit, and how many queries and pages.

    0 pages: the number is not published.
    """
    return tuple(
        _set(
            f"visdoc_{family}_{name}",
            repository.format(own),
            revision,
            licence,
            {"queries": queries} | ({"corpus": pages} if pages else {}),
        )
        for name, own, revision, queries, pages in rows
    )


_SYNTHETIC = "syntheticDocQA_"
SETS = (
    *_sets(
        "vidore",
        "vidore/{}_beir",
        "MIT",
        (
            (
                "arxivqa",
                "arxivqa_test_subsampled",
                "7d94d570960eac2408d3baa7a33f9de4822ae3e4",
                500,
                500,
            ),
            (
                "docvqa",
                "docvqa_test_subsampled",
                "162ba2fc1a8437eda8b6c37b240bc1c0f0deb092",
                451,
                500,
            ),
            (
                "infovqa",
                "infovqa_test_subsampled",
                "b802cc5fd6c605df2d673a963667d74881d2c9a4",
                494,
                500,
            ),
            (
                "tabfquad",
                "tabfquad_test_subsampled",
                "61a2224bcd29b7b261a4892ff4c8bea353527a31",
                280,
                70,
            ),
            ("tatdqa", "tatdqa_test", "5feb5630fdff4d8d189ffedb2dba56862fdd45c0", 1646, 277),
            (
                "shiftproject",
                "shiftproject_test",
                "84a382e05c4473fed9cff2bbae95fe2379416117",
                100,
                1000,
            ),
            (
                "artificial_intelligence",
                f"{_SYNTHETIC}artificial_intelligence_test",
                "2d9ebea5a1c6e9ef4a3b902a612f605dca11261c",
                100,
                968,
            ),
            (
                "energy",
                f"{_SYNTHETIC}energy_test",
                "9935aadbad5c8deec30910489db1b2c7133ae7a7",
                100,
                977,
            ),
            (
                "government_reports",
                f"{_SYNTHETIC}government_reports_test",
                "b4909afa930f81282fd20601e860668073ad02aa",
                100,
                972,
            ),
            (
                "healthcare_industry",
                f"{_SYNTHETIC}healthcare_industry_test",
                "f9e25d5b6e13e1ad9f5c3cce202565031b3ab164",
                100,
                965,
            ),
        ),
    ),
    *_sets(
        "vidore_v2",
        "vidore/{}_v2",
        "MIT",
        (
            (
                "esg_reports_human",
                "esg_reports_human_labeled",
                "6d467dedb09a75144ede1421747e47cf036857dd",
                52,
                1538,
            ),
            (
                "biomedical_lectures",
                "biomedical_lectures",
                "a29202f0da409034d651614d87cd8938d254e2ea",
                640,
                1016,
            ),
            (
                "economics_reports",
                "economics_reports",
                "b3e3a04b07fbbaffe79be49dabf92f691fbca252",
                232,
                452,
            ),
            ("esg_reports", "esg_reports", "0542c0d03da0ec1c8cbc517c8d78e7e95c75d3d3", 228, 1538),
        ),
    ),
    *_sets(
        "visrag",
        "openbmb/VisRAG-Ret-Test-{}",
        "",
        (
            ("arxivqa", "ArxivQA", "00a31fc1e899b5f81d7760eca4907b1a1005865b", 816, 8066),
            ("chartqa", "ChartQA", "31f5ceb5d60b02e065bff394cb582f5bbb01a9b6", 63, 500),
            ("mp_docvqa", "MP-DocVQA", "3ebd091c458cf04161f78cd7b12ea101f83e2529", 591, 741),
            ("slidevqa", "SlideVQA", "", 556, 1284),
            ("infovqa", "InfoVQA", "04ee2db1d0a05304899453a3b03baef5e18991a3", 718, 459),
            ("plotqa", "PlotQA", "ef953ef8ab6d78ac112dd4cde6acdb2c2692039a", 863, 9593),
        ),
    ),
    *_sets(
        "vidoseek",
        "VLM2Vec/{}",
        "",
        (
            # The pages that the repository without "fixed" judges relevant are wrong ones.
            ("page", "ViDoSeek-page-fixed", "", 1142, 0),
            ("doc", "ViDoSeek", "", 1142, 0),
        ),
    ),
    *_sets(
        "mmlongbench",
        "VLM2Vec/{}",
        "",
        (
            ("page", "MMLongBench-page-fixed", "", 838, 0),
            ("doc", "MMLongBench-doc", "1c2ee8f611a6c552d4bd90daca3a92d7a55ff806", 838, 6492),
        ),
    ),
)
