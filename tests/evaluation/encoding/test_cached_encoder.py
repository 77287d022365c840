"""Vectors on disk: an item is encoded once, by content, whoever shares or damages blocks."""

import json
import os

import numpy as np
import pytest

from unime_jax import files
from unime_jax.batch import Item, Media
from unime_jax.evaluation.encoding import cached_encoder, vector_cache
from unime_jax.evaluation.encoding.cached_encoder import CachedEncoder, item_id
from unime_jax.evaluation.encoding.vector_cache import VectorCache, open_cache

WIDTH = 4
OF = {"model": "a", "dtype": "float32"}


class Encoder:
    """Blocks of vectors that follow from the item, and what was encoded."""

    def __init__(self):
        self.encoded = []

    def __call__(self, items, block):
        for start in range(0, len(items), block):
            here = [items[number] for number in range(start, min(start + block, len(items)))]
            self.encoded += [item.text for item in here]
            yield np.stack([vector(item) for item in here])


class Pictures:
    """Items of a text and a file, which is read when the item is asked for."""

    def __init__(self, folder, names):
        self.folder, self.names, self.read = folder, names, 0

    def __len__(self):
        return len(self.names)

    def __getitem__(self, number):
        self.read += 1
        name = self.names[number]
        if not (self.folder / name).exists():
            raise ValueError(f"row {number}: image {name!r} has no file")
        return Item("<|image_1|>", (Media(name, (self.folder / name).read_bytes()),))


def vector(item):
    seed = int(item_id(item)[:8], 16)
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


def texts(letters):
    return [Item(letter) for letter in letters]


def encode(items, home, of=OF):
    """Vectors by a cache that is opened anew, and the texts that were encoded."""
    encoder = Encoder()
    vectors = CachedEncoder(encoder, open_cache(str(home), of, WIDTH), WIDTH)(items)
    assert vectors.dtype == np.float32 and vectors.shape == (len(items), WIDTH)
    return vectors, encoder.encoded


