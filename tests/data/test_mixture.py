"""The mixture: deterministic, weighted, in runs of one source, the same for any process count."""

import collections

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tables import for_each
from unime_jax.data.mixture import mixture

SOURCES = {"b": range(2000), "a": range(700), "c": range(1000), "unused": range(5)}
WEIGHTS = {"a": 0.2, "b": 0.7, "c": 0.1}


def picks(
    count, *, weights=WEIGHTS, batch_size=12, source_run=0, seed=0, process=(0, 1), first=0, **more
):
    order = mixture(
        SOURCES,
        weights,
        batch_size=batch_size,
        source_run=source_run,
        seed=seed,
        process_index=process[0],
        process_count=process[1],
        first_batch=first,
        **more,
    )
    return [order[i] for i in range(count)]


def test_the_seed_decides_in_every_process_and_permutes_sources_apart():
    # Seed decides.
    assert picks(200) == picks(200)
    assert picks(200) != picks(200, seed=1)
    assert picks(50, weights=dict(reversed(WEIGHTS.items()))) == picks(50)

    # Pickled order is the order.
    order = mixture(SOURCES, WEIGHTS, batch_size=4, source_run=2, seed=3)
    copy = cloudpickle.loads(cloudpickle.dumps(order))
    assert [order[i] for i in range(50)] == [copy[i] for i in range(50)]

    # Sources do not share a permutation.
    sources = {"x": range(1000), "y": range(1000)}
    order = mixture(sources, {"x": 1, "y": 1}, batch_size=8, source_run=0, seed=0)
    x, y = ([order[i].row for i in range(128) if order[i].source == name] for name in "xy")
    assert x != y

    # Zero mixes within a batch.
    assert len({pick.source for pick in picks(12)}) == 3

    # Far positions are as cheap as near ones.
    order = mixture(SOURCES, WEIGHTS, batch_size=12, source_run=4, seed=0)
    assert order[10**12].source in WEIGHTS


@for_each("source_run", [0, 3, 12])
def test_every_row_once_an_epoch_and_another_order_next(source_run):
    sources = {"b": range(300), "a": range(200)}
    order = mixture(sources, {"a": 1, "b": 2}, batch_size=12, source_run=source_run, seed=0)
    indices = [order[i].row for i in range(1200) if order[i].source == "b"]
    first, second = indices[:300], indices[300:600]
    assert sorted(first) == sorted(second) == list(range(300))
    assert first != second and first != sorted(first)


@given(
    weights=st.dictionaries(st.sampled_from("abc"), st.floats(0.05, 10), min_size=1),
    source_run=st.sampled_from([0, 1, 2, 4, 12]),
)
@settings(max_examples=20, deadline=None)
def test_weights_are_respected(weights, source_run):
    count = 12 * 100
    counts = collections.Counter(
        pick.source for pick in picks(count, weights=weights, source_run=source_run)
    )
    total = sum(weights.values())
    for name, weight in weights.items():
        tolerance = 0.02 * weight / total + 2 * max(source_run, 1) / count
        assert counts[name] / count == pytest.approx(weight / total, abs=tolerance)


@for_each("source_run", [2, 3, 4, 6, 12])
def test_runs_are_homogeneous(source_run):
    chosen = picks(12 * 30, source_run=source_run)
    for start in range(0, len(chosen), source_run):
        assert len({pick.source for pick in chosen[start : start + source_run]}) == 1


@for_each("source_run", [0, 4, 12])
@for_each("processes", [2, 3, 4])
def test_processes_together_read_the_same_batches(processes, source_run):
    batches, local = 20, 12 // processes
    parts = [
        picks(batches * local, source_run=source_run, process=(p, processes))
        for p in range(processes)
    ]
    together = [
        pick
        for batch in range(batches)
        for part in parts
        for pick in part[batch * local : (batch + 1) * local]
    ]
    assert together == picks(batches * 12, source_run=source_run)


