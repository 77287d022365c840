"""Scores by prefixes and in fewer bits: of one encoding, as those of vectors that came so."""

import numpy as np
import pytest

from tests.evaluation.test_groups import Encoder
from tests.tables import for_each
from unime_jax.data.quantized_vectors import quantized
from unime_jax.evaluation import score_table, scores, view_scores
from unime_jax.evaluation.report import views as report_views
from unime_jax.evaluation.retrieval.data import Pairs
from unime_jax.evaluation.stored import finished
from unime_jax.evaluation.suite import Suite, evaluate
from unime_jax.evaluation.tasks import mmeb, retrieval, viewed
from unime_jax.evaluation.views import Views, check_width
from unime_jax.training.tensorboard import flat_scores

WIDTH = 4  # of `Encoder`
VIEWS = Views(dims=(2, 3), precisions=("int8", "binary"))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_views_are_what_a_user_would_store():
    vectors = unit(np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32))
    views = Views(dims=(4, 9), precisions=("float16", "int8", "binary"))
    found = dict(views.of(vectors))
    assert tuple(found) == views.names
    assert len(found) == 3 * 4 - 1 and "" not in found and "9 int8" in found and "binary" in found
    short = unit(vectors[:, :9])
    np.testing.assert_allclose(found["9"], short, atol=1e-7)
    rounded = short.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(found["9 float16"], unit(rounded), atol=1e-7)
    signs = np.unpackbits(quantized(short, "ubinary"), axis=1, count=9) * 2.0 - 1
    np.testing.assert_allclose(found["9 binary"], signs / 3, atol=1e-6)
    step = (short.max(axis=0) - short.min(axis=0)) / 255
    assert (np.abs(found["9 int8"] - short) <= 1.5 * step).all()
    assert not np.array_equal(found["9 int8"], short)
    assert not Views().names and not list(Views().of(vectors))


@for_each("dims", [(16,), (4, 20)])
def test_prefixes_as_long_as_embeddings_are_refused(dims):
    with pytest.raises(ValueError, match="config.evaluation.dims=.* have 16 numbers"):
        next(Views(dims).of(np.zeros((2, 16), np.float32)))
    check_width((), 16, "key")


def suite(tmp_path, views):
    """Tasks of two kinds, of one-letter items."""
    rows = [
        {"qry_text": q, "qry_img_path": "", "tgt_text": list(t), "tgt_img_path": [""] * len(t)}
        for q, t in (("a", "bcde"), ("f", "ghij"), ("k", "lmno"))
    ]
    pairs = [{"qry": q, "pos_text": p} for q, p in ("ab", "cd", "ef", "gh")]
    tasks = (
        mmeb.Task("ImageNet-1K", rows),
        retrieval.Task(Pairs("own", pairs, tmp_path)),
    )
    return Suite(tasks, {"ImageNet-1K": ("CLS", "IND")}, tmp_path, views=views)


def test_one_encoding_gives_the_scores_of_each_view(tmp_path):
    encode = Encoder()
    found, results = evaluate(suite(tmp_path, VIEWS), encode)
    assert sorted("".join(encode.calls)) == sorted("abcdefghijklmno")  # each once
    plain, same = evaluate(suite(tmp_path, Views()), Encoder())
    assert results.keys() == same.keys()
    assert {k: v for k, v in found.items() if k not in ("views", "dimension")} == plain
    assert found["dimension"] == WIDTH and tuple(found["views"]) == VIEWS.names

    def cut(items):
        return Encoder()(items)[:, :2]

    assert found["views"]["2"] == evaluate(suite(tmp_path, Views()), cut)[0]
    scores.write_scores(tmp_path, "after", found)
    assert scores.read_scores(tmp_path) == {"after": found}

    lines = view_scores.lines(found)
    assert [line.name for line in lines] == ["all", *VIEWS.names]
    assert [line.bytes for line in lines] == [16, 8, 2, 1, 12, 3, 1, 4, 1]
    assert lines[0].numbers["hit@1"] == plain["All"]
    assert lines[1].numbers["R@1"] == found["views"]["2"]["retrieval"]["R@1"]
    assert "3 binary" in score_table.table(None, found)
    tags = dict(flat_scores(found))
    assert tags["evaluation/views/2/R@1"] == found["views"]["2"]["retrieval"]["R@1"]
    assert not [tag for tag in tags if "interval" in tag or tag.endswith("dimension")]
    section = report_views.section({"after": found})
    assert len(section["rows"]) == 9 and len(section["panels"]) == 3
    assert report_views.section({"after": plain}) is None


def test_the_headline_has_a_number_of_each_kind_of_task():
    recalls = {way: {"R@1": value} for way, value in (("t2i", 30.0), ("i2t", 40.0))}
    side = {
        "All": None,
        "composition": {"swap": 60.0, "add": 70.0, "set/score": 5.0},
        "captions": {"a": recalls, "b": recalls},
        "clustering": {"x": 20.0, "y": 40.0},
        "distillation": {"kl": 0.1, "overlap": 50.0},
    }
    found = view_scores.headline(side)
    assert found == {"composition": 65, "t2i R@1": 30, "i2t R@1": 40, "v-measure": 30,
                     "neighbours": 50}  # fmt: skip


def test_ties_of_codes_are_no_hits(tmp_path):
    """Of items that differ; a candidate that is the gold's copy ties with it in any case."""
    rows = [{"qry_text": "a", "qry_img_path": "", "tgt_text": ["b", "b", "c"]}]
    task = mmeb.Task("ImageNet-1K", [rows[0] | {"tgt_img_path": ["", "", ""]}])
    vectors = {"a": (1, 0.1), "b": (0.9, 0.3), "c": (0.1, 0.9)}

    def encode(items):
        return np.array([vectors[item.text] for item in items], np.float32)

    table = {"ImageNet-1K": ("CLS", "IND")}
    found, _ = evaluate(
        Suite((task,), table, tmp_path, views=Views((), ("int8", "binary"))), encode
    )
    assert found["All"] == found["views"]["int8"]["All"] == 100
    assert found["views"]["binary"]["All"] == 0


def test_results_are_kept_by_view(tmp_path):
    """A task is finished once it has all views that are asked for."""
    (task, *_), by_view = suite(tmp_path, VIEWS).tasks, {}
    opened = viewed.Task(task, VIEWS).open(lambda path: b"")
    by_view = opened.score(opened.encode(Encoder()))
    finished.save(tmp_path, task, by_view)
    wanted = (viewed.WHOLE, *VIEWS.names)
    ((key, again),) = finished.load(tmp_path, [task], wanted).items()
    assert key == ("mmeb", "ImageNet-1K")
    assert {n: r.hit_at_1 for n, r in again.items()} == {n: r.hit_at_1 for n, r in by_view.items()}
    assert not finished.load(tmp_path, [task], (*wanted, "1"))
    (tmp_path / "results" / "mmeb-ImageNet-1K@2 int8.npz").write_bytes(b"damaged")
    assert not finished.load(tmp_path, [task], wanted)
    assert finished.load(tmp_path, [task])
