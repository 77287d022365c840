"""Bulk encoding reads items once, in threads, a batch ahead, and ends well when it fails."""

import threading

import jax
import numpy as np
import pytest

from tests.backbones.tiny_texts import write_bert
from unime_jax import backbones, sharding
from unime_jax.batch import Item
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.inference import encode
from unime_jax.inference.encode import encode_blocks, make_encoder
from unime_jax.models.forward import make_encode
from unime_jax.models.inference import default_execution, targets

FLOAT32 = np.dtype(np.float32)
ROWS = 4
WORDS = ("red", "a blue circle", "square", "green", "a red square above a blue circle")


class Lazy:
    """A sequence of items that are made when they are asked for."""

    def __init__(self, count, bad=-1):
        self.count, self.bad = count, bad
        self.asked: list[int] = []
        self.threads: set[int] = set()

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if not isinstance(number, int) or not 0 <= number < self.count:
            raise IndexError(number)
        self.asked.append(number)
        self.threads.add(threading.get_ident())
        if number == self.bad:
            raise KeyError("no such image")
        return Item(f"{number} {WORDS[number % 5]}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_bert(tmp_path_factory.mktemp("encode_lazily") / "bert")
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    backbone = backbones.open_backbone(str(folder), max_length=48)
    graph, wanted = targets(backbone.make_model, mesh, FLOAT32)
    forward = make_encode(graph, default_execution(FLOAT32))
    return backbone, encode.Model(forward, ({}, backbone.load(wanted)), mesh)


@pytest.fixture(scope="module")
def shapes(model):
    return BatchShapes((Bucket(12, 0), Bucket(48, 0)), model[0].layout, ROWS, ROWS)


@pytest.fixture
def encoder(model, shapes):
    backbone, opened = model
    return make_encoder(opened.encode, opened.parameters, backbone.preprocess, shapes, opened.mesh)


def test_items_are_read_once_by_threads_that_end_with_who_stops_or_fails(encoder, model, shapes):
    items = Lazy(11)
    found = encoder(items)
    assert sorted(items.asked) == list(range(11))
    assert threading.get_ident() not in items.threads
    np.testing.assert_array_equal(found, encoder([items[n] for n in range(11)]))

    # An error comes out as it is and stops the threads.
    items, before = Lazy(1000, bad=21), threading.active_count()
    with pytest.raises(KeyError, match="no such image"):
        encoder(items)
    asked = len(items.asked)
    assert asked <= 21 + 3 * ROWS
    assert threading.active_count() <= before
    assert len(items.asked) == asked

    # Who stops taking blocks stops the threads.
    backbone, opened = model
    items, before = Lazy(1000), threading.active_count()
    blocks = encode_blocks(
        opened, items, backbone.preprocess, lambda *size: shapes, window=ROWS, block=6
    )
    assert next(blocks).numbers.tolist() == list(range(6))
    blocks.close()
    assert threading.active_count() <= before and len(items.asked) < 40


def test_the_next_batch_is_launched_before_one_is_fetched(monkeypatch, encoder):
    """So the device has work while the host converts; and never more than one waits."""
    events, (launch, fetch) = [], (encode._launch, encode._fetch)

    def launched(model, batch, part, parts):
        events.append("launch")
        return launch(model, batch, part, parts)

    def fetched(model, running):
        events.append("fetch")
        return fetch(model, running)

    monkeypatch.setattr(encode, "_launch", launched)
    monkeypatch.setattr(encode, "_fetch", fetched)
    encoder(Lazy(4 * ROWS))
    assert events == ["launch", *["launch", "fetch"] * 3, "fetch"]


def test_blocks_are_as_if_they_were_alone(model, shapes):
    """To the last bit; items that are left out, and a block of nothing else, leave no gap."""
    backbone, opened = model
    left_out = {1, 6, 7, 8, 9, 10, 11}

    def run(numbers, block):
        return list(
            encode_blocks(
                opened,
                numbers,
                lambda n: None if n in left_out else backbone.preprocess(Item(WORDS[n % 5] * n)),
                lambda *size: shapes,
                window=3,
                block=block,
                progress=rows.append,
            )
        )

    rows: list[int] = []
    found = run(range(1, 16), 6)
    assert [list(encoded.numbers) for encoded in found] == [[1, 2, 3, 4], [11], [12, 13, 14]]
    assert sum(rows) == 8
    for encoded in found:
        first = 6 * (encoded.numbers[0] // 6)
        (alone,) = run(range(1 + first, min(7 + first, 16)), None)
        np.testing.assert_array_equal(encoded.vectors, alone.vectors)
    nothing = run(range(6, 12), 3)
    assert [encoded.vectors.shape for encoded in nothing] == [(0, 24)] * 2
