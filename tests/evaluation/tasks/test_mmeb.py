import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from tests.tables import for_each
from unime_jax.backbones.preprocessing.images import decode_images
from unime_jax.batch import Item, Media
from unime_jax.evaluation import tasks
from unime_jax.evaluation.encoding.shared_encoder import SharedEncoder
from unime_jax.evaluation.ranking import TOP
from unime_jax.evaluation.report import gallery
from unime_jax.evaluation.stored import results as results_files
from unime_jax.evaluation.tasks import composition, mmeb

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics"


def png(color="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, "PNG")
    return buffer.getvalue()


def no_images(path):
    raise KeyError(path)


def row(query, candidates, **more):
    """A text-only row."""
    texts = [str(c) for c in candidates]
    return {
        "qry_text": query,
        "qry_img_path": "",
        "tgt_text": texts,
        "tgt_img_path": [""] * len(texts),
    } | more


def evaluate(name, rows, encode, images):
    return tasks.run(mmeb.Task(name, rows), images, encode)


def evaluate_all(datasets, encode, images):
    """As an evaluation does: one dataset at a time."""
    encode = SharedEncoder(encode)
    return {name: evaluate(name, rows, encode, images) for name, rows in datasets.items()}


def lookup(vectors):
    """An encode function that knows each text's vector and remembers its calls."""
    calls = []

    def encode(items):
        calls.append(list(items))
        for item in calls[-1]:
            decode_images(item, None)  # as every model's preprocessing does
        return np.array([vectors[item.text] for item in items], np.float32)

    return encode, calls


@for_each("case", ["mmeb_plain", "mmeb_ties"])
def test_hit_at_1_is_the_originals(case):
    golden = json.loads((GOLDEN / case / "case.json").read_text())
    io_ = load_file(GOLDEN / case / "io.safetensors")
    vectors = {f"q{i}": v for i, v in enumerate(io_["query"])}
    vectors |= {f"c{i}": v for i, v in enumerate(io_["candidates"])}
    rows = [row(f"q{i}", [f"c{j}" for j in own]) for i, own in enumerate(io_["candidate_index"])]
    result = evaluate(case, rows, lookup(vectors)[0], no_images)

    assert result.hit_at_1 == 100 * golden["hit1_vlm2vec"]
    assert (result.rank == 0).sum() == golden["num_correct_llave"]
    np.testing.assert_array_equal(result.rank == 0, io_["pred_vlm2vec"] == 0)
    assert np.flatnonzero(result.tied).tolist() == golden["rows_whose_best_score_is_tied"]
    best = [int(result.items[i].text[1:]) for i in result.top[:, 0]]
    np.testing.assert_array_equal(
        best, np.take_along_axis(io_["candidate_index"], io_["pred_llave"][:, None], 1)[:, 0]
    )
    np.testing.assert_allclose(result.gold_score, io_["scores"][:, 0], atol=2e-7)
    np.testing.assert_allclose(
        result.top_score, -np.sort(-io_["scores"], axis=1)[:, :TOP], atol=2e-7
    )
    unique = len(set(io_["candidate_index"].ravel().tolist()))
    assert len(result.items) <= unique + len(rows)


def test_what_cannot_be_ranked_is_an_error_that_names_it():
    # Zero vector is an error that names the item.
    io_ = np.load(GOLDEN / "mmeb_zero_vector" / "io.npz")
    vectors = {"q": io_["query"]} | {f"c{i}": v for i, v in enumerate(io_["candidates"])}
    zero = next(name for name, v in vectors.items() if not v.any())
    rows = [row("q", [name for name in vectors if name != "q"])]
    with pytest.raises(ValueError, match=f"1 of 7 embeddings .*text='{zero}'"):
        evaluate("zero", rows, lookup(vectors)[0], no_images)

    # No rows is an error.
    with pytest.raises(ValueError, match="dataset 'CIRR' has no rows"):
        evaluate("CIRR", [], lookup({})[0], no_images)

    # Encode must return one vector an item.
    with pytest.raises(ValueError, match=r"shape \(2, 4\) for 3 items"):
        evaluate("d", [row("q", "ab")], lambda items: np.ones((2, 4)), no_images)

    # No datasets no call.
    encode, calls = lookup({})
    assert evaluate_all({}, encode, no_images) == {} and calls == []

    # A vector that is not finite is an error
    for value in [np.nan, np.inf]:
        vectors = {"q": [1.0, 0], "good": [0.0, 1], "bad": [value, 1]}
        with pytest.raises(ValueError, match="zero or not finite.*text='bad'"):
            evaluate("d", [row("q", ["good", "bad"])], lookup(vectors)[0], no_images)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranking_is_brute_force(data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    # Small integers: exact ties and equal vectors under different names are common.
    pool = {f"c{i}": rng.integers(-2, 3, 3) for i in range(12)} | {
        f"q{i}": rng.integers(-2, 3, 3) for i in range(6)
    }
    pool = {name: v if v.any() else v + 1 for name, v in pool.items()}
    lists = data.draw(
        st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=9), min_size=1, max_size=6)
    )
    rows = [row(f"q{i}", [f"c{j}" for j in own], id=f"r{i}") for i, own in enumerate(lists)]
    result = evaluate("d", rows, lookup(pool)[0], no_images)
    unit = {k: (v / np.linalg.norm(v)).astype(np.float32) for k, v in pool.items()}
    for n, own in enumerate(lists):
        scores = np.array([np.float32(np.float64(unit[f"q{n}"]) @ unit[f"c{j}"]) for j in own])
        order = sorted(range(len(own)), key=lambda k: (-scores[k], k))
        assert result.rank[n] == order.index(0)
        assert (result.rank[n] == 0) == (int(np.argmax(scores)) == 0)
        assert result.tied[n] == (sum(s == max(scores) for s in scores) > 1)
        names = [result.items[i].text for i in result.top[n] if i >= 0]
        assert names == [f"c{own[k]}" for k in order[:TOP]]
        wrong = [s for s, j in zip(scores, own, strict=True) if j != own[0]]
        assert result.gold_score[n] == scores[0]
        assert result.items[result.gold[n]].text == f"c{own[0]}"
        assert result.items[result.query[n]].text == f"q{n}"
        np.testing.assert_equal(result.hardest[n], np.float32(max(wrong, default=np.nan)))
        np.testing.assert_equal(result.easiest[n], np.float32(min(wrong, default=np.nan)))
        assert result.candidates[n] == len(own)
    assert 0 <= result.strict_hit_at_1 <= result.hit_at_1 <= 100

    shuffled = evaluate(
        "d", [rows[i] for i in rng.permutation(len(rows))], lookup(pool)[0], no_images
    )
    by_id = dict(zip(shuffled.ids, zip(shuffled.rank, shuffled.hardest, strict=True), strict=True))
    for row_id, rank, hardest in zip(result.ids, result.rank, result.hardest, strict=True):
        np.testing.assert_equal(by_id[row_id], (rank, hardest))