def test_another_run_encodes_what_is_new(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(cached_encoder, "BLOCK", 2)
    items = [*texts("abc"), Item("a", suffix="!"), Item("a", prefix="!"), Item("a!")]
    first, encoded = encode(items, tmp_path)
    assert encoded == ["a", "b", "c", "a", "a", "a!"], "instructions count"
    np.testing.assert_array_equal(first, [vector(item) for item in items])
    again, encoded = encode([*items[::-1], Item("d"), Item("d")], tmp_path)
    assert encoded == ["d"] and "6 of 8 items were known, 1 encoded" in caplog.text
    np.testing.assert_array_equal(again, [*first[::-1], *2 * [vector(Item("d"))]])

    # Vectors of other models, settings and code lie apart, and each says what it is of.
    for number, of in enumerate([OF | {"dtype": "bfloat16"}, OF | {"model": "b"}, OF]):
        if number == 2:
            monkeypatch.setattr(vector_cache, "_digest_of_code", lambda: "changed")
        assert encode(items, tmp_path, of)[1] == ["a", "b", "c", "a", "a", "a!"]
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/of.json")]
    assert len(records) == 4 and {r["dtype"] for r in records} == {"float32", "bfloat16"}

    # No items need no encoder; without a cache there are vectors, too.
    assert encode([], tmp_path)[1] == [] and open_cache("", OF, WIDTH) is None
    vectors = CachedEncoder(Encoder(), None, WIDTH)(items)
    np.testing.assert_array_equal(vectors, first)


def test_pictures_are_known_by_content(tmp_path):
    (tmp_path / "a.png").write_bytes(b"A")
    (tmp_path / "copy.png").write_bytes(b"A")
    (tmp_path / "b.png").write_bytes(b"B")
    items = Pictures(tmp_path, ["a.png", "b.png", "copy.png"])
    first, encoded = encode(items, tmp_path / "cache")
    assert len(encoded) == 2 and items.read == 3 + 2, "read for the hash, and to be encoded"
    np.testing.assert_array_equal(first[0], first[2])

    # At the same path, of the same size and time of change
    stat = (tmp_path / "a.png").stat()
    (tmp_path / "a.png").write_bytes(b"C")
    os.utime(tmp_path / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    vectors, encoded = encode(items, tmp_path / "cache")
    assert len(encoded) == 1 and not np.array_equal(vectors[0], first[0])
    np.testing.assert_array_equal(vectors[1:], first[1:])

    # An image that is missing is the encoder's to report, and one that changes meanwhile is not
    # kept under the name of what it was.
    with pytest.raises(ValueError, match=r"row 1: image 'no.png' has no file"):
        encode(Pictures(tmp_path, ["a.png", "no.png"]), tmp_path / "cache")

    class Changing(Pictures):
        def __getitem__(self, number):
            item = super().__getitem__(number)
            (self.folder / "new.png").write_bytes(bytes([self.read]))
            return item

    (tmp_path / "new.png").write_bytes(b"D")
    with pytest.raises(ValueError, match=r"with image 'new.png' has changed while it was evaluate"):
        encode(Changing(tmp_path, ["new.png"]), tmp_path / "cache")


def test_a_damaged_block_is_set_aside_and_encoded_again(tmp_path, monkeypatch):
    def damage(change):
        monkeypatch.setattr(cached_encoder, "BLOCK", 2)
        home = tmp_path / change.__name__
        expected, _ = encode(texts("abcd"), home)
        first = vector_cache._oldest_first(home.glob("*/*.npy"))[0]
        change(first)
        vectors, encoded = encode(texts("abcd"), home)
        assert encoded == ["a", "b"] and list(home.glob("*/*.npy.damaged-*"))
        np.testing.assert_array_equal(vectors, expected)
        assert encode(texts("abcd"), home)[1] == []

    def cut(path):
        path.write_bytes(path.read_bytes()[:-3])

    def flipped(path):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    def without_ids(path):
        path.with_suffix(".ids").unlink()

    def ids_of_others(path):
        np.save(path.with_suffix(".tmp.npy"), np.array([b"x" * 32, b"y" * 32]))
        path.with_suffix(".tmp.npy").rename(path.with_suffix(".ids"))

    for change in (cut, flipped, without_ids):
        damage(change)
    home = tmp_path / "others"
    encode(texts("ab"), home)
    (path,) = home.glob("*/*.npy")
    ids_of_others(path)
    cache = open_cache(str(home), OF, WIDTH)
    assert not cache.read([b"x" * 32])[0].any() and not len(cache)


def test_runs_share_a_folder_and_outlive_its_disk(tmp_path, monkeypatch, caplog):
    # Two runs at the same time: both are right, and what was computed first counts.
    one, two = (open_cache(str(tmp_path), OF, WIDTH) for _ in range(2))
    ids = [item_id(item) for item in texts("ab")]
    one.add(ids, np.ones((2, WIDTH), np.float32))
    two.add(ids[::-1], np.zeros((2, WIDTH), np.float32))
    two.add([b"n" * 32], np.full((1, WIDTH), np.nan, np.float32))
    assert len(list(one.folder.glob("*.npy"))) == 2, "nothing that is not finite"
    os.utime(max(one.folder.glob("*.npy"), key=lambda path: path.stat().st_mtime_ns), (2e9, 2e9))
    known, vectors = open_cache(str(tmp_path), OF, WIDTH).read([*ids, b"n" * 32])
    assert known.tolist() == [True, True, False] and (vectors[:2] == 1).all()

    # A full disk: the evaluation goes on, and is told once.
    monkeypatch.setattr(cached_encoder, "BLOCK", 2)
    with pytest.MonkeyPatch.context() as patch:

        def full(path, content):
            raise OSError(28, "No space left on device", str(path))

        patch.setattr(files, "write_whole", full)
        vectors, encoded = encode(texts("abcdefgh"), tmp_path)
    assert encoded == ["c", "d", "e", "f", "g", "h"]
    assert caplog.text.count("takes no more vectors (No space left on device)") == 1
    caplog.clear()
    (tmp_path / "file").write_text("")
    assert encode(texts("abcd"), tmp_path / "file")[1] == ["a", "b", "c", "d"]
    assert caplog.text.count("cannot be kept in") == 1 and "takes no more" not in caplog.text

    # The user's own folder is bounded: what was not used for longest goes.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vector_cache, "MOST_BYTES", 1000)
    for number in range(3):
        cache = open_cache("auto", OF | {"model": str(number)}, WIDTH)
        cache.add([f"{i:032}".encode() for i in range(8)], np.ones((8, WIDTH), np.float32))
        os.utime(cache.folder, (number, number))
    assert cache.folder.parent == tmp_path / "unime_jax" / "vectors"
    left = {json.loads(p.read_text())["model"] for p in tmp_path.glob("unime_jax/*/*/of.json")}
    assert left == {"1", "2"}
    assert isinstance(cache, VectorCache)
