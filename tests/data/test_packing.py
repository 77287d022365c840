"""Packing: shapes of the plan only, every item found again, and the same from 1, 2 or 4 parts."""

import dataclasses
import json
import pathlib
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tables import for_each
from unime_jax.batch import Example, Item, Media, Row
from unime_jax.data.bucket_filling import fill_buckets
from unime_jax.data.packing import Prepared, pack, prepare, target_hash
from unime_jax.data.quarantine import BadExample, BadItem
from unime_jax.data.shapes import BatchShapes, Bucket, Layout, pair_shapes

BATCH, NEGATIVES = 8, 2
LAYOUT = Layout(axes=3, slots=2, blended=True, patches=4, patch_bytes=6)
PLAN = pair_shapes(
    [Bucket(4, 0, share=0.25), Bucket(8, 0), Bucket(8, 1, share=0.3), Bucket(16, 3)],
    LAYOUT,
    batch_size=BATCH,
    negatives=NEGATIVES,
    chunk_size=4,
)
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SOURCES = ("one", "two")


def toy(item: Item) -> Row:
    """As many tokens as the text says, all of them the item's name; as many tiles as the path."""
    length, tiles = int(item.text.split("/")[0]), int(item.media[0].path if item.media else 0)
    rng = np.random.default_rng(zlib.crc32(repr(item.key).encode()))
    return Row(
        tokens=np.full(length, target_hash(item.key) >> 1, np.int32),
        positions=rng.integers(0, 99, (length, 3), np.int32),
        slot=rng.integers(-1, 1 + tiles * 4, (length, 2), np.int32),
        slot_weight=rng.random((length, 2), np.float32),
        patches=rng.integers(0, 255, (tiles, 4, 6), np.uint8) if tiles else None,
        truncated=length // 4,
        unmatched_markers=2 * (length % 2),
    )


def item(length, tiles=0, name=""):
    return Item(f"{length}/{name}", (Media(str(tiles)),) if tiles else ())


def batch_of(examples, shapes=PLAN, **process):
    return pack([prepare(one, toy, shapes) for one in examples], shapes, SOURCES, **process)


items = st.builds(item, st.integers(1, 16), st.integers(0, 3), st.sampled_from("ab"))
examples = st.builds(
    Example,
    source=st.sampled_from(SOURCES),
    id=st.just("x"),
    query=items,
    positive=items,
    negatives=st.lists(items, max_size=4).map(tuple),
)
batches = st.lists(examples, min_size=BATCH, max_size=BATCH)


def shapes(batch):
    flat = []
    for group, ids in zip(batch.groups, batch.target_id, strict=True):
        arrays = [*vars(group).values(), ids]
        flat.append([None if a is None else (a.shape, a.dtype.name) for a in arrays])
    flat += [(a.shape, a.dtype.name) for a in (batch.query, batch.positive, batch.negative)]
    return [*flat, (batch.source.shape, batch.source.dtype.name)]


def row_at(batch, number):
    """The unpadded row of this number, and its target id, counting as batch.py says."""
    for group, ids in zip(batch.groups, batch.target_id, strict=True):
        if number < group.length.size:
            place = divmod(int(number), group.length.shape[1])
            length = group.length[place]
            parts = [group.tokens, group.positions, group.slot, group.slot_weight]
            patches = None if group.patches is None else group.patches[place]
            return [part[place][:length] for part in parts], patches, int(ids[place])
        number -= group.length.size
    raise AssertionError("no such row")


def assert_is(batch, number, item, target=None):
    parts, patches, target_id = row_at(batch, number)
    row = toy(item)
    for got, want in zip(
        parts, [row.tokens, row.positions, row.slot, row.slot_weight], strict=True
    ):
        np.testing.assert_array_equal(got, want)
    tiles = 0 if row.patches is None else len(row.patches)
    if patches is None:
        assert not tiles
    else:
        np.testing.assert_array_equal(patches[:tiles], toy(item).patches if tiles else 0)
        assert not patches[tiles:].any()
    if target is not None:
        assert target_id == (target_hash(item.key) if target else 0)


