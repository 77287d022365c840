"""Retrieval from own data, from rows to scores, with encoders that know or do not know."""

import io
import json

import numpy as np
import pytest
from absl import logging
from PIL import Image

from tests.tables import for_each
from unime_jax.evaluation import score_table, scores, tasks
from unime_jax.evaluation.retrieval.data import Judged, Pairs, images_of
from unime_jax.evaluation.retrieval.scores import of_sets, per_query
from unime_jax.evaluation.stored import finished
from unime_jax.evaluation.stored import results as results_files
from unime_jax.evaluation.tasks import retrieval


def png(red):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


class Rows(list):
    """Counts the rows that are read."""

    read = 0

    def __getitem__(self, number):
        self.read += 1
        return super().__getitem__(number)


def pair(query, positive, *negatives, **more):
    return {"qry": query, "pos_text": positive, "neg_text": list(negatives), **more}


def vectors_by(text_to_vector):
    def encode(items):
        return np.array([text_to_vector[item.text] for item in items], np.float32)

    return encode


def run(data, encode, limit=0):
    def images(path):
        raise AssertionError("images lie in the rows")

    return tasks.run(retrieval.Task(data, limit), images, encode)


def opened(data, limit=0):
    return retrieval.Task(data, limit).open(lambda path: b"")


def test_targets_of_all_rows_are_the_corpus_of_queries_that_do_not_find_themselves(tmp_path):
    rows = [
        pair("a", "x", "n"),
        pair("b", "y", id="second"),
        pair("a", "y", "x"),  # its negative is a positive of the same query elsewhere
        pair("c", "a"),  # a text that is a query, too
    ]
    task = opened(Pairs("test", rows, tmp_path))
    texts = [key[0] for key in task.items.keys]
    judged = task.judged
    assert [texts[i] for i in judged.query] == ["a", "b", "c"] and task.ids == ["0", "second", "3"]
    corpus = [texts[i] for i in judged.candidates]
    assert corpus == ["x", "n", "y", "a"] and len(texts) == 6  # "a" is encoded once
    relevant = [corpus[i] for i in judged.relevant]
    assert relevant == ["x", "y", "y", "a"] and judged.offsets.tolist() == [0, 2, 3, 4]
    assert len(opened(Pairs("test", rows, tmp_path), limit=2).ids) == 2

    (tmp_path := tmp_path / "next").mkdir()
    # A query does not find itself, but one that is judged relevant to itself does, and others find
    # it.
    e = np.eye(4, dtype=np.float32)
    vectors = {"a": e[0] + e[1], "b": e[0] + 2 * e[1], "c": e[0] + 1.5 * e[1]}
    symmetric = [pair("a", "b"), pair("b", "a")]
    result = run(Pairs("test", symmetric, tmp_path), vectors_by(vectors))
    assert result.rank.tolist() == [0, 0] and result.top.tolist()[0].count(-1) == 4
    result = run(Pairs("test", [*symmetric, pair("c", "c")], tmp_path), vectors_by(vectors))
    assert result.rank.tolist() == [1, 1, 0]  # "c" lies between them

    # Copies of a document are candidates of their own, and stand before it.
    corpus = [{"_id": n, "text": text} for n, text in enumerate(["other", "x", "x", "x"])]
    qrels = [{"query-id": "q", "corpus-id": "2"}]  # relevant, as it has no score
    data = Judged("own", [{"_id": "q", "text": "q"}], corpus, qrels, tmp_path)
    result = run(data, vectors_by({"q": [1, 0], "other": [0, 1], "x": [1, 0]}))
    assert result.rank.tolist() == [2] and result.candidates == 4
    assert len(opened(data).items) == 3


def test_a_hand_made_case_of_graded_targets_and_queries_without_any(tmp_path, caplog):
    """Cosines 1, .8, .6, .6, 0 of documents d0 to d4; d1 is worth 1, d3 3, d4 2."""
    vectors = {"q": [1, 0], "d0": [1, 0], "d1": [4, 3], "d2": [3, 4], "d3": [3, -4], "d4": [0, 1]}
    corpus = [{"_id": name, "text": name} for name in vectors if name != "q"]
    qrels = [
        {"query-id": "q", "corpus-id": f"d{n}", "score": grade}
        for n, grade in enumerate([0, 1, -1, 3, 2])
    ]
    data = Judged("own", [{"id": "q", "text": "q"}], corpus, qrels, tmp_path)
    result = run(data, vectors_by(vectors))
    gains = 1 / np.log2(3) + 3 / np.log2(5) + 2 / np.log2(6)  # d3 behind d2, which ties
    assert result.ndcg[0] == pytest.approx(gains / (3 + 2 / np.log2(3) + 1 / 2))
    assert result.average_precision[0] == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert per_query(result)[0, :4].tolist() == [0, 100, 100, 50]
    assert [result.items[i].text for i in result.top[0]] == ["d0", "d1", "d2", "d3", "d4"]
    assert result.top_relevant[0].tolist() == [False, True, False, True, True]
    assert result.items[result.gold[0]].text == "d1" and result.hardest[0] == 1

    # Queries without a relevant target are left out and counted
    (tmp_path := tmp_path / "next").mkdir()
    queries = [{"_id": name, "text": name} for name in "qrs"]
    qrels = [{"query-id": name, "corpus-id": "d", "score": n} for n, name in enumerate("qr")]
    data = Judged("own", queries, [{"_id": "d", "text": "d"}], qrels, tmp_path)
    logging.use_absl_handler()
    with caplog.at_level("WARNING"):
        task = opened(data)
    assert task.ids == ["r"] and len(task.items) == 2
    assert "retrieval set 'own': 2 of 3 queries have no relevant target" in caplog.text
    assert len(run(data, lambda items: np.ones((len(items), 2)), limit=2).ids) == 1
    with pytest.raises(ValueError, match="'own': none of 1 queries has a relevant target"):
        opened(data, limit=1)


