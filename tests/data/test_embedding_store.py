"""The embedding store: vectors come out by id as they were put in, and damage is named."""

import hashlib
import json
import pickle
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.tiny_vectors import TEXTS, VECTORS
from unime_jax.batch import Item, Media
from unime_jax.data import embedding_store
from unime_jax.data.embedding_store import item_id, open_embeddings, read_lines
from unime_jax.data.embedding_store_writer import write

ids = st.lists(st.text("abc", max_size=4), min_size=1, max_size=30, unique=True)


def test_an_id_is_of_the_text_and_the_content_of_its_images():
    # An id can be made without this package.
    expected = hashlib.blake2b("größe".encode(), digest_size=16).hexdigest().encode()
    assert item_id("größe") == item_id(Item("größe")) == expected
    content = b"blake2b:" + hashlib.blake2b(b"?", digest_size=16).hexdigest().encode()
    expected = hashlib.blake2b(b"a\0" + content + b"\0y.png", digest_size=16).hexdigest().encode()
    assert item_id(Item("a", (Media("x.png", b"?"), Media("y.png", None)))) == expected

    # Every image of an item has a path.
    named, nameless = Media("x.png", b"1"), Media("", b"2")
    for media in ((nameless,), (named, nameless), (nameless, named)):
        with pytest.raises(ValueError, match="an image of the item 'a' has no path to know it by"):
            item_id(Item("a", media))

    # Images are known by content wherever they lie.
    assert item_id(Item("a", (Media("x.png", b"1"),))) == item_id(
        Item("a", (Media("moved/y.png", b"1"),))
    )
    assert item_id(Item("a", (Media("x.png", b"1"),))) != item_id(
        Item("a", (Media("x.png", b"2"),))
    )

    # Instructions are no part of an id.
    assert item_id(Item("a", (Media("x"),), prefix="Represent ", suffix=".")) == item_id(
        Item("a", (Media("x"),))
    )

    # Images are part of an id.
    items = [
        Item("a"),
        Item("a", (Media("x"),)),
        Item("a", (Media("y"),)),
        Item("a", (Media("x"), Media("y", b""))),
    ]
    assert len({item_id(item) for item in items}) == 4
    with pytest.raises(ValueError, match="'a'.* no path"):
        item_id(Item("a", (Media("", b"pixels"),)))


@given(data=st.data(), texts=ids, block=st.integers(1, 7), half=st.booleans())
def test_round_trip(tmp_path_factory, data, texts, block, half):
    """In whatever order they are asked for, several times, one by one and many at once."""
    folder = tmp_path_factory.mktemp("store") / "vectors"
    vectors = np.random.default_rng(len(texts)).normal(size=(len(texts), 4))
    vectors = vectors.astype(np.float16 if half else np.float32)
    write(folder, texts, vectors, block=block)
    store = open_embeddings(folder)
    assert len(store) == len(texts) and store.dimension == 4
    assert list(store.ids) == [item_id(text) for text in texts]
    asked = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=20))
    found = store.vectors([item_id(texts[i]) for i in asked])
    assert found.dtype == np.float32 and found.shape == (len(asked), 4)
    np.testing.assert_array_equal(found, vectors[asked].astype(np.float32))
    for i in asked[:3]:
        np.testing.assert_array_equal(store.vector(item_id(texts[i])), vectors[i])
        np.testing.assert_array_equal(store.vector_of(texts[i]), vectors[i])
    assert item_id("d") not in store
    shutil.rmtree(folder)