def test_every_distinct_item_is_encoded_once():
    # Every distinct item is encoded once over all datasets.
    vectors = {name: np.eye(6)[i] for i, name in enumerate("abcdef")}
    encode, calls = lookup(vectors)
    rows = {"one": [row("a", "bcb"), row("b", "ca")], "two": [row("a", "def"), row("d", "a")]}
    results = evaluate_all(rows, encode, no_images)
    assert [sorted(item.text for item in call) for call in calls] == [list("abc"), list("def")]
    assert list(results) == ["one", "two"]
    alone = evaluate("two", rows["two"], lookup(vectors)[0], no_images)
    for field, value in vars(alone).items():
        np.testing.assert_equal(getattr(results["two"], field), value)

    # Text and image path together are the item.
    files = {"a.png": png("red"), "b.png": png("blue")}
    fetched, seen = [], []

    def images(path):
        fetched.append(path)
        return files[path]

    def encode(items):
        seen.extend(items)
        return np.eye(len(items), dtype=np.float32) + 0.1

    rows = [
        {
            "qry_text": b"<|image_1|> what",  # as TFDS hands it over
            "qry_img_path": b"a.png",
            "tgt_text": np.array([b"x", b"x", b"x"], object),
            "tgt_img_path": np.array([b"a.png", b"b.png", b""], object),
        }
    ]
    result = evaluate("d", rows, encode, images)
    assert [item.key for item in seen] == [
        ("<|image_1|> what", "a.png"),
        ("x", "a.png"),
        ("x", "b.png"),
        ("x", ""),
    ]
    a, b = (Media(path, files[path]) for path in ("a.png", "b.png"))
    assert [item.media for item in seen] == [(a,), (a,), (b,), ()]
    assert sorted(fetched) == ["a.png", "a.png", "b.png"]  # once an item, none before it
    assert not any(image.data for item in result.items for image in item.media)