def test_images_of_pairs_and_of_a_judged_corpus(tmp_path):
    # Content in the row, or a file at its path; two paths of one image are one item.
    (tmp_path / "images").mkdir()
    for name, red in (("a", 1), ("b", 2), ("copy_of_a", 1)):
        (tmp_path / "images" / f"{name}.png").write_bytes(png(red))
    marked = {"qry": "<|image_1|> find it", "neg_text": []}
    rows = Rows(
        [
            marked | {"qry_image": png(7), "pos_text": "", "pos_image_path": "images/a.png"},
            marked | {"qry_image": png(7), "pos_text": "", "pos_image_path": "images/b.png"},
            marked
            | {"qry_image": png(8), "pos_image_path": "images/copy_of_a.png"}
            | {"neg_image_path": ["images/b.png", ""], "neg_text": ["", "text"]},
        ]
    )
    data = Pairs("test/split", rows, tmp_path)
    task = opened(data)
    assert len(task.judged.query) == 2 and len(task.judged.candidates) == 3
    assert rows.read == 3 and task.judged.offsets.tolist() == [0, 2, 3]
    (path,) = task.items.keys[task.judged.candidates[1]][1].split("\0")
    assert path == "retrieval://test%2Fsplit/1/1/0/images/b.png"
    assert task.items[task.judged.candidates[1]].media[0].data == png(2) and rows.read == 4
    assert images_of({"test/split": data})(path) == png(2)

    def encode(items):
        reds = [
            np.asarray(Image.open(io.BytesIO(i.media[0].data)))[0, 0, 0] if i.media else 0
            for i in items
        ]
        return np.eye(16, dtype=np.float32)[[red % 6 for red in reds]]  # 7 finds 1, 8 finds 2

    result = run(data, encode)
    assert result.rank.tolist() == [0, 2]  # the text ties with what the second should find
    assert not any(image.data for item in result.items for image in item.media)
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(
        ValueError, match="'test/split', row 1: pos_image_path: .*cannot be read: No"
    ):
        task.items[task.judged.candidates[1]]

    # A judged corpus: as bytes, as a path, and as Hugging Face's datasets have them.
    (tmp_path := tmp_path / "judged").mkdir()
    (tmp_path / "b.png").write_bytes(png(2))
    corpus = [
        {"_id": "a", "image": png(1)},
        {"_id": "b", "title": "A title", "text": "and a text", "image": "b.png"},
        {"_id": "c", "image": {"bytes": png(3), "path": "c.png"}},
        {
            "_id": "d",
            "image": [{"bytes": png(2), "path": "b.png"}, {"bytes": png(3), "path": None}],
        },
    ]
    one_after_another = {"text": "first <|image_1|>, then <|image_2|>"}
    corpus.append({"_id": "e", **one_after_another, "image": ["c.png", "b.png"]})
    corpus.append({"_id": "f", **one_after_another, "image": ["b.png", "c.png"]})
    (tmp_path / "c.png").write_bytes(png(3))
    qrels = [{"query_id": "q", "corpus_id": "b", "score": "2"}]
    data = Judged("own", [{"_id": "q", "text": "q"}], corpus, qrels, tmp_path)
    task = opened(data)
    items = [task.items[i] for i in task.judged.candidates]
    assert [[m.data for m in i.media] for i in items] == [
        [png(1)], [png(2)], [png(3)], [png(2), png(3)], [png(3), png(2)], [png(2), png(3)]
    ]  # fmt: skip
    assert {item.text for item in items[4:]} == {one_after_another["text"]}
    assert items[1].text == "A title and a text" and task.judged.grade.tolist() == [2]
    assert task.items.where(task.judged.candidates[3]) == "retrieval set 'own', corpus row 3"