def test_files_are_plain_numpy_here_and_of_other_code(tmp_path):
    # Files are plain NumPy.
    write(tmp_path / "a", TEXTS, VECTORS.astype(np.float16), block=2, provenance={"by": "me"})
    blocks = [np.load(tmp_path / "a" / "vectors" / f"00000{n}.npy") for n in range(3)]
    assert [len(block) for block in blocks] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), VECTORS.astype(np.float16))
    assert np.load(tmp_path / "a" / "ids.npy").dtype == "S32"
    assert json.loads((tmp_path / "a" / "embeddings.json").read_text()) == {
        "count": 5,
        "dimension": 3,
        "dtype": "float16",
        "block": 2,
        "blocks": 3,
        "complete": True,
        "provenance": {"by": "me"},
    }
    files = {path.name for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert files == {"embeddings.json", "ids.npy", *(f"00000{n}.npy" for n in range(3))}
    assert open_embeddings(tmp_path / "a").provenance == {"by": "me"}

    # Arrays are of any library.
    for name, vectors in {
        "jax": jnp.asarray(VECTORS),
        "bfloat16": jnp.asarray(VECTORS, jnp.bfloat16),
        "list": list(VECTORS),
    }.items():
        write(tmp_path / name, [Item(text) for text in TEXTS], vectors)
        found = open_embeddings(tmp_path / name).vectors([item_id(text) for text in TEXTS])
        np.testing.assert_array_equal(found, np.asarray(vectors, np.float32), err_msg=name)

    (tmp_path := tmp_path / "next").mkdir()
    # Plain pair of files.
    np.save(tmp_path / "ids.npy", np.array([item_id(text).decode() for text in TEXTS]))
    for dtype in (np.float16, np.float32, np.float64):
        np.save(tmp_path / "vectors.npy", VECTORS.astype(dtype))
        found = open_embeddings(tmp_path).vectors([item_id(text) for text in TEXTS])
        np.testing.assert_array_equal(found, VECTORS.astype(dtype).astype(np.float32))

    # Plain vectors and lines. Only a line feed ends a line, also where Python would see other
    # ends.
    (tmp_path := tmp_path / "next").mkdir()
    lines = ["a red circle", "größe\u2028two", "", "last"]
    np.save(tmp_path / "vectors.npy", VECTORS[:4])
    for end in ("", "\n", "\r\n"):
        (tmp_path / "texts.txt").write_bytes(((end or "\n").join(lines) + end).encode())
        assert read_lines(tmp_path / "texts.txt") == lines, repr(end)
        store = open_embeddings(tmp_path)
        for line, vector in zip(lines, VECTORS):
            np.testing.assert_array_equal(store.vector_of(line), vector, err_msg=repr(end))


def test_ids_that_are_not_there_are_named_and_long_ones_not_cut(tmp_path):
    # Missing vectors are named.
    write(tmp_path / "a", TEXTS, VECTORS)
    store = open_embeddings(tmp_path / "a")
    with pytest.raises(KeyError, match="no vectors of 2 of 3 ids.*" + item_id("x").decode()):
        store.vectors([item_id(""), item_id("x"), item_id("y")])
    with pytest.raises(KeyError, match="no vector of 'a blue circle', image 'x.png'"):
        store.vector_of(Item("a blue circle", (Media("x.png"),)))
    with pytest.raises(ValueError, match="bytes"):
        store.vector(7)
    assert store.vectors([]).shape == (0, 3)

    # Ids longer than those here are not cut.
    np.save(tmp_path / "vectors.npy", VECTORS)
    np.save(tmp_path / "ids.npy", np.array([b"x", b"y", b"z", b"v", b"w"]))
    store = open_embeddings(tmp_path)
    assert b"x" in store and b"xy" not in store and b"" not in store
    np.testing.assert_array_equal(store.vector(b"v"), VECTORS[3])


def test_many_blocks_and_ids_stay_cheap_and_are_reopened(tmp_path):
    # Workers reopen it.
    write(tmp_path / "a", TEXTS, VECTORS, block=2)
    store = open_embeddings(tmp_path / "a")
    store.vector_of("")  # blocks are open
    packed = pickle.dumps(store)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).vector_of("a\rb"), VECTORS[4])

    # More blocks than are kept open.
    (tmp_path := tmp_path / "next").mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(embedding_store, "MAPPED", 2)
        write(tmp_path / "a", TEXTS, VECTORS, block=1)
        store = open_embeddings(tmp_path / "a")
        for _ in range(2):
            for text, vector in zip(TEXTS, VECTORS):
                np.testing.assert_array_equal(store.vector_of(text), vector)

    # Many ids stay cheap. Many seconds would be a loop over them.
    (tmp_path := tmp_path / "next").mkdir()
    count = 300_000
    np.save(tmp_path / "vectors.npy", np.arange(2 * count, dtype=np.float32).reshape(count, 2))
    np.save(tmp_path / "ids.npy", np.array([b"%032x" % (i * 7919 % count) for i in range(count)]))
    store = open_embeddings(tmp_path)
    code = "store.vectors(store.ids[::-1][:100_000])"
    timer = __import__("timeit").Timer(code, globals={"store": store})
    assert timer.timeit(1) < 4
    np.testing.assert_array_equal(store.vector(b"%032x" % 7919), [2, 3])


def change(folder, **values):
    record = json.loads((folder / "embeddings.json").read_text()) | values
    (folder / "embeddings.json").write_text(json.dumps(record))


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