def assert_who_is_who(batch, examples):
    """Every item is where its index says; every live row is somebody."""
    targets = {it.key for e in examples for it in (e.positive, *e.negatives[:NEGATIVES])}
    for i, example in enumerate(examples):
        assert_is(batch, batch.query[i], example.query, example.query.key in targets)
        assert_is(batch, batch.positive[i], example.positive, True)
        kept = example.negatives[:NEGATIVES]
        assert (batch.negative[i] >= 0).sum() == len(kept)
        for number, negative in zip(batch.negative[i], kept, strict=False):
            assert_is(batch, number, negative, True)
        assert SOURCES[batch.source[i]] == example.source
        assert batch.query_id[i] == target_hash(example.query.key)
    used = {*batch.query, *batch.positive, *batch.negative[batch.negative >= 0]}
    assert len(used) == sum(int(group.live.sum()) for group in batch.groups)


@given(batches)
@settings(max_examples=60, deadline=None)
def test_who_is_who_in_constant_shapes(examples):
    batch, info = batch_of(examples)
    assert shapes(batch) == shapes(batch_of([Example("one", "", item(1), item(1))] * BATCH)[0])
    assert_who_is_who(batch, examples)
    distinct = {it.key for e in examples for it in (e.query, e.positive, *e.negatives[:NEGATIVES])}
    assert sum(info.rows) == len(distinct)
    assert info.dropped_negatives == sum(max(len(e.negatives) - NEGATIVES, 0) for e in examples)
    for group, live, chunks in zip(batch.groups, info.rows, info.chunks, strict=True):
        length, filled = group.length.reshape(-1), group.live.reshape(-1)
        assert filled[:live].all() and not filled[live:].any()  # chunks fill in order
        assert (length[:live] > 0).all() and not length[live:].any()
        assert chunks == -(-live // group.length.shape[1])
        assert not group.tokens[~group.live].any()
        beyond = np.arange(group.tokens.shape[-1]) >= group.length[..., None]
        assert (group.slot[beyond] == -1).all() and not group.tokens[beyond].any()


def assemble(parts):
    """What make_array_from_process_local_data does: rows side by side, pairs one after another."""

    def rows(arrays):
        return None if arrays[0] is None else np.concatenate(arrays, axis=1)

    groups = tuple(
        type(group[0])(
            **{name: rows([getattr(part, name) for part in group]) for name in vars(group[0])}
        )
        for group in zip(*(part.groups for part in parts), strict=True)
    )
    pairs = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("query", "positive", "negative", "source", "query_id")
    }
    target_id = tuple(rows(ids) for ids in zip(*(part.target_id for part in parts), strict=True))
    return dataclasses.replace(parts[0], groups=groups, target_id=target_id, **pairs)


@given(batches, st.sampled_from([2, 4]))
@settings(max_examples=40, deadline=None)
def test_processes_assemble_to_the_same_who_is_who(examples, processes):
    local = BATCH // processes
    parts = []
    for p in range(processes):
        mine = examples[p * local : (p + 1) * local]
        parts.append(batch_of(mine, process_index=p, process_count=processes)[0])
        assert shapes(parts[p]) == shapes(parts[0])
    whole = assemble(parts)
    assert shapes(whole) == shapes(batch_of(examples)[0])
    for i, example in enumerate(examples):
        assert_is(whole, whole.query[i], example.query)
        assert_is(whole, whole.positive[i], example.positive, True)
        for number, negative in zip(whole.negative[i], example.negatives, strict=False):
            assert_is(whole, number, negative, True)


