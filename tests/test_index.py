"""Exact search for users: beside sorted cosines of everything."""

import re

import jax
import numpy as np
import pytest

from tests.tables import for_each
from unime_jax import Index, sharding
from unime_jax.data import embedding_store_writer
from unime_jax.data.embedding_store import item_id
from unime_jax.data.quantized_vectors import Quantization, ranges_of

IDS = [f"entry {n}\u00e9" for n in range(300)]


def vectors_of(count, seed):
    """Of any length, one of zeros, and equal ones."""
    vectors = np.random.default_rng(seed).standard_normal((count, 12)).astype(np.float32)
    vectors[5], vectors[40:44] = 0, vectors[7]
    return vectors


def expected(queries, vectors, ids, k, where=None):
    """(id, cosine) of the k best; of equal ones the first."""
    unit = [
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, vectors)
    ]
    scores = (unit[0].astype(np.float64) @ unit[1].T.astype(np.float64)).astype(np.float32)
    if where is not None:
        scores[:, ~where] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    rows = [
        [(ids[n], own[n]) for n in best if own[n] > -np.inf] for own, best in zip(scores, order)
    ]
    return [[(id, float(score)) for id, score in row] for row in rows]


@for_each("devices", [1, 8])
def test_the_k_best_by_cosine_of_all_that_may_be_found(tmp_path, monkeypatch, devices):
    mesh = sharding.make_mesh(1, -1, 1, jax.devices()[:devices])
    monkeypatch.setattr("unime_jax.index.QUERIES", 4)
    monkeypatch.setattr("unime_jax.index.CHECKED", 12 * 70)
    vectors, queries = vectors_of(300, 0), vectors_of(50, 1)[3:12]
    index = Index(vectors[:200], IDS[:200], mesh=mesh)
    index.add(vectors[200:], IDS[200:])
    assert len(index) == 300 and index.ids == IDS and index.dimension == 12
    assert index.search(queries, 7) == expected(queries, vectors, IDS, 7)
    assert index.search(queries[:0]) == []

    # Filters, and fewer entries than are asked for.
    where = np.arange(300) % 5 == 2
    assert index.search(queries, 7, where=where) == expected(queries, vectors, IDS, 7, where)
    few = np.isin(np.arange(300), [7, 40, 250])
    assert index.search(queries, 7, where=few) == expected(queries, vectors, IDS, 3, few)
    assert index.search(queries[:1], where=np.zeros(300, bool)) == [[]]

    # Saved and loaded, and gone on with; also over itself.
    for seed in (2, 3):
        index.save(tmp_path / "index")
        index = Index.load(tmp_path / "index", mesh=mesh)
        more = vectors_of(50, seed)
        index.add(more)
        vectors = np.concatenate([vectors, more])
        assert index.ids[-50:] == [str(n) for n in range(len(index) - 50, len(index))]
        assert index.search(queries, 7) == expected(queries, vectors, index.ids, 7)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["index"]


def test_a_folder_of_job_embed_is_an_index_and_is_not_written_over(tmp_path):
    vectors, texts = vectors_of(50, 0)[:5], ["a", "b", "c", "d", "e"]
    embedding_store_writer.write(tmp_path / "embeddings", texts, vectors)
    index = Index.load(tmp_path / "embeddings")
    ids = [item_id(text).decode() for text in texts]
    assert index.search(vectors[:2], 3) == expected(vectors[:2], vectors, ids, 3)
    with pytest.raises(ValueError, match="no index wrote it"):
        index.save(tmp_path / "embeddings")
    assert len(Index.load(tmp_path / "embeddings")) == 5


