"""The pipeline as a whole: same bytes for a seed, from any batch on, and bad rows cost nothing."""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import pickle
import signal
import subprocess
import time
import zlib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import children
from tests.data.formats.writers import write_jsonl
from unime_jax.batch import Row
from unime_jax.data import loader as loader_module
from unime_jax.data.loader import draw_negatives, make_loader, read_example
from unime_jax.data.mixture import Pick, mixture
from unime_jax.data.packing import target_hash
from unime_jax.data.pairs import open_pairs
from unime_jax.data.quarantine import BadExample, Quarantine, UnusableSource, read_quarantine
from unime_jax.data.schema import to_example
from unime_jax.data.shapes import Bucket, Layout, pair_shapes

BATCH = 8
PLAN = pair_shapes([Bucket(8, 0), Bucket(8, 1)], Layout(), batch_size=BATCH, chunk_size=4)


def rows(name, count, bad=()):
    texts = [{"id": f"{name}{i}", "qry": f"{name} q{i}", "pos_text": f"p{i}"} for i in range(count)]
    return [text | ({"pos_text": ""} if i in bad else {}) for i, text in enumerate(texts)]


SOURCES = {"a": rows("a", 300), "b": rows("b", 500)}


def make_preprocess():
    def toy(item):  # pickled by value, so that worker processes need not import the tests
        if "refused" in item.text:
            raise ValueError("refused by the preprocessor")
        length = len(item.text) % 8 + 1
        tokens = np.full(length, zlib.crc32(item.text.encode()) >> 1, np.int32)
        zero = np.zeros((length, 1), np.int32)
        return Row(tokens, zero, zero - 1)

    return toy


def loader(sources=SOURCES, weights=None, **changes):
    options = {
        "batch_size": BATCH,
        "source_run": 4,
        "seed": 0,
        "preprocess": make_preprocess(),
        "shapes": PLAN,
    }
    return make_loader(sources, weights or dict.fromkeys(sources, 1), **options | changes)


@functools.cache
def uninterrupted():
    return list(itertools.islice(loader(), 12))


def assert_same(got, want):
    """Both are (Batch, PackInfo)."""
    assert jax.tree.structure(got[0]) == jax.tree.structure(want[0])
    jax.tree.map(np.testing.assert_array_equal, got[0], want[0])
    assert got[1] == want[1]


def pairs(batch):
    """The (query, positive) tokens of a batch: what was read, however it was packed."""
    tokens = np.concatenate([group.tokens.reshape(-1, 8) for group in batch.groups])
    return [(tokens[q, 0], tokens[p, 0]) for q, p in zip(batch.query, batch.positive, strict=True)]


def test_the_seed_decides_and_no_process():
    # Seed decides.
    for got, want in zip(loader(), uninterrupted(), strict=False):
        assert_same(got, want)
    other = next(loader(seed=1))[0]
    assert not np.array_equal(other.groups[0].tokens, uninterrupted()[0][0].groups[0].tokens)

    # Target ids do not depend on the process.
    ids = {int(i) for part in uninterrupted()[0][0].target_id for i in part.reshape(-1)}
    known = {target_hash((f"p{i}", "")) for i in range(500)}
    assert ids - {0} <= known and len(ids) > 4