def test_equal_items_are_one_row_and_only_targets_have_ids():
    # Equal keys are one row.
    label, question = item(3, name="label"), item(5, 1)
    examples = [
        Example("one", "0", question, label, (item(2), label)),
        Example("two", "1", label, question),
    ] * 4
    batch, info = batch_of(examples)
    assert sum(info.rows) == 3 and info.duplicates == 4 * 6 - 3
    assert len(set(batch.query)) == 2 and batch.query[0] == batch.positive[1]
    assert batch.negative[0, 1] == batch.positive[0] and (batch.negative[1] == -1).all()
    assert batch.source.tolist() == [0, 1] * 4

    # Only targets have ids.
    pair = Example("one", "0", item(3, name="q"), item(3, name="p"))
    batch, _ = batch_of([pair] * BATCH)
    ids = np.concatenate([ids.reshape(-1) for ids in batch.target_id])
    assert sorted(set(ids)) == [0, target_hash(pair.positive.key)]
    assert target_hash(("a photo of a cat", "")) == 414989515  # the same in every run

    # Rows take the smallest bucket with room
    # Smallest bucket and overflow. The first bucket has room for a quarter of 32 rows: one chunk
    # of 16 rows.
    texts = [item(4, name=str(i)) for i in range(20)]
    rows = [toy(text) for text in [*texts, item(5), item(4, 1), item(9), item(4, 2)]]
    groups, places = fill_buckets(rows, PLAN)
    assert groups[0].length.shape == (1, 16)
    assert places[:, 0].tolist() == [0] * 16 + [1] * 4 + [1, 2, 3, 3]
    assert groups[0].patches is None and groups[1].patches is None
    assert groups[2].patches.shape[2:] == (1, 4, 6) and groups[3].patches.shape[2:] == (3, 4, 6)

    # Overflow skips buckets without room for the tiles.
    shapes = BatchShapes((Bucket(4, 1, share=0.1), Bucket(8, 0), Bucket(8, 1)), LAYOUT, 2, 8)
    _, places = fill_buckets([toy(item(4, 1, str(i))) for i in range(8)], shapes)
    assert places[:, 0].tolist() == [0] * 2 + [2] * 6

    # Chunks of smaller buckets take more rows.
    buckets = Bucket(128, 0), Bucket(512, 1), Bucket(512, 9), Bucket(2048, 9)
    shapes = pair_shapes(buckets, LAYOUT, batch_size=1024, chunk_size=32)
    assert [shapes.chunk_rows(bucket) for bucket in buckets] == [512, 128, 32, 32]
    assert [shapes.chunks(bucket) for bucket in buckets] == [4, 16, 64, 64]
    small = pair_shapes(buckets, LAYOUT, batch_size=20, chunk_size=32)  # no more than all rows
    assert [small.chunk_rows(bucket) for bucket in buckets] == [64, 64, 32, 32]

    # Rows are live and counted
    # A row without tokens is live.
    rows = [image_alone("a"), image_alone("b"), toy(item(2))]
    groups, places = fill_buckets(rows, PLAN)
    assert places[:, 0].tolist() == [2, 2, 0]
    assert [int(group.live.sum()) for group in groups] == [1, 0, 2, 0]
    assert not groups[2].length.any()
    for (_, chunk, place), row in zip(places, rows[:2]):
        np.testing.assert_array_equal(groups[2].patches[chunk, place, :1], row.patches)
    keys = (("a", "1"), ("b", "1"))
    batch, info = pack([Prepared("one", keys, tuple(rows[:2]))], PLAN, SOURCES)
    assert info.rows == (0, 0, 2, 0) and info.chunks == (0, 0, 1, 0)
    assert batch.query != batch.positive
    nothing = dataclasses.replace(image_alone(), patches=None)
    with pytest.raises(TypeError, match="neither tokens nor tiles"):
        fill_buckets([nothing], PLAN)

    # Info.
    examples = [
        Example("one", "0", item(16, name=str(i)), item(3), tuple(item(2) for _ in range(3)))
        for i in range(BATCH)
    ]
    bad = BadItem("one", "9", "", "why")
    prepared = [prepare(one, toy, PLAN) for one in examples]
    prepared[3] = dataclasses.replace(prepared[3], bad=(bad,))
    _, info = pack(prepared, PLAN, SOURCES)
    assert (info.read, info.bad) == (BATCH + 1, (bad,))
    assert info.rows == (2, 0, 0, 8) and info.chunks == (1, 0, 0, 2)
    assert info.pad_fraction == pytest.approx(1 - (8 * 16 + 3 + 2) / (2 * 4 * 16 + 16 * 4))
    assert (info.dropped_negatives, info.overflowed, info.truncated) == (BATCH, 0, BATCH)
    assert info.unmatched_markers == 2  # of one row: markers, where `truncated` counts rows


def image_alone(name=""):
    """The row of an image for a dual encoder: tiles, and not one token."""
    row = toy(item(1, 1, name))
    empty = {key: getattr(row, key)[:0] for key in ("tokens", "positions", "slot", "slot_weight")}
    return dataclasses.replace(row, **empty)