@given(
    first=st.integers(0, 10**6),
    processes=st.sampled_from([1, 2, 3, 4]),
    source_run=st.sampled_from([0, 4, 12]),
)
@settings(max_examples=20, deadline=None)
def test_any_batch_can_be_the_first(first, processes, source_run):
    """Whatever number of processes goes on there, it is the batch that one process had."""
    local = 12 // processes
    parts = [
        picks(local, source_run=source_run, process=(p, processes), first=first)
        for p in range(processes)
    ]
    order = mixture(SOURCES, WEIGHTS, batch_size=12, source_run=source_run, seed=0)
    assert sum(parts, []) == [order[i] for i in range(first * 12, (first + 1) * 12)]


def test_readable_errors():
    with pytest.raises(ValueError, match="'a' is empty"):
        mixture({"a": []}, {"a": 1}, batch_size=1, source_run=0, seed=0)

    # Other mistakes
    for changes, message in [
        ({"weights": {}}, "no sources"),
        ({"weights": {"aa": 1}}, "did you mean a"),
        ({"weights": {"a": 0}}, "must be positive"),
        ({"weights": {"a": float("nan")}}, "must be positive"),
        ({"source_run": 5}, "must divide batch_size = 12"),
        ({"source_run": -1}, "must divide"),
        ({"source_run": 24}, "must divide"),
        ({"process": (0, 5)}, "cannot be shared by 5 processes"),
        ({"cluster_size": 5}, "cluster_size = 5 must divide batch_size = 12 and source_run = 0"),
        ({"cluster_size": 4, "source_run": 6}, "cluster_size = 4 must divide .* source_run = 6"),
    ]:
        with pytest.raises(ValueError, match=message):
            picks(1, **changes)


@for_each("source_run", [0, 4])
def test_a_batch_is_of_one_group(source_run):
    """Groups have batches as their weights say, in an order that no process or step moves."""
    groups, weights = {"a": "images", "b": "texts", "c": "images"}, {"a": 0.2, "b": 0.6, "c": 0.2}

    def grouped(count, process=(0, 1), first=0):
        order = mixture(
            SOURCES,
            weights,
            batch_size=12,
            source_run=source_run,
            seed=0,
            process_index=process[0],
            process_count=process[1],
            first_batch=first,
            groups=groups,
        )
        return [order[i] for i in range(count)]

    chosen = grouped(12 * 100)
    batches = [chosen[i : i + 12] for i in range(0, len(chosen), 12)]
    of_batches = [{groups[pick.source] for pick in batch} for batch in batches]
    assert all(len(names) == 1 for names in of_batches)
    assert sum(names == {"texts"} for names in of_batches) == 60
    counts = collections.Counter(pick.source for pick in chosen)
    assert abs(counts["a"] - counts["c"]) <= 12
    # Rows come once an epoch, as without groups.
    assert len({pick.row for pick in chosen if pick.source == "a"}) == counts["a"]
    for first in (0, 37):
        parts = [grouped(6, (p, 2), first) for p in range(2)]
        assert sum(parts, []) == batches[first]


def test_batches_of_whole_clusters_by_any_processes_from_any_step_on():
    """Runs of one source have clusters of it; each row comes once a pass, see test_clusters."""
    rng = np.random.default_rng(0)
    clusters = {name: rng.permutation(len(SOURCES[name])).astype(np.int32) for name in WEIGHTS}
    number = {name: np.argsort(order) // 4 for name, order in clusters.items()}
    groups = {"a": "images", "b": "texts", "c": "images"}
    for source_run, of_groups in ((0, None), (12, None), (4, groups)):
        more = {"clusters": clusters, "cluster_size": 4, "groups": of_groups}
        chosen = picks(12 * 40, source_run=source_run, **more)
        for start in range(0, len(chosen), 4):
            run = chosen[start : start + 4]
            assert len({(pick.source, number[pick.source][pick.row]) for pick in run}) == 1
        met = [{pick.source for pick in chosen[n : n + 12]} for n in range(0, len(chosen), 12)]
        assert max(map(len, met)) == (1 if source_run == 12 else 2 if of_groups else 3)
        parts = [
            picks(4, source_run=source_run, process=(p, 3), first=17, **more) for p in range(3)
        ]
        assert sum(parts, []) == chosen[17 * 12 : 18 * 12]
    of_a = [pick for pick in picks(12 * 400, **more) if pick.source == "a"]
    assert len({pick.row for pick in of_a[:700]}) == 700 and {pick.epoch for pick in of_a} == {0, 1}