@given(st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_goes_on_anywhere(position):
    for got, want in zip(loader(first_batch=position), uninterrupted()[position:][:3]):
        assert_same(got, want)


@given(st.sampled_from([1, 2, 4]), st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_any_number_of_processes_reads_the_batch_of_one(processes, position):
    parts = [
        loader(process_index=p, process_count=processes, first_batch=position)
        for p in range(processes)
    ]
    for want, _ in uninterrupted()[position:][:3]:
        read = []
        for part in parts:
            batch = next(part)[0]
            assert batch.query.shape == (BATCH // processes,)
            read.append(batch)
        np.testing.assert_array_equal(np.concatenate([b.source for b in read]), want.source)
        # row numbers are global: lay the parts side by side to look them up
        grids = [np.concatenate([b.groups[g].tokens for b in read], axis=1) for g in range(2)]
        tokens = np.concatenate([grid.reshape(-1, 8) for grid in grids])[:, 0]
        query, positive = (
            np.concatenate([getattr(b, name) for b in read]) for name in ("query", "positive")
        )
        assert list(zip(tokens[query], tokens[positive], strict=True)) == pairs(want)


def killed(file):
    """SIGKILL in a process whose loader has a worker; <file> says which processes it had."""
    batches = loader(workers=1)
    next(batches)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True)
    file.write_bytes(listed.stdout)
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    process = children.start(killed, tmp_path / "pids", output=tmp_path / "log", starts_others=True)
    assert process.wait(timeout=120) == -signal.SIGKILL, process.said()
    pids = [int(word) for word in (tmp_path / "pids").read_bytes().split()]
    assert len(pids) >= 2  # and `ps` itself, which has ended
    end = time.monotonic() + 30
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(process: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_order_of_rows_and_passes():
    # Runs of one source.
    for batch, _ in uninterrupted():
        assert all(len(set(run)) == 1 for run in batch.source.reshape(-1, 4).tolist())
    assert {int(i) for batch, _ in uninterrupted() for i in batch.source} == {0, 1}

    # Read example goes round the end.
    sources = {"a": rows("a", 4, bad={2, 3})}
    prepared = read_example(
        sources, Pick("a", 2), preprocess=make_preprocess(), shapes=PLAN, seed=0
    )
    assert [item.id for item in prepared.bad] == ["a2", "a3"]
    assert prepared.keys == (("a q0", ""), ("p0", ""))

    # Passes are counted by the mixture.
    picks = mixture({"a": range(5)}, {"a": 1}, batch_size=4, source_run=0, seed=0)
    seen = [picks[i] for i in range(15)]
    assert [pick.epoch for pick in seen] == [0] * 5 + [1] * 5 + [2] * 5
    assert all(sorted(p.row for p in seen[i : i + 5]) == [*range(5)] for i in (0, 5, 10))


def test_bad_rows_are_replaced_reported_and_do_not_disturb_the_order(tmp_path):
    # They are replaced and reported.
    bad = {3, 4, 5, 17, 99}
    sources = {"a": rows("a", 100, bad)}
    sources["a"][50]["qry"] = "refused"
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=0.5)
    seen = []
    for batch, info in itertools.islice(loader(sources), 25):  # two epochs
        assert batch.query.shape == (BATCH,) and info.read == BATCH + len(info.bad)
        quarantine.add(info.bad, info.read)
        seen += pairs(batch)
    items = read_quarantine(quarantine.path)
    assert sorted(item.id for item in items) == sorted(f"a{i}" for i in {*bad, 50})
    reasons = {item.id: item.reason for item in items}
    assert reasons.pop("a50") == "refused by the preprocessor"
    assert all(reason.startswith("no positive") for reason in reasons.values())
    crc = [zlib.crc32(f"a q{i}".encode()) >> 1 for i in range(100)]
    counts = {i: sum(query == crc[i] for query, _ in seen) for i in range(100)}
    assert all(counts[i] == 0 for i in {*bad, 50})
    assert counts[6] == 8 and counts[0] == 4 and counts[51] == 4  # 6 stands in for 3, 4, 5 as well

    # The order of all others is as without them.
    sources = {"a": rows("a", 300, bad={7}), "b": SOURCES["b"]}
    different = 0
    for (batch, info), (want, _) in zip(loader(sources), uninterrupted(), strict=False):
        changed = sum(p != w for p, w in zip(pairs(batch), pairs(want), strict=True))
        assert changed == len(info.bad)
        different += changed
        if different:
            break


def test_a_source_of_bad_rows_or_a_fault_of_ours_ends_the_run():
    # Whole source bad.
    sources = {"a": rows("a", 20), "b": rows("b", 20, bad=range(20))}
    with pytest.raises(
        UnusableSource, match="'b' has no usable example: 20 of 20.*no positive"
    ) as error:
        list(itertools.islice(loader(sources), 5))
    assert {item.id for item in error.value.items} == {f"b{i}" for i in range(20)}
    assert pickle.loads(pickle.dumps(error.value)).items == error.value.items  # from a worker

    # Program errors stop the run.
    def broken(item):
        raise KeyError("vision_config")

    with pytest.raises(KeyError, match="vision_config"):
        next(loader(preprocess=broken))
    with pytest.raises(ValueError, match="room for 16 rows; 16 pairs"):
        loader(batch_size=16)
    with pytest.raises(ValueError, match="did you mean WebQA"):
        loader({"WebQA": SOURCES["a"]}, {"webQA": 1})


def with_pixels():
    toy = make_preprocess()

    def pixels(item):
        return dataclasses.replace(
            toy(item), patches=np.full((1, 64, 2048), len(item.text), np.uint8)
        )

    return pixels


def test_a_file_gives_the_batches_of_its_rows_from_any_batch_on(tmp_path, monkeypatch):
    """JSON lines on disk, with and without worker processes, beside the rows as a list.

    Arrays of workers come in shared memory.
    """
    taken, pack = set(), loader_module.pack

    def seen(prepared, **options):
        taken.update(type(row.patches).__name__ for example in prepared for row in example.rows)
        return pack(prepared, **options)

    monkeypatch.setattr(loader_module, "pack", seen)
    keys = {"id": "id", "query": "qry", "positive": "pos_text", "negatives": "neg_text"}
    sources, texts = {}, {}
    for name, count in (("a", 60), ("b", 90)):
        texts[name] = [
            row | {"neg_text": several(name, i)} for i, row in enumerate(rows(name, count))
        ]
        write_jsonl(
            tmp_path,
            [{key: row[column] for key, column in keys.items()} for row in texts[name]],
            f"{name}.jsonl",
        )
    sources = open_pairs(tmp_path, {})
    layout = Layout(patches=64, patch_bytes=2048)
    shapes = pair_shapes([Bucket(8, 1)], layout, batch_size=BATCH, negatives=2, chunk_size=4)
    options = {"shapes": shapes, "preprocess": with_pixels()}
    want = list(itertools.islice(loader(texts, **options), 24))  # more than an epoch
    assert any(info.dropped_negatives for _, info in want)
    for first, workers in ((0, 0), (17, 0), (3, 2)):
        taken.clear()
        options |= {"first_batch": first, "workers": workers}
        with contextlib.closing(loader(sources, **options)) as batches:
            for got, batch in zip(batches, want[first:][:4]):
                assert_same(got, batch)
        assert taken == {"SharedMemoryArray" if workers else "ndarray"}


def several(name, number):
    return [f"{name} {number} no {n}" for n in range(number % 5)]


def test_negatives_are_drawn_anew_in_every_pass_and_others_not_read():
    # They are drawn anew in every pass, and none twice.
    source = {"s": [{"qry": "q", "pos_text": "p", "neg_text": [f"n{i}" for i in range(6)]}]}
    source["s"][0]["scores"] = [9.0, 0, 1, 2, 3, 4, 5]
    shapes = pair_shapes([Bucket(8, 0)], Layout(), batch_size=BATCH, negatives=2, chunk_size=4)
    drawn = []
    for epoch in range(60):
        pick = Pick("s", 0, epoch)
        options = {"preprocess": make_preprocess(), "shapes": shapes}
        prepared = read_example(source, pick, seed=0, **options)
        assert prepared.keys == read_example(source, pick, seed=0, **options).keys
        drawn.append(tuple(int(key[0].removeprefix("n")) for key in prepared.keys[2:]))
        assert prepared.dropped_negatives == 4
    assert all(first < second for first, second in drawn)
    counts = np.bincount(np.ravel(drawn), minlength=6)
    assert counts.min() > 8 and len(set(drawn)) > 8
    other = [draw_negatives(2, f"1/s/0/{epoch}", 6) for epoch in range(60)]
    assert [tuple(numbers) for numbers in other] != drawn
    assert list(draw_negatives(2, "", 2)) == [0, 1] and list(draw_negatives(0, "", 3)) == []
    example = to_example("s", source["s"][0], draw=lambda count: (1, 4))
    assert [item.text for item in example.negatives] == ["n1", "n4"]
    assert example.scores == (9, 1, 4) and example.undrawn_negatives == 4

    # One that is not drawn is not read.
    row = {"qry": "q", "pos_text": "p", "neg_text": ["", "a", "b"], "neg_image_path": ["", "", "x"]}
    assert len(to_example("s", row, draw=lambda count: range(1)).negatives) == 1
    with pytest.raises(BadExample, match="negative 1: image is missing"):
        to_example("s", row, draw=lambda count: (1,))
