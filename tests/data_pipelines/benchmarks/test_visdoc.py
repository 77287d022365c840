"""MMEB-V2's visual documents from the hub's parquet files to scores, in each protocol's words."""

import json

import numpy as np
import pytest

from data_pipelines.benchmarks import visdoc as reader
from data_pipelines.benchmarks.prepare import prepare
from tests.data_pipelines.benchmarks.folder_hub import FolderHub, public
from tests.data_pipelines.benchmarks.test_mteb_retrieval import PICTURES, images_of, parquet
from unime_jax.evaluation import scores, suite
from unime_jax.evaluation.benchmarks import visdoc

LONG = "a_name_that_is_longer_than_file_systems_take_" * 8


def visrag():
    """As VisRAG's: split train, names of files as ids, and columns that nobody embeds."""
    return {
        "corpus/train-00000-of-00001.parquet": parquet(
            {
                "corpus-id": [f"{LONG}{n}.jpg" for n in range(3)],
                "image": images_of(PICTURES),
                "text": ["what OCR has read"] * 3,
            }
        ),
        "queries/train-00000-of-00001.parquet": parquet(
            {
                "query-id": ["a", "b"],
                "query": ["black?", "schwarz?"],
                "language": ["english", "german"],
                "answer": ["x", "y"],
            }
        ),
        "qrels/train-00000-of-00001.parquet": parquet(
            {
                "query-id": ["a", "a", "a", "b", "b"],
                "corpus-id": [f"{LONG}{n}.jpg" for n in (0, 1, 1, 0, 2)],
                "score": [1.0, 1.0, 3.0, 1.0, 0.0],
            }
        ),
    }


def opened(folder, instructions):
    return suite.make_suite(
        folder,
        mmeb_folder="",
        instructions=instructions,
        composition_folder="",
        images="",
        image_prompt="",
        limit=0,
        agreement=None,
        retrieval_data="",
        columns={},
        caption_prompt="{caption}",
        video_prompt="<|video_1|>",
        benchmark_folder="sets",
        benchmark_names=(),
    )


def test_pages_are_ranked_in_the_words_of_the_protocol(tmp_path):
    name = "visdoc_visrag_chartqa"
    counts = {"queries": 2, "corpus": 3}
    made = public(
        name=name,
        kind="retrieval",
        files=("*.parquet",),
        counts=counts,
        read=lambda raw, folder: reader.read(raw, folder, name),
    )
    prepare(made, tmp_path / "sets", None, FolderHub(visrag()))
    seen = []

    def encode(items):
        """Every query looks for black; pages are ranked from black to white."""
        seen[:] = [item.text for item in items]
        angles = [PICTURES.index(i.media[0].data) / 4 if i.media else 0.0 for i in items]
        return np.array([[np.cos(a), np.sin(a)] for a in angles], np.float32)

    expected = {
        "vlm2vec": (
            "Find a document image that matches the given query: schwarz?",
            "<|image_1|> Understand the content of the provided document image.",
        ),
        "qwen3_vl": (
            "Find a document image that matches the given query. schwarz?",
            "<|image_1|>\nRepresent the user's input.",
        ),
    }
    expected["data"] = expected["vlm2vec"]
    for instructions, (query, page) in expected.items():
        found, _ = suite.evaluate(opened(tmp_path, instructions), encode)
        assert query in seen and seen.count(page) == 3 and len(seen) == 5
        # Page 1 has the higher one of its two grades; all queries, of any language, count.
        first = (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3))
        assert found["retrieval"]["nDCG@5"] == pytest.approx(100 * (first + 1) / 2)
        assert found["retrieval"]["queries"] == 2 and found["retrieval"]["candidates"] == 3
        assert found["VisDoc"] is None and len(found["visdoc_missing"]) == 23
        assert found["instructions"] == instructions

    # What the words leave out is an error, and instructions that a set has not stop it alone.
    path = tmp_path / "sets" / name / "set.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"query_text": "Which page?"}))
    with pytest.raises(ValueError, match=r"queries row 0: its text has no place in .*Which page\?"):
        suite.evaluate(opened(tmp_path, "data"), encode)
    path.write_text(json.dumps(record | {"target_text": {"data": "page"}}))
    with pytest.raises(ValueError, match="no target_text for config.evaluation.instructions='vlm2"):
        opened(tmp_path, "vlm2vec")


def test_the_mean_is_of_all_24_sets_or_names_those_that_are_missing(tmp_path):
    assert [made.name for made in reader.SETS] == list(visdoc.SETS) and len(visdoc.SETS) == 24
    each = {name: {"nDCG@5": float(n)} for n, name in enumerate(visdoc.SETS)}
    assert visdoc.mean(each | {"mteb_other": {"nDCG@5": 99.0}}) == {"VisDoc": 11.5}
    assert visdoc.mean({"mteb_other": {"nDCG@5": 99.0}}) == {}
    del each["visdoc_visrag_plotqa"], each["visdoc_vidoseek_doc"]
    part = visdoc.mean(each) | {"instructions": "data"}
    missing = ["visdoc_visrag_plotqa", "visdoc_vidoseek_doc"]
    assert part == {"VisDoc": None, "visdoc_missing": missing, "instructions": "data"}
    scores.write_scores(tmp_path, "scores", part)
    assert scores.read_scores(tmp_path) == {"scores": part}
    assert visdoc.notes(part)[0].startswith("VisDoc: no mean; 2 of 24 sets are missing: visdoc_vis")
    assert visdoc.notes({"VisDoc": 81.25, "instructions": "vlm2vec"}) == [
        "VisDoc: 81.2, the mean nDCG@5 of MMEB-V2's 24 sets",
        "instructions: vlm2vec",
    ]