DAMAGE = {
    "block": (lambda f: (f / "vectors" / "000001.npy").unlink(), "000001.npy is missing, one of 1"),
    "ids": (lambda f: (f / "ids.npy").unlink(), "ids.npy is missing"),
    "cut block": (lambda f: cut(f / "vectors" / "000001.npy"), "000001.npy is no whole npy"),
    "cut ids": (lambda f: cut(f / "ids.npy"), "ids.npy"),
    "empty": (lambda f: (f / "vectors" / "000002.npy").write_bytes(b""), "000002.npy is no whole"),
    "objects": (lambda f: np.save(f / "ids.npy", np.array([1, "a"], object)), "ids.npy"),
    "numbers": (lambda f: np.save(f / "ids.npy", np.arange(5)), "ids are bytes"),
    "count": (lambda f: change(f, count=4), "counts 4, ids.npy 5"),
    "rows": (lambda f: np.save(f / "vectors" / "000002.npy", VECTORS[:2]), "5 ids for 6 vectors"),
    "width": (lambda f: np.save(f / "vectors" / "000002.npy", VECTORS[:1, :2]), r"\[2, 3\]"),
    "whole numbers": (
        lambda f: np.save(f / "vectors" / "000002.npy", np.ones((1, 3), int)),
        "int64; vectors are",
    ),
    "twice": (
        lambda f: np.save(f / "ids.npy", np.array([b"a", b"b", b"c", b"d", b"b"])),
        "1 and 4",
    ),
    "unfinished": (lambda f: change(f, complete=False), "not complete, 0 of 3 blocks"),
    "no record": (lambda f: (f / "embeddings.json").write_text("{"), "not as written here"),
    "no key": (lambda f: (f / "embeddings.json").write_text("{}"), "not as written here"),
    "nothing": (lambda f: (f / "embeddings.json").unlink(), "has no embeddings"),
}


def test_what_cannot_be_used_is_named(tmp_path):
    # Damage is named.
    for damage, (harm, message) in DAMAGE.items():
        folder = tmp_path / damage
        write(folder, TEXTS, VECTORS, block=2)
        harm(folder)
        with pytest.raises(ValueError) as error:
            open_embeddings(folder)
        assert re.search(message, str(error.value)), damage

    # bfloat16 is not a dtype of .npy.
    np.save(tmp_path / "vectors.npy", np.asarray(jnp.asarray(VECTORS, jnp.bfloat16)))
    (tmp_path / "texts.txt").write_text("a\nb\nc\nd\ne\n")
    with pytest.raises(ValueError, match=r"vectors.npy .*V2; vectors are"):
        open_embeddings(tmp_path)

    # Vectors that are not finite are named.
    np.save(tmp_path / "vectors.npy", np.array([[1.0, 2], [np.nan, 0]]))
    np.save(tmp_path / "ids.npy", np.array([b"good", b"bad"]))
    store = open_embeddings(tmp_path)
    assert list(store.vector(b"good")) == [1, 2]
    with pytest.raises(ValueError, match="vector of b'bad' has values that are not finite"):
        store.vectors([b"good", b"bad"])

    # A folder that knows images by path is refused. What older versions wrote: the same text and
    # path, but perhaps another picture.
    picture = Item("a", (Media("x.png", b"pixels"),))
    by_path = hashlib.blake2b(b"a\0x.png", digest_size=16).hexdigest()
    np.save(tmp_path / "vectors.npy", VECTORS[:2])
    np.save(tmp_path / "ids.npy", np.array([item_id("a"), by_path.encode()]))
    store = open_embeddings(tmp_path)
    np.testing.assert_array_equal(store.vector_of("a"), VECTORS[0])
    for call in (store.vector_of, lambda item: store.vectors_of(["a", item])):
        with pytest.raises(ValueError, match="knew images by their paths.*Write it again"):
            call(picture)
    with pytest.raises(KeyError, match="no vector of 'b', image 'x.png'"):
        store.vectors_of(["a", Item("b", (Media("x.png", b"pixels"),))])


def test_reading_needs_no_jax_backend(tmp_path):
    """Data workers open it, and must not take the devices."""
    write(tmp_path / "a", TEXTS, VECTORS)
    code = (
        "import sys; from unime_jax.data.embedding_store import open_embeddings\n"
        f"print(len(open_embeddings({str(tmp_path / 'a')!r})))\n"
        "import jax._src.xla_bridge as x; assert not x._backends\n"
        "assert 'transformers' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "5\n", found.stderr
