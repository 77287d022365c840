"""The search of a corpus, beside sorted scores of all of it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.tables import for_each
from unime_jax import sharding
from unime_jax.evaluation.mining import corpus_search, top_k
from unime_jax.planning import chips, compiler


def unit(shape, seed):
    vectors = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@for_each("devices, columns", [(1, 256), (8, 512), (2, 4096)])
def test_the_best_below_the_limit_are_those_of_the_sorted_corpus(devices, columns, caplog):
    rng = np.random.default_rng(0)
    corpus, queries = unit((1500, 16), 1), unit((11, 16), 2)
    corpus[100:400] = corpus[100]  # more copies than are proposed: the host decides
    queries[5] = corpus[100]
    number = np.sort(rng.permutation(1500)[:1300]).astype(np.int32)
    limit = np.full(11, 0.5, np.float32)
    limit[[3, 5]] = np.inf
    limit[7] = -1  # leaves nothing
    excluded = [rng.permutation(number)[: rng.integers(0, 90)] for _ in queries]
    scores = (queries.astype(np.float64) @ corpus.T.astype(np.float64)).astype(np.float32)
    limit[4] = np.sort(scores[4, number])[-20]  # which is a score itself
    mesh = sharding.make_mesh(1, -1, 1, jax.devices()[:devices])
    within = corpus_search.Corpus(number, lambda numbers: corpus[numbers], mesh, columns)
    for count in (3, 40):
        with caplog.at_level("INFO"):
            got, got_scores = corpus_search.search(queries, limit, excluded, within, count)
        for row, own in enumerate(excluded):
            allowed = number[(scores[row, number] <= limit[row]) & ~np.isin(number, own)]
            best = allowed[np.lexsort((allowed, -scores[row, allowed]))][:count]
            assert got[row, : len(best)].tolist() == best.tolist()
            assert got_scores[row, : len(best)].tolist() == scores[row, best].tolist()
            assert (got[row, len(best) :] == -1).all()
            assert np.isnan(got_scores[row, len(best) :]).all()
    assert (got[7] == -1).all()
    assert caplog.text.count("1 of 11 queries are compared on the host") == 2


def test_an_approximate_search_has_most_of_the_best_and_nothing_that_is_excluded():
    """On a CPU `approx_max_k` is exact, so that what is lost is the search's own."""
    corpus, queries = unit((3000, 16), 1), unit((8, 16), 2)
    number = np.arange(3000, dtype=np.int32)
    scores = (queries.astype(np.float64) @ corpus.T.astype(np.float64)).astype(np.float32)
    limit = np.quantile(scores, 0.97, axis=1).astype(np.float32)
    best = np.argsort(-np.where(scores <= limit[:, None], scores, -np.inf), axis=1)
    excluded = [row[:10].astype(np.int32) for row in best]
    mesh = sharding.make_mesh(1, -1, 1, jax.devices()[:8])
    within = corpus_search.Corpus(
        number, lambda numbers: corpus[numbers], mesh, 1024, "approximate"
    )
    got, _ = corpus_search.search(queries, limit, excluded, within, 40)
    recalled = [len(np.intersect1d(own, row[10:50])) / 40 for own, row in zip(got, best)]
    assert np.mean(recalled) >= top_k.RECALL
    for row, own in enumerate(got):
        assert (scores[row, own] <= limit[row]).all() and not np.isin(own, excluded[row]).any()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", "approximate"])
def test_the_search_compiles_for_tpu_without_exchange_between_chips(method, tmp_path):
    """On a TPU `approx_max_k` is its partial reduction, of each chip's own part of the corpus."""
    pytest.importorskip("libtpu")
    where = chips.parse("v5e:2x2")
    mesh = sharding.make_mesh(1, -1, 1, compiler.devices(where))
    k, queries, columns, width = 96, 2048, 32768, 1024

    def shape(sizes, dtype, spec):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

    part, whole = P(sharding.AXES), P()
    best = top_k.Best(
        shape((4, queries, k), jnp.float32, part), shape((4, queries, k), jnp.int32, part)
    )
    compiled = (
        top_k.updater(mesh, method)
        .lower(
            best,
            shape((queries, width), jnp.float32, whole),
            shape((queries,), jnp.float32, whole),
            shape((columns, width), jnp.float32, part),
            shape((columns,), jnp.int32, part),
        )
        .compile()
    )
    text = compiled.as_text()
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", text)
    assert ("PartialReduce" in text or "ApproxTopK" in text) == (method == "approximate")


def test_groups_are_fewer_to_sort_and_blocks_divide_among_devices():
    assert top_k.group_width(65536, 64) == 32 and top_k.group_width(64, 64) == 1
    for columns in (96, 1024, 32768):
        for k in (1, 32, 96):
            width = top_k.group_width(columns, k)
            assert columns % width == 0 and columns // width >= min(k, columns)
    mesh = sharding.make_mesh(1, -1, 1, jax.devices()[:8])
    assert top_k.columns_of(mesh, 5) == 8 and top_k.columns_of(mesh, 3000) == 4096