def test_a_bad_row_is_named_and_a_fault_of_ours_is_none():
    # Prepare says whose row failed.
    def refuse(item):
        raise ValueError("image is 3 pixels wide")

    example = Example("one", "7", item(3, 1), item(3))
    with pytest.raises(BadExample, match="3 pixels wide") as caught:
        prepare(example, refuse, PLAN)
    assert caught.value.item == BadItem("one", "7", "1", "image is 3 pixels wide")
    long = Example("one", "8", item(3), item(17))
    with pytest.raises(BadExample, match="17 tokens and 0 tiles do not fit .* of 16 tokens"):
        prepare(long, toy, PLAN)

    # Program errors are not bad examples.
    wrong = dataclasses.replace(toy(item(3)), slot_weight=None)
    with pytest.raises(TypeError, match="layout"):
        pack([Prepared("one", (("a", ""),) * 2, (wrong,) * 2)], PLAN, SOURCES)
    with pytest.raises(ValueError, match="33 rows in process 0, the batch has room for 32"):
        fill_buckets([toy(item(1))] * 33, PLAN)
    with pytest.raises(ValueError, match="chunk_size = 4 rows cannot be spread over 3"):
        fill_buckets([], PLAN, process_count=3)

    # A teacher is of the layout's width and comes with its row.
    layout = dataclasses.replace(LAYOUT, teacher=3)
    shapes = BatchShapes((Bucket(4, 0),), layout, 4, 4)
    rows = [dataclasses.replace(toy(item(n)), teacher=np.full(3, n, np.float32)) for n in (2, 4)]
    (group,), places = fill_buckets(rows, shapes)
    for (_, chunk, place), row in zip(places, rows):
        np.testing.assert_array_equal(group.teacher[chunk, place], row.teacher)
    for teacher in (None, np.zeros(4, np.float32)):
        with pytest.raises(TypeError, match="teacher"):
            fill_buckets([dataclasses.replace(rows[0], teacher=teacher)], shapes)


@for_each(
    ("buckets", "message"),
    [
        ((), "at least 1"),
        ((Bucket(8, 0), Bucket(4, 0)), "small to large"),
        ((Bucket(4, 2), Bucket(8, 1)), "small to large"),
        ((Bucket(4, 0), Bucket(4, 0)), "small to large"),
        ((Bucket(4, 0), Bucket(8, 0, share=0.5)), "share"),
        ((Bucket(4, 0, share=0.0), Bucket(8, 0)), "share"),
    ],
)
def test_plan_errors(buckets, message):
    with pytest.raises(ValueError, match=message):
        BatchShapes(buckets, LAYOUT, 4, 8)


def test_a_judges_scores_are_those_of_the_row_and_a_row_without_is_left_out():
    # UniME-V2's own rows, in our form: its pairs of query and target streams, read in turn, are
    # the candidates and scores of a query, but for the first, which is the query with score 0.
    golden = json.loads((GOLDEN / "prompts" / "unime_v2_row_layout.json").read_text())
    theirs = golden["data_row"]
    negatives = [item(1, name=text) for text, _ in theirs["hard_negatives"]]
    scores = (theirs["query_pos_scores"], *theirs["hard_negatives_scores"])
    judged = Example("one", "x", item(1, name="q"), item(1, name="p"), tuple(negatives), scores)
    few = dataclasses.replace(judged, negatives=judged.negatives[:1], scores=scores[:2])
    for k, pairs in golden["pairs_per_k"].items():
        plan = dataclasses.replace(PLAN, rows=2 * (2 + int(k)), negatives=int(k), scored=True)
        batch, _ = batch_of([judged, few], plan)
        streams = [pair[score] for pair in pairs for score in ("score0", "score1")]
        np.testing.assert_array_equal(batch.scores[0], np.float32(streams[1:]))
        np.testing.assert_array_equal(batch.scores[1, :2], np.float32(scores[:2]))
        assert np.isnan(batch.scores[1, 2:]).all() and (batch.negative[1, 1:] == -1).all()
    assert batch_of([judged, few], dataclasses.replace(plan, scored=False))[0].scores is None
    with pytest.raises(BadExample, match="no scores of its candidates.*job judge"):
        prepare(dataclasses.replace(judged, scores=()), toy, plan)