@for_each("precision", ["float16", "int8", "binary", "ubinary"])
def test_entries_in_fewer_bits_are_searched_exactly(tmp_path, monkeypatch, precision):
    """By the cosine of what is kept; of signs by their Hamming distance, ties in order."""
    monkeypatch.setattr("unime_jax.index.QUERIES", 4)
    monkeypatch.setattr("unime_jax.index.CHECKED", 12 * 70)
    monkeypatch.setattr("unime_jax.data.index_files.COPIED", 12 * 70)
    monkeypatch.setattr("unime_jax.index.BLOCK", 12 * 96)  # several blocks
    vectors, queries = vectors_of(300, 0), vectors_of(50, 1)[3:11]
    queries[0] = vectors[0]  # the first entry is the nearest
    has_bits = precision.endswith("binary")
    ranges = ranges_of(vectors[:200]) if precision.endswith("int8") else None
    index = Index(vectors[:200], IDS[:200], precision=precision, ranges=ranges)
    kind = Quantization(precision, 12, ranges)
    index.add(vectors[200:], IDS[200:])
    kept = kind.decode(kind.encode(vectors))
    rows = np.array([250, 3, 7])
    np.testing.assert_array_equal(index.vectors(rows), kept[rows])
    where = np.arange(300) % 5 == 2
    index.save(tmp_path / "index")
    stored = np.load(tmp_path / "index" / "vectors.npy")
    assert stored.dtype == kind.dtype and stored.shape == (300, kind.width)
    for opened in (index, Index.load(tmp_path / "index")):
        assert opened.ids == IDS and opened.dimension == 12
        for chosen in (None, where):
            found = opened.search(queries, 7, where=chosen)
            sides = (np.where(queries > 0, 1, -1), kept) if has_bits else (queries, kept)
            wanted = expected(*(np.asarray(x, np.float32) for x in sides), IDS, 7, chosen)
            assert [[hit.id for hit in row] for row in found] == [
                [id for id, _ in row] for row in wanted
            ]
            scores = [[score for _, score in row] for row in found]
            np.testing.assert_allclose(
                scores, [[score for _, score in row] for row in wanted], atol=1e-6 * has_bits
            )
    opened.add(vectors[:1], ["again"])
    opened.save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == 301

    assert index.search(queries[:4], where=np.zeros(300, bool)) == [[]] * 4

    # Rescored, and of all entries that is the order of the queries themselves.
    if has_bits:
        all_of_them = index.search(queries, 5, rescore_multiplier=60)
        assert all_of_them == expected(queries, kept, IDS, 5)
        first = [{hit.id for hit in row} for row in index.search(queries, 10)]
        again = index.search(queries, 5, rescore_multiplier=2)
        assert all({hit.id for hit in row} <= ids for row, ids in zip(again, first))
        assert all(a.score >= b.score for row in again for a, b in zip(row, row[1:]))
    with pytest.raises(ValueError, match="it is at least 1, and of sign bits"):
        index.search(queries, rescore_multiplier=0 if has_bits else 2)

    # Codes are taken as they are, of sign bits by whole bytes.
    padded = np.pad(vectors, ((0, 0), (0, 4)))
    kind = Quantization(precision, 16, None if ranges is None else ranges_of(padded))
    coded = Index(kind.encode(padded), precision=precision, ranges=kind.ranges)
    floats = Index(padded, precision=precision, ranges=kind.ranges)
    more = np.pad(queries, ((0, 0), (0, 4)))
    assert coded.search(more) == floats.search(more) and coded.dimension == 16
    np.save(tmp_path / "index" / "vectors.npy", stored[:, :1])
    with pytest.raises(ValueError, match=r"vectors.npy has shape \(300, 1\)"):
        Index.load(tmp_path / "index")


def test_wrong_arguments_are_named_and_change_nothing(tmp_path, unchecked_shapes):
    vectors = np.ones((3, 4), np.float32)
    index = Index(vectors)
    infinite = vectors.copy()
    infinite[1, 2] = np.inf
    for call, message in [
        (lambda: Index(np.ones((3, 4), int)), "shape (3, 4) and dtype int64"),
        (lambda: index.add(vectors[0]), "shape (4,)"),
        (lambda: index.add(vectors[:, :3]), "3 dimensions, those of the index 4"),
        (lambda: index.add(infinite), "vectors[1] has values that are not finite"),
        (lambda: index.add(vectors, ["a", "b"]), "2 ids for 3 vectors"),
        (lambda: index.add(vectors, ["a", "b", "a"]), "ids[2] is 'a'"),
        (lambda: index.add(vectors, ["a", "1", "b"]), "ids[1] is '1'"),
        (lambda: index.add(vectors, ["a", "", "b"]), "ids[1] is ''"),
        (lambda: index.search(vectors[:, :3]), "[queries, 4] floats"),
        (lambda: index.search(infinite), "queries have values that are not finite"),
        (lambda: index.search(vectors, 0), "k is 0"),
        (lambda: index.search(vectors, where=np.ones(2, bool)), "[3] booleans"),
        (lambda: index.search(vectors, where=np.ones(3, int)), "dtype int64"),
        (lambda: Index(vectors, precision="int8"), "there are no ranges"),
        (lambda: Index(vectors, precision="int4"), "precision is 'int4'"),
        (lambda: Index(vectors, precision="binary").add(np.ones((3, 2), np.int8)), "2 bytes"),
        (lambda: Index(np.ones((3, 4), np.int8)), "dtype int8"),
        (lambda: Index(vectors[:0]).save(tmp_path / "a"), "no entry"),
        (lambda: index.save(tmp_path), "no index wrote it"),
        (lambda: Index.load(tmp_path), "has no embeddings"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    assert index.ids == ["0", "1", "2"] and list(tmp_path.iterdir()) == []