def judged(queries=None, corpus=None, qrels=None, folder=None):
    queries = [{"_id": "q", "text": "q"}] if queries is None else queries
    corpus = [{"_id": "d", "text": "d"}] if corpus is None else corpus
    qrels = [{"query-id": "q", "corpus-id": "d", "score": 1}] if qrels is None else qrels
    return Judged("own", queries, corpus, qrels, folder)


def relevance(*ids, **more):
    return {"query-id": ids[0], "corpus-id": ids[1], "score": 1, **more}


@for_each(
    ("data", "message"),
    [
        (Pairs("own", [], None), "retrieval set 'own' has no rows"),
        (Pairs("own", [pair("a", "b"), pair("", "b")], None), "'own', row 1: query: empty text"),
        (Pairs("own", [pair("a", "")], None), "'own', row 0: no positive"),
        (
            Pairs("own", [pair("a", "", pos_image_path="nowhere.png")], "/nowhere"),
            "'own', row 0: pos_image_path: .*No such file",
        ),
        (
            Pairs("own", [pair("a", "", pos_image_path="../x.png")], "/nowhere"),
            "'own', row 0: pos_image_path: the path '../x.png' leaves the image folder",
        ),
        (Pairs("own", [pair("a", "b", pos_image=b"no image")], None), "row 0: .*cannot be decoded"),
        (judged(queries=[]), "'own': queries has no rows"),
        (judged(corpus=[{"text": "d"}]), "corpus row 0: no id; a row has _id or id"),
        (judged(corpus=[{"_id": 1, "text": "d"}] * 2), "row 1: the id '1' is that of row 0, too"),
        (judged(corpus=[{"_id": "d", "text": ""}]), "corpus row 0: empty text and no image"),
        (
            judged(corpus=[{"_id": "d", "image": ["a.png", b"x"]}]),
            "corpus row 0: image has paths and contents",
        ),
        (judged(qrels=[{"query": "q"}]), "qrels row 0: no query-id or .* has the columns query"),
        (judged(qrels=[relevance("q", "d", score="high")]), "the score 'high' is no number"),
        (judged(qrels=[relevance("q", "d", score="nan")]), "the score 'nan' is not finite"),
        (
            judged(qrels=[relevance("q", "d"), relevance("q", "d", score=2)]),
            "qrels row 1: 'q' and 'd' are judged twice, 1 and 2",
        ),
        (
            judged(qrels=[relevance("q", f"x{n}") for n in range(9)] + [relevance("p", "d")]),
            r"qrels names 1 ids that queries has not: 'p'; and 9 ids that corpus has not: 'x0', "
            r"'x1', 'x2', 'x3', 'x4', \.\.\.$",
        ),
    ],
)
def test_bad_data_is_an_error_that_names_set_and_row(data, message):
    with pytest.raises(ValueError, match=message):
        opened(data)


def test_a_result_on_disk_is_the_same(tmp_path):
    rng = np.random.default_rng(0)
    rows = [pair(f"q{n}", f"t{n}") for n in range(7)]
    result = run(Pairs("own", rows, tmp_path), lambda items: rng.standard_normal((len(items), 4)))
    assert (result.rank > 0).any() and len(result.shown) == 3
    results_files.save_result(tmp_path / "one.npz", result)
    results_files.save_results(tmp_path / "all.npz", {}, {"own": result})
    again = results_files.load_result(tmp_path / "one.npz")
    assert results_files.load_results(tmp_path / "all.npz") == {}
    for kept in (again, results_files.load_sets(tmp_path / "all.npz")["own"]):
        for name, value in vars(result).items():
            np.testing.assert_array_equal(getattr(kept, name), value, err_msg=name)
    assert json.dumps(again.candidates) == "7"

    # Files of a version before nDCG@5: rankings are read, an evaluation makes its result again, and
    # scores stay as they are.
    (tmp_path / "results").mkdir()
    old = tmp_path / "results" / "retrieval-own.npz"
    with np.load(tmp_path / "one.npz") as file:
        np.savez(old, **{name: file[name] for name in file if name != "0.ndcg_5"})
    task = retrieval.Task(Pairs("own", rows, tmp_path))
    assert np.isnan(results_files.load_sets(old)["own"].ndcg_5).all()
    assert finished.load(tmp_path, [task]) == {} and old.exists()
    finished.save(tmp_path, task, {"": result})
    assert finished.load(tmp_path, [task]).keys() == {("retrieval", "own")}
    side = {"retrieval": of_sets({"own": result})}
    assert side["retrieval"].pop("nDCG@5") > 0 and side["retrieval"]["intervals"].pop("nDCG@5")
    scores.write_scores(tmp_path, "scores", side)
    assert scores.read_scores(tmp_path) == {"scores": side}
    assert " - " in score_table.table(None, side)
