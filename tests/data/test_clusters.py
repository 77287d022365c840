"""Clusters of rows that mined each other, and their order in every pass."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from unime_jax.data import clusters
from unime_jax.data.cluster_order import ClusterOrder
from unime_jax.data.mined_table import Layout, Writer, open_mined, row_type


def together(order, size):
    """Pairs of rows of a cluster."""
    numbers = np.empty(len(order), int)
    numbers[order] = np.arange(len(order)) // size
    return numbers[:, None] == numbers[None]


def test_clusters_recover_planted_communities():
    """Of 16 rows each, a third of whose edges lead anywhere; and of targets that many rows have."""
    rng = np.random.default_rng(0)
    community = rng.permutation(16 * 50) // 16
    edges = np.full((800, 12), clusters.NONE, np.int32)
    for row in range(795):  # the last have none
        of_own = rng.permutation(np.flatnonzero(community == community[row]))
        of_own = of_own[of_own != row][:8]
        edges[row] = rng.permutation(np.concatenate([of_own, rng.integers(0, 800, 4)]))
    targets = np.arange(800, dtype=np.int32)
    order = clusters.partition(edges, targets, 16, seed=0)
    assert sorted(order) == list(range(800))
    assert (clusters.partition(edges, targets, 16, seed=0) == order).all()
    assert (clusters.partition(edges, targets, 16, seed=1) != order).any()
    planted = community[:, None] == community[None]
    recovered = (together(order, 16) & planted).sum() / planted.sum()
    assert recovered > 0.9  # by chance 0.08
    inside, by_chance = clusters.share_inside(edges, order, 16)
    assert 7 < inside < 9 and 0.2 < by_chance < 0.25

    # Equal targets never meet, but in clusters of what is left over; 7 does not divide 800.
    shared = (np.arange(800) // 4).astype(np.int32)
    order = clusters.partition(edges, shared, 7, seed=0)
    assert sorted(order) == list(range(800))
    whole = [len(set(shared[order[start : start + 7]])) for start in range(0, 790, 7)]
    assert np.mean(np.array(whole) == 7) > 0.9
    # Rows of a community have four targets between them.
    shared = (4 * community + np.arange(800) % 4).astype(np.int32)
    order = clusters.partition(edges, shared, 4, seed=0)
    distinct = [len(set(shared[order[start : start + 4]])) for start in range(0, 800, 4)]
    assert np.mean(np.array(distinct) == 4) > 0.9


@given(
    count=st.integers(1, 60), size=st.integers(2, 12), seed=st.integers(0, 9), far=st.integers(0, 9)
)
@settings(max_examples=40, deadline=None)
def test_a_pass_has_every_row_once_and_whole_clusters(count, size, seed, far):
    rows = np.random.default_rng(seed).permutation(count).astype(np.int32)
    order = ClusterOrder(rows, size, seed)
    passes = [[order[(far + n) * count + i] for i in range(count)] for n in range(2 * size)]
    assert all(sorted(each) == list(range(count)) for each in passes)
    whole = [frozenset(rows[i : i + size].tolist()) for i in range(0, count - size + 1, size)]
    for n, each in enumerate(passes):
        start = -(far + n) * count % size  # from there on, runs are the pass's own
        runs = [frozenset(each[i : i + size]) for i in range(start, count - size + 1, size)]
        assert set(runs) <= set(whole) and len(whole) - len(runs) in (0, 1)
    if len(whole) > 5:
        assert len({tuple(each) for each in passes}) > size


def test_edges_lead_to_rows_whose_positives_were_mined(tmp_path):
    """By score, without repetitions; rows with equal positives to different ones, of one source."""
    layout = Layout({"a": 7, "b": 2}, block=4, count=4)
    record = {"sources": {"a": [7, 7], "b": [2, 2]}, "provenance": {}}
    writer = Writer(tmp_path, layout, record | {"corpus": {"path": "", "sources": []}})
    ids = np.array([f"{n:032d}" for n in range(6)], "S32")
    #        rows of a                b; 4 is nobody's positive, 5 is the other source's
    positives = [0, 1, 1, 2, 0, -1, 3, 5, 0]
    writer.put_candidates(ids, np.zeros((6, 3), np.int32), np.array(positives, np.int32))
    mined = {  # numbers and scores, in an order of the miner's choice
        0: ([1, 2, 4, 2], [0.3, 0.9, 0.8, 0.9]),
        4: ([1, 5, -1, -1], [0.3, 0.2, np.nan, np.nan]),
        6: ([0, 1, 2, 4], [0.1, 0.2, 0.3, 0.4]),
    }
    for number, (source, span) in enumerate(layout.blocks()):
        table = np.zeros(len(span), row_type(4))
        table["number"], table["score"] = -1, np.nan
        for row, (numbers, scores) in mined.items():
            if source == "a" and row in span:
                table["number"][row - span.start] = numbers
                table["score"][row - span.start] = scores
        writer.put(number, table)
    writer.finish()
    table = open_mined(tmp_path)
    edges = clusters.neighbours(table, "a", 7, (1, 4), seed=0)
    assert edges[0, 0] == 3 and edges[0, 1] == -1 and edges[0, 3] == -1
    assert {edges[0, 2], edges[4, 0]} == {1, 2}  # rows with target 0 are led to one each of 1's
    assert edges[6].tolist()[:2] == [-1, 3] and edges[6, 3] in (0, 4)
    assert (edges[[1, 2, 3, 5]] == -1).all()
    window = clusters.neighbours(table, "a", 7, (2, 3), seed=0)
    assert (window == edges[:, 1:3]).all()
    first = clusters.neighbours(table, "a", 3, (1, 4), seed=0)  # the first rows alone
    assert first[0].tolist() == [-1, -1, edges[0, 2], -1] or first[0, 2] in (1, 2)
    assert first.shape == (3, 4) and first[0, 0] == -1
    (tmp_path / "positives.npy").unlink()
    try:
        clusters.neighbours(table, "a", 7, (1, 4), seed=0)
        raise AssertionError
    except ValueError as error:
        assert "has no positives.npy" in str(error)