def test_an_item_has_as_many_images_as_its_cell_has_paths(tmp_path):
    """Also in the results that are kept, and in the report's gallery."""
    files = {"a.png": png("red"), "b.png": png("blue")}
    rows = [
        row(
            "<|image_1|> or <|image_2|>?",
            "xyz",
            qry_img_path=np.array([b"a.png", b"b.png"], object),
            tgt_img_path=[["b.png", "a.png"], "a.png", np.array([], object)],
        )
    ]
    seen = []

    def encode(items):
        seen.extend(items)
        return np.eye(len(items), dtype=np.float32) + 0.1

    result = evaluate("d", rows, encode, files.__getitem__)
    a, b = (Media(path, files[path]) for path in ("a.png", "b.png"))
    assert [item.media for item in seen] == [(a, b), (b, a), (a,), ()]
    results_files.save_results(tmp_path / "results.npz", {"d": result})
    kept = results_files.load_results(tmp_path / "results.npz")["d"]
    assert kept.items == result.items
    assert [item.key for item in kept.items] == [item.key for item in seen]
    example = gallery.example(kept, 0, None, files.__getitem__, {})
    sides = [example["query"], *example["cards"]]
    assert [len(side["images"]) for side in sides] == [2, 2, 1, 0]
    assert example["query"]["text"] == "or ?"
    composed = {"image_path": ["a.png", "b.png"], "caption": "c", "negative_caption": "n"}
    task = composition.Task("swap", [composed], "<|image_1|>").open(files.__getitem__)
    assert task.items[0].media == (a, b)


def bad_rows():
    image = {"qry_img_path": "x.png"}
    two = {"qry_img_path": ["y.png", "x.png"]}
    first = {"y.png": png()}
    return {
        "no file": (row("q", "ab", **image), no_images, "row 1 .*'x.png' has no file"),
        "empty": (row("q", "ab", **image), lambda path: b"", "row 1 .*'x.png' has no file"),
        "corrupt": (row("q", "ab", **image), lambda path: b"junk", "row 1 .*'x.png' cannot be re"),
        "truncated": (
            row("q", "ab", **image),
            lambda path: png()[:-30],
            "row 1 .*'x.png' cannot be read.*cannot be decoded: fetch it again",
        ),
        "the second has no file": (row("q", "ab", **two), first.__getitem__, "'x.png' has no file"),
        "the second is corrupt": (
            row("q", "ab", **two),
            (first | {"x.png": png()[:-30]}).__getitem__,
            "row 1 .*image 2 of 2: the image 'x.png' cannot be read.*decoded: fetch it again",
        ),
        "no path": (
            row("q", "ab", qry_img_path=["", "x"]),
            no_images,
            "row 1: image 1 of 2",
        ),
        "a NUL": (row("q", "ab", qry_img_path="x\0y"), no_images, "row 1: .*it has a NUL"),
        "no candidates": (row("q", ""), no_images, "row 1: no candidates"),
        "uneven": (row("q", "ab", tgt_img_path=[""]), no_images, "2 tgt_text but 1 tgt_img_path"),
        "not a list": (row("q", "ab", tgt_text="ab"), no_images, "must be lists"),
        "no column": ({"qry_text": "q"}, no_images, "no column qry_img_path, tgt_text"),
    }


@for_each("name", bad_rows())
def test_bad_data_is_an_error_that_names_dataset_and_row(name):
    bad, images, message = bad_rows()[name]
    vectors = {name: np.eye(3)[i] for i, name in enumerate("qab")}
    with pytest.raises(ValueError, match=f"dataset 'RefCOCO', .*{message}|'RefCOCO'.*{message}"):
        evaluate("RefCOCO", [row("q", "ab"), bad], lookup(vectors)[0], images)


def test_results_are_of_distinct_pairs_and_survive_saving(tmp_path):
    # Aligned holds distinct pairs only.
    rng = np.random.default_rng(0)
    vectors = {c: rng.normal(size=4) for c in "pqrsabc"}
    rows = [row("p", "ab"), row("q", "ab"), row("p", "ca"), row("r", "cb"), row("s", "ba")]
    result = evaluate("d", rows, lookup(vectors)[0], no_images)
    unit = {k: v / np.linalg.norm(v) for k, v in vectors.items()}
    expected = [[unit[q] @ unit[g] for g in "acb"] for q in "prs"]
    np.testing.assert_allclose(result.aligned, expected, atol=1e-6)

    # Results survive saving.
    rng = np.random.default_rng(0)
    vectors = {c: rng.normal(size=4) for c in "pqabcdefg"}
    rows = {n: [row("p", "abcdefg"), row("q", "a")] for n in ["x/y"] + [f"d{i}" for i in range(11)]}
    results = evaluate_all(rows, lookup(vectors)[0], no_images)
    results_files.save_results(tmp_path / "before.npz", results)
    again = results_files.load_results(tmp_path / "before.npz")
    assert list(again) == list(results)
    for name, result in results.items():
        for field, value in vars(result).items():
            np.testing.assert_equal(getattr(again[name], field), value)
        assert again[name].items[result.gold[0]] == Item("a")
