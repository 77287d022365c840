"""From mteb's parquet files to scores: ids, texts, judgements and the bytes of images."""

import io

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data_pipelines.benchmarks import check, mteb_retrieval
from data_pipelines.benchmarks.mteb_retrieval import read
from data_pipelines.benchmarks.prepare import prepare
from tests.data_pipelines.benchmarks.folder_hub import FolderHub, public
from unime_jax.evaluation import tasks
from unime_jax.evaluation.retrieval import scores as retrieval_scores
from unime_jax.evaluation.retrieval.files import open_sets
from unime_jax.evaluation.tasks import retrieval


def picture(grey, form):
    content = io.BytesIO()
    Image.new("L", (16, 16), grey).save(content, form)
    return content.getvalue()


PICTURES = [picture(0, "PNG"), picture(120, "JPEG"), picture(250, "WEBP")]


def parquet(columns, size=None):
    table, content = pyarrow.table(columns), io.BytesIO()
    pyarrow.parquet.write_table(table, content, row_group_size=size)
    return content.getvalue()


def images_of(pictures):
    return [data and {"bytes": data, "path": None} for data in pictures]


def flickr():
    """As mteb/flickr30kt2i: split and configuration of the corpus have one name."""
    return {
        "README.md": b"",
        "corpus/corpus-00000-of-00002.parquet": parquet(
            {"id": ["d0"], "modality": ["image"], "image": images_of(PICTURES[:1])}
        ),
        "corpus/corpus-00001-of-00002.parquet": parquet(
            {"id": ["d1", "d2"], "modality": ["image"] * 2, "image": images_of(PICTURES[1:])}
        ),
        "query/test-00000-of-00001.parquet": parquet(
            {"id": ["q0", "q1", "q2"], "text": ["black", "grey\t\n", "not judged"]}
        ),
        "qrels/test-00000-of-00001.parquet": parquet(
            {"query-id": ["q0", "q1"], "corpus-id": ["d0", "d2"], "score": [1, 1]}
        ),
    }


def vidore():
    """As vidore's: numbers as ids, other columns, and several splits."""
    return {
        "corpus/test-00000-of-00001.parquet": parquet(
            {"corpus-id": [7, 8], "image": images_of(PICTURES[:2])}
        ),
        "corpus/train-00000-of-00001.parquet": parquet({"corpus-id": [0], "image": [None]}),
        "queries/test-00000-of-00001.parquet": parquet(
            {"query-id": [1], "query": ["where?"], "image": pyarrow.array([None], pyarrow.null())}
        ),
        "qrels/test-00000-of-00001.parquet": parquet(
            {"query-id": [1, 1], "corpus-id": [8, 7], "score": [1, 2]}
        ),
    }


def made(tmp_path, content, **changes):
    values = {"files": ("*.parquet",), "kind": "retrieval", "name": "few"}
    values |= {"read": lambda raw, folder: read(raw, folder, "few")}
    made_set = public(**values | changes)
    prepare(made_set, tmp_path, None, FolderHub(content))
    check.check(made_set, tmp_path / "few")
    (data,) = open_sets(tmp_path / "few/rows/few", {})
    return data


def encode(items):
    """Texts by their first letter, images by their brightness: black is black, grey is bright."""
    vectors = []
    for item in items:
        if item.media:
            grey = np.asarray(Image.open(io.BytesIO(item.media[0].data)).convert("L")).mean()
            vectors.append([np.cos(grey / 255), np.sin(grey / 255)])
        else:
            vectors.append({"b": [1.0, 0.0], "g": [0.5, 0.85], "w": [0.9, 0.45]}[item.text[0]])
    return np.array(vectors, np.float32)


def test_sets_in_mteb_s_layout_are_scored(tmp_path):
    data = made(tmp_path, flickr(), counts={"queries": 2, "corpus": 3})
    assert data.name == "few"
    assert [query["_id"] for query in data.queries] == ["q0", "q1"]
    assert data.queries[1]["text"] == "grey\t\n"
    images = [data.corpus[row]["image"] for row in range(3)]
    assert [name.rpartition(".")[2] for name in images] == ["png", "jpg", "webp"]
    assert [(data.folder / name).read_bytes() for name in images] == PICTURES
    result = tasks.run(retrieval.Task(data), lambda path: b"", encode)
    scores = retrieval_scores.of_sets({"few": result})
    assert (scores["R@1"], scores["queries"], scores["candidates"]) == (100, 2, 3)

    pages = made(tmp_path / "vidore", vidore())
    result = tasks.run(retrieval.Task(pages), lambda path: b"", encode)
    assert result.ids == ("1",) and result.rank.tolist() == [0] and result.candidates == 2
    gain, most = 1 + 2 / np.log2(3), 2 + 1 / np.log2(3)  # grade 1 stands before grade 2
    assert result.ndcg[0] == pytest.approx(gain / most)


def test_what_is_not_as_mteb_has_it_is_named(tmp_path):
    def file(part, **columns):
        return {f"{part}/test-00000-of-00001.parquet": parquet(columns)}

    whole = {k: v for k, v in vidore().items() if "train" not in k}
    bad = {"bytes": b"no image", "path": None}
    twice, score = images_of(PICTURES[:2]), {"score": ["x"]}
    corpus, relevant = {"corpus-id": [7]}, {"query-id": [1], "corpus-id": [7]}
    dev = {"corpus/dev-0.parquet": b"", "corpus/train-0.parquet": b""}
    cases = [
        ({"qrels/test-00000-of-00001.parquet": None}, "no qrels: no parquet files in default or"),
        (file("queries", **{"query-id": [2], "query": ["?"]}), "1 ids that queries has not, .* 1"),
        (file("corpus", **{"corpus-id": [7, 7], "image": twice}), "row 1: the id '7' is that of"),
        (file("corpus", **corpus, image=[bad]), "row 0: the image cannot be identified"),
        (file("corpus", **corpus, image=["7.jpg"]), "row 0: image holds no content"),
        (file("corpus", **corpus, text=[""]), "row 0: neither text nor image"),
        (file("qrels", **relevant, **score), "score 'x' is no whole number"),
        (file("qrels", **{"query-id": [1], "score": [1]}), "row 0: no corpus-id; its columns"),
        ({**dev, "corpus/test-00000-of-00001.parquet": None}, "dev-0, train-0, and none is test"),
        ({"corpus/test-00000-of-00001.parquet": b"PAR1"}, "cannot be read as parquet"),
    ]
    for number, (change, why) in enumerate(cases):
        raw = tmp_path / str(number)
        for name, data in (whole | change).items():
            if data is not None:
                (raw / name).parent.mkdir(parents=True, exist_ok=True)
                (raw / name).write_bytes(data)
        with pytest.raises((ValueError, FileNotFoundError), match=why):
            read(raw, tmp_path / "set", "few")
    with pytest.raises(ValueError, match="1 queries and 2 documents are not 951 in sum"):
        made(tmp_path / "more", vidore(), read=lambda raw, folder: read(raw, folder, "few", 951))
    names = [public_set.name for public_set in mteb_retrieval.SETS]
    assert len(names) == 14 and all(name.startswith("mteb_") for name in names)
