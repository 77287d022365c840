"""A tiny exported multimodal model, and a small judged corpus of texts with images."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from tests.export.test_used_elsewhere import export
from unime_jax import sharding

QUERIES = ("a red circle", "the left one", "find: a blue square", "two crosses", "what is it?")
TITLES = ("", "Shapes", "On colours", "", "Kinds")
# Query, document, grade; documents without a line are not relevant.
GRADES = [(q, d, 1 + (q + d) % 3) for q in range(5) for d in range(q, 14, 4)]


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> pathlib.Path:
    """A LLaVA-OneVision of 92,512 parameters, with the prompt "find: " for queries. Read-only."""
    return export("onevision", tmp_path_factory.mktemp("onevision")).folder


@pytest.fixture
def mesh():
    return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> pathlib.Path:
    """A folder in BEIR's layout: 5 queries, 14 documents of title, text and image; none is long."""
    folder = tmp_path_factory.mktemp("own") / "shapes"
    folder.mkdir()
    rng = np.random.default_rng(3)
    documents = []
    for number in range(14):
        size = (20 + 3 * number, 40 - 2 * number, 3)
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
        text, title = f"a shape of kind {number * 7}", TITLES[number % 5]
        documents.append({"_id": f"d{number}", "title": title, "text": text, "image": name})
    queries = [{"_id": f"q{number}", "text": text} for number, text in enumerate(QUERIES)]
    for name, rows in (("queries", queries), ("corpus", documents)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"q{q}\td{d}\t{grade}" for q, d, grade in GRADES]
    (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder
