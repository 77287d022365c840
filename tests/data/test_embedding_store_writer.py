"""The store's writer: block by block, by several processes, and nothing half-written counts."""

import numpy as np
import pytest

from tests.data.tiny_vectors import TEXTS, VECTORS
from unime_jax import files
from unime_jax.data.embedding_store import item_id, open_embeddings
from unime_jax.data.embedding_store_writer import Writer, write


def writer(folder, *, items=5, block=2, dtype="float32", provenance=None) -> Writer:
    arguments = {"items": items, "dimension": 3, "dtype": dtype, "block": block}
    return Writer(folder, provenance=provenance or {}, **arguments)


def put(folder, *numbers, block=2) -> Writer:
    """The test's vectors, these blocks of them."""
    made = writer(folder, block=block)
    for n in numbers:
        span = slice(n * block, (n + 1) * block)
        made.put(n, np.array([item_id(text) for text in TEXTS[span]]), VECTORS[span])
    return made


def test_what_does_not_belong_to_the_store_is_refused(tmp_path):
    # What cannot be written.
    for vectors, names, message in (
        (VECTORS[:4], TEXTS, r"shape \(4, 3\), for 5 items"),
        (VECTORS[0], TEXTS, r"shape \(3,\)"),
        (VECTORS[:0], [], "at least one"),
        (VECTORS[:3], ["a", "b", "a"], r"1 of 3 items came before.*items\[2\]: 'a'"),
        (VECTORS[:1] * np.nan, ["a"], "not finite"),
        (VECTORS[:1].astype(np.float64) * 1e300, ["a"], "not finite in float32"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "a", names, vectors)
        assert not (tmp_path / "a").exists(), message

    # Another job is refused.
    (tmp_path := tmp_path / "next").mkdir()
    before = {"prefix": "", "model": {"files": {"a": "1", "b": "2"}}, "sides": ("query",)}
    made = writer(tmp_path, provenance=before | {"backbone": "x", "versions": {"jax": "1"}})
    made.put(0, np.array([b"a", b"b"]), VECTORS[:2])
    moved = before | {"backbone": "y", "versions": {"jax": "2"}}
    assert writer(tmp_path, provenance=moved).missing() == [1, 2]
    now = before | {"prefix": "Find ", "model": {"files": {"a": "1", "b": "3", "c": "4"}}}
    with pytest.raises(ValueError) as error:
        writer(tmp_path, provenance=now, dtype="float16")
    assert str(error.value).splitlines()[1:] == [
        '  dtype: "float32" before, "float16" now',
        '  provenance.model.files.b: "2" before, "3" now',
        '  provenance.model.files.c: null before, "4" now',
        '  provenance.prefix: "" before, "Find " now',
    ]
    with pytest.raises(ValueError, match="block: 2 before, 3 now"):
        writer(tmp_path, provenance=before, block=3)

    # Vectors of nobody knows what are refused.
    (tmp_path := tmp_path / "next").mkdir()
    put(tmp_path, 0)
    (tmp_path / "embeddings.json").unlink()
    with pytest.raises(ValueError, match="no embeddings.json that says what they are"):
        writer(tmp_path)

    # Wrong blocks are refused.
    (tmp_path := tmp_path / "next").mkdir()
    made = writer(tmp_path, dtype="float16")
    names = np.array([b"a", b"b", b"c"])
    for vectors in (VECTORS[:1], VECTORS[:2, :2], VECTORS[:3]):
        with pytest.raises(ValueError, match="block 0: "):
            made.put(0, names[: max(2, len(vectors))], vectors)
    with pytest.raises(ValueError, match="vector of .*b'b'.*, row 1, is not finite in float16"):
        made.put(0, names[:2], np.array([[1, 2, 3], [1e6, 0, 0]], np.float32))
    assert made.missing() == [0, 1, 2]

    # Wrong sizes.
    (tmp_path := tmp_path / "next").mkdir()
    for wrong in ({"dtype": "bfloat16"}, {"block": 0}, {"items": 0}):
        with pytest.raises(ValueError, match="there must be at least one"):
            writer(tmp_path, **wrong)


def test_nothing_is_overwritten_or_left_behind_but_half_a_file(tmp_path, monkeypatch):
    # Nothing is overwritten.
    write(tmp_path / "a", ["a"], VECTORS[:1])
    with pytest.raises(ValueError, match="exists already"):
        write(tmp_path / "a", ["b"], VECTORS[:1])
    assert open_embeddings(tmp_path / "a").ids == item_id("a")

    # Half a file is written again.
    (tmp_path := tmp_path / "next").mkdir()
    made = put(tmp_path, 0, 1, 2)
    half = tmp_path / "vectors" / "000001.npy"
    half.write_bytes(half.read_bytes()[:-1])
    (tmp_path / "vectors" / "000002.ids").unlink()
    assert made.missing() == [1, 2] and not made.finish()
    assert put(tmp_path, 1, 2).finish()
    np.testing.assert_array_equal(open_embeddings(tmp_path).vectors(map(item_id, TEXTS)), VECTORS)

    # Another process was faster. It completes the folder, and tidies up, between any two steps of
    # this one.
    (tmp_path := tmp_path / "next").mkdir()
    first, second = put(tmp_path, 0, 1, 2), writer(tmp_path)
    whole = Writer.missing

    def overtaken(self):
        found = whole(self)
        monkeypatch.setattr(Writer, "missing", whole)
        assert second.finish()
        return found

    monkeypatch.setattr(Writer, "missing", overtaken)
    assert first.finish()
    np.testing.assert_array_equal(open_embeddings(tmp_path).vectors(map(item_id, TEXTS)), VECTORS)

    # A write that dies leaves nothing behind
    (tmp_path := tmp_path / "next").mkdir()
    monkeypatch.undo()
    replace, calls = files.write_whole, []

    def dies(file, content):
        calls.append(file)
        if len(calls) == 4:
            raise KeyboardInterrupt
        replace(file, content)

    monkeypatch.setattr(files, "write_whole", dies)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", TEXTS, VECTORS, block=2)
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(files, "write_whole", replace)
    write(tmp_path / "a", TEXTS, VECTORS, block=2)
    assert len(open_embeddings(tmp_path / "a")) == 5


def test_blocks_come_in_any_order_and_items_may_be_left_out(tmp_path):
    # Blocks in any order.
    made = put(tmp_path, 2, 0)
    assert made.missing() == [1] and not made.finish()
    with pytest.raises(ValueError, match="not complete, 1 of 3 blocks"):
        open_embeddings(tmp_path)
    again = put(tmp_path, 1)
    assert again.missing() == [] and again.finish() and made.finish()
    store = open_embeddings(tmp_path)
    np.testing.assert_array_equal(store.vectors(map(item_id, TEXTS)), VECTORS)
    assert writer(tmp_path).missing() == [] and writer(tmp_path).finish()

    # Items that were left out. Shorter blocks, also empty ones, put nothing out of its place.
    (tmp_path := tmp_path / "next").mkdir()
    made = writer(tmp_path, items=7, block=2)
    names = np.array([b"a", b"b", b"c"])
    made.put(0, names[:1], VECTORS[:1])
    made.put(1, names[:0], VECTORS[:0])
    made.put(2, names[1:], VECTORS[1:3])
    made.put(3, names[:0], VECTORS[:0])
    assert made.finish()
    store = open_embeddings(tmp_path)
    assert list(store.ids) == [b"a", b"b", b"c"]
    np.testing.assert_array_equal(store.vectors([b"c", b"a", b"b"]), VECTORS[[2, 0, 1]])

    # Without a single vector nothing is complete.
    (tmp_path := tmp_path / "next").mkdir()
    made = writer(tmp_path, items=1)
    made.put(0, np.array([], "S32"), VECTORS[:0])
    with pytest.raises(ValueError, match="not one could be embedded"):
        made.finish()
