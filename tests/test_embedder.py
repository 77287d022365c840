"""The library's front door: any item in any company gets transformers' embedding of it."""

import base64
import functools
import io
import logging
import pickle
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.models.oracle import TEXT, VISION, pair_of, picture, torch_hidden
from tests.tables import for_each
from unime_jax import Embedder, embedder, sharding
from unime_jax.backbones import Processing
from unime_jax.batch import Item, Media
from unime_jax.data import ahead, inference_shapes
from unime_jax.data.quantized_vectors import quantized
from unime_jax.inference import encode
from unime_jax.models import forward
from unime_jax.models.vlm import Vlm

FAMILIES = {
    "llava_onevision": functools.partial(write_folder, vision=VISION, text=TEXT),
    "llava_next": write_llava_next,
    "qwen2_vl": write_qwen2_vl,
}
WIDTH = TEXT["hidden_size"]
EXACT = 2e-5  # largest absolute difference between unit vectors, float32
PROMPT = "Represent the given image. "
SIZES = [(28, 28), (64, 64), (20, 28), (28, 9), (9, 10)]  # of few shapes: each compiles


@pytest.fixture(scope="module")
def pair_in(tmp_path_factory):
    return functools.cache(lambda name: pair_of(FAMILIES[name](tmp_path_factory.mktemp(name))))


@pytest.fixture(scope="module")
def one(pair_in):
    """A single family, for what no family can change."""
    return pair_in("llava_onevision")


def opened(pair, *, devices=1, **arguments) -> Embedder:
    mesh = sharding.make_mesh(1, devices, 1, jax.devices()[:devices])
    arguments = {"dtype": "float32", "mesh": mesh} | arguments
    return Embedder.from_pretrained(pair.backbone.folder, **arguments)


@pytest.fixture(scope="module")
def model(one):
    return opened(one)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Elements in every form that is allowed, and the items that they are with `PROMPT`."""
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    file = tmp_path_factory.mktemp("images") / "a.png"
    file.write_bytes(images[1])
    a, b, c, d, e = images
    return [
        ("a red circle " * 20, Item(PROMPT + "a red circle " * 20)),
        ({"text": "blue " * 70}, Item(PROMPT + "blue " * 70)),
        (Image.open(io.BytesIO(a)), Item(PROMPT, (Media("", a),))),
        ({"image": str(file)}, Item(PROMPT, (Media("", b),))),
        ({"image": file, "text": "a square"}, Item(PROMPT + "a square", (Media("", b),))),
        (
            {"text": "left <|image_1|> of", "image": c},
            Item(PROMPT + "left <|image_1|> of", (Media("", c),)),
        ),
        ({"image": pixels(d), "text": ""}, Item(PROMPT, (Media("", d),))),
        (
            {"image": [e], "text": "<|image_1|>\nred"},
            Item(PROMPT + "<|image_1|>\nred", (Media("", e),)),
        ),
        (
            {"text": "<|image_1|> or <|image_2|>?", "image": [a, Image.open(file)]},
            Item(PROMPT + "<|image_1|> or <|image_2|>?", (Media("", a), Media("", b))),
        ),
        ({"image": (pixels(b), a)}, Item(PROMPT, (Media("", b), Media("", a)))),
        ({"text": "none " * 15, "image": []}, Item(PROMPT + "none " * 15)),
    ]


# Rows and models of the others are compared in backbones/ and models/, and in export/ from end to
# end; all else is shared.
@for_each("family", FAMILIES, quick=["llava_onevision"])
def test_transformers_embeddings(pair_in, cases, family):
    """In order, of texts, images, both, and several images, in every form."""
    pair = pair_in(family)
    found = opened(pair).encode([element for element, _ in cases], prompt=PROMPT)
    last = np.stack([torch_hidden(pair, item)[-1] for _, item in cases])
    expected = last / np.linalg.norm(last, axis=1, keepdims=True)
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=EXACT)
    apart = np.linalg.norm(expected[:, None] - expected, axis=-1) + 10 * np.eye(len(cases))
    assert apart.min() > 100 * EXACT, "otherwise the order could not be seen"


@for_each("devices, batch_size, chunk_tokens", [(1, 3, 128), (8, 2, 64)])
def test_batches_and_devices_change_nothing(
    monkeypatch, one, model, cases, devices, batch_size, chunk_tokens
):
    """Several chunks and several batches of a shape, among them batches that are not full."""
    elements = [element for element, _ in cases]
    expected = model.encode(elements, prompt=PROMPT)
    monkeypatch.setattr(inference_shapes, "CHUNK_TOKENS", chunk_tokens)
    again = opened(one, devices=devices).encode(elements, prompt=PROMPT, batch_size=batch_size)
    np.testing.assert_allclose(again, expected, atol=EXACT)


def test_by_default_all_devices_share_rows_and_weights_also_when_pickled(one, model):
    spread = Embedder.from_pretrained(str(one.backbone.folder), dtype="float32", max_length=128)
    assert spread._shards == len(jax.local_devices()) == 8
    embedding = spread._parameters["language_model.embed_tokens.embedding"]
    assert embedding.addressable_shards[0].data.size == embedding.size // 8
    items = [f"{i} red circles " * 18 for i in range(3)]
    np.testing.assert_allclose(spread.encode(items), model.encode(items), atol=EXACT)

    # Pickled it is opened again.
    again = pickle.loads(pickle.dumps(spread))
    assert again.max_length == 128
    np.testing.assert_array_equal(again.encode(items), spread.encode(items))
    with pytest.raises(TypeError, match="on a mesh of its own"):
        pickle.dumps(model)


def test_processing_is_handed_on_and_shown(one, model):
    # Attributes.
    assert model.max_length == 4096 and opened(one, max_length=99).max_length == 99

    # Rendered.
    item = {"text": "red", "image": [picture(9, 9, 0)] * 2}
    frame = "<|im_start|>user <image><image>\n{}<|im_end|><|im_start|>assistant\n"
    assert model.rendered(item) == frame.format("red")
    assert model.rendered(item, prompt="Not ") == frame.format("Not red")

    # Processing is handed on
    item = {"text": "red", "image": picture(60, 50, 0)}
    raw = opened(one, processing=Processing(prompt="raw", image_size=(28, 28)))
    assert raw.rendered(item) == "<image>\nred"
    found = model.encode([item])
    assert model.dimension == found.shape[1] == WIDTH
    assert np.sum(raw.encode([item]) * found) < 0.99


def test_bfloat16_is_the_default_and_int8_of_linear_layers_and_both_close(one, model, compiled):
    items = [{"text": "a red circle", "image": picture(40, 31, 1)}]
    exact = model.encode(items)
    compiled.clear()
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    half = Embedder.from_pretrained(one.backbone.folder, mesh=mesh)
    assert {x.dtype.name for x in half._parameters.values()} == {"bfloat16"}
    assert {x.dtype.name for x in model._parameters.values()} == {"float32"}
    found = half.encode(items)
    cosine = np.sum(found * exact, axis=1)
    assert found.dtype == np.float32 and 0.995 < cosine < 1 - 1e-7
    assert {execution.dtype for _, execution in compiled} == {jnp.dtype("bfloat16")}
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        opened(one, dtype="float16")

    # Int8 is of linear layers and close
    compiled.clear()
    found = opened(one, dtype="int8")
    types = {path: x.dtype.name for path, x in found._parameters.items()}
    assert {types[path] for path in types if path.endswith(".kernel")} == {"int8"}
    assert {types[path] for path in types if path.endswith("_scale")} == {"float32"}
    assert types["language_model.embed_tokens.embedding"] == "bfloat16"
    cosine = np.sum(found.encode(items) * exact, axis=1)
    assert 0.99 < cosine < 1 - 1e-7
    assert {execution.dtype for _, execution in compiled} == {jnp.dtype("bfloat16")}


def test_an_iterator_or_nothing_will_do_and_a_single_item_not(model):
    # Nothing gives no rows.
    empty = model.encode([])
    assert empty.shape == (0, model.dimension) and empty.dtype == np.float32

    # An iterator will do.
    texts = ["a", "b"]
    np.testing.assert_array_equal(model.encode(iter(texts)), model.encode(texts))

    # A single item has a vector.
    for single in ["text", {"text": "a"}, Image.new("RGB", (9, 9))]:
        vector = model.encode(single)
        assert vector.shape == (model.dimension,)
        np.testing.assert_array_equal(vector, model.encode([single])[0])
        np.testing.assert_array_equal(model.encode_sum(single), model.encode_sum([single])[0])

    # Messages are an item, alone or among others; a system message takes the place of a prompt.
    image = "data:image/png;base64," + base64.b64encode(picture(28, 9, 3)).decode()
    part = {"type": "image_url", "image_url": {"url": image}}
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "red"}]}]
    item = {"text": "red", "image": picture(28, 9, 3)}
    np.testing.assert_array_equal(model.encode(chat), model.encode(item))
    asked = [{"role": "system", "content": "Find "}, *chat]
    both = model.encode([asked, chat], prompt="Not ")
    apart = [model.encode(item, prompt=prompt) for prompt in ("Find ", "Not ")]
    np.testing.assert_allclose(both, apart, atol=EXACT)
    assert model.rendered(asked, prompt="Not ") == model.rendered(item, prompt="Find ")
    np.testing.assert_array_equal(model.encode_sum([chat]), model.encode_sum([item]))
    with pytest.raises(ValueError, match=r"items\[1\]: it has a system message, and encode_sum"):
        model.encode_sum([chat, asked])

    # In fewer bits.
    vectors = model.encode(texts)
    grid = np.array([[-0.2], [0.3]], np.float32).repeat(model.dimension, 1)
    for precision, ranges in [("float16", None), ("int8", grid), ("ubinary", None)]:
        codes = model.encode(texts, precision=precision, ranges=ranges)
        np.testing.assert_array_equal(codes, quantized(vectors, precision, ranges=ranges))
    single = model.encode_query("a", precision="int8", ranges=grid)
    np.testing.assert_array_equal(single, quantized(vectors, "int8", ranges=grid)[0])
    for call in (model.encode, model.encode_sum):
        assert call("a", precision="binary").shape == (model.dimension // 8,)
        with pytest.raises(ValueError, match="at least two are needed"):
            call("a", precision="int8")
    with pytest.raises(TypeError, match=r'is a single bytes; write \{"image": ...\}'):
        model.encode(b"bytes")


def traces_of(monkeypatch, call):
    """How new models are traced: shape (rows a chunk, tokens, tiles) and execution."""
    traces = []
    forward.make_encode.cache_clear()  # what others have compiled in this process

    def traced(self, inputs, execution):
        tiles = 0 if inputs.patches is None else inputs.patches.shape[1]
        traces.append(((*inputs.tokens.shape, tiles), execution))
        return call(self, inputs, execution)

    monkeypatch.setattr(Vlm, "__call__", traced)
    return traces


@pytest.fixture
def compiled(monkeypatch):
    return traces_of(monkeypatch, Vlm.__call__)


@pytest.fixture
def compiled_shapes(monkeypatch):
    """As `compiled`, of models without layers, where shapes alone are looked at."""
    yield traces_of(monkeypatch, lambda model, inputs, _: jnp.ones((len(inputs.live), WIDTH)))
    forward.make_encode.cache_clear()


def test_the_vision_tower_is_not_traced_for_texts(monkeypatch, one):
    def vision_features(self, patches, position, execution):
        raise AssertionError("traced")

    monkeypatch.setattr(type(one.model), "vision_features", vision_features)
    forward.make_encode.cache_clear()
    model = opened(one)
    model.encode(["red " * n for n in (1, 20)])
    with pytest.raises(AssertionError, match="traced"):
        model.encode([{"image": picture(9, 9, 0)}])


def test_few_programs_and_few_rows_of_padding(one, compiled_shapes):
    # Few items are not padded to a batch.
    opened(one).encode(["a", "b", "c"], batch_size=32)
    assert {shape for shape, _ in compiled_shapes} == {(4, 32, 0)}

    # There are few programs, whatever the lengths; a second call of other lengths adds none.
    compiled_shapes.clear()
    model = opened(one, max_length=256)
    random = np.random.default_rng(0)
    for _ in range(2):
        texts = ["red " * random.integers(1, 230) for _ in range(40)]
        model.encode(texts, batch_size=8)
    assert {shape for shape, _ in compiled_shapes} == {(8, n, 0) for n in (32, 64, 128, 256)}


def test_items_are_read_as_they_are_needed(monkeypatch, model):
    """Ahead of the batch that waits for the devices there is one batch of items, not all."""
    read, most = 0, 0
    preprocess, launch = model._preprocess, encode._launch

    def counted(item):
        nonlocal read, most
        read += 1
        most = max(most, read)
        return preprocess(item)

    def launched(model, batch, part, parts):
        nonlocal read
        read -= len(batch.rows)
        return launch(model, batch, part, parts)

    monkeypatch.setattr(model, "_preprocess", counted)
    monkeypatch.setattr(encode, "_launch", launched)
    model.encode(["red"] * 60, batch_size=2)
    assert 2 <= most <= 2 + 2 + 1


BAD = {
    "type": (3, TypeError, "a int is no item; an item is a str, a PIL image, or a dict"),
    "bytes": (b"abc", TypeError, "a bytes is no item"),
    "empty": ({}, ValueError, r'its keys are \[\]; they must be "text", "image" or "video"'),
    "key": ({"text": "a", "img": "a.png"}, ValueError, r"its keys are \['text', 'img'\]"),
    "none text": ({"text": None, "image": "a"}, TypeError, '"text" is a NoneType'),
    "no image": ({"image": []}, ValueError, '"image" is an empty list, and there is no "text"'),
    "none image": ({"text": "a", "image": None}, TypeError, "an image is a NoneType; it must be"),
    "none in list": ({"image": [picture(9, 9, 0), None]}, TypeError, "an image is a NoneType"),
    "empty path": ({"image": ""}, ValueError, "an image is ''; leave it out"),
    "URL": ({"image": "https://a.org/b.png?c"}, ValueError, "b.png.* nothing is fetched unless"),
    "message": ({"role": "user", "content": "a"}, ValueError, "; messages are a list"),
    "turn": ([{"role": "assistant", "content": "a"}], ValueError, "an embedder answers nothing"),
    "no bytes": ({"image": b""}, ValueError, "an image is b''; leave it out"),
    "floats": ({"image": np.zeros((4, 4, 3))}, ValueError, "dtype float64; it must be uint8"),
    "grey": ({"image": np.zeros((4, 4), np.uint8)}, ValueError, r"shape \(4, 4\)"),
    "channels": ({"image": np.zeros((3, 4, 4), np.uint8)}, ValueError, r"shape \(3, 4, 4\)"),
    "no pixels": ({"image": np.zeros((0, 4, 3), np.uint8)}, ValueError, r"shape \(0, 4, 3\)"),
    "no file": ({"image": "nowhere.png"}, ValueError, "cannot be read: .*nowhere.png"),
    "no image file": ({"image": b"abc"}, ValueError, "cannot be read: cannot identify"),
    "truncated": ({"image": picture(99, 99, 0)[:900]}, ValueError, "cannot be read: .*truncated"),
    "truncated PIL": (
        Image.open(io.BytesIO(picture(99, 99, 0)[:900])),
        ValueError,
        "cannot be read: .*truncated",
    ),
    "many images": ({"image": [picture(9, 9, 0)] * 9}, ValueError, "9 images"),
}


@for_each("name", BAD)
def test_a_bad_item_is_named(model, name):
    item, error, message = BAD[name]
    with pytest.raises(error, match=rf"(?s)^items\[2\]: .*{message}"):
        model.encode(["a", "b", item, "c"], batch_size=2)


def test_what_cannot_be_encoded_shows_at_once(model, one, monkeypatch):
    # Batch size must be positive.
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.encode(["a"], batch_size=0)

    # An image that does not fit is named.
    with pytest.raises(ValueError, match=r"^items\[1\]: .*max_length is 20"):
        opened(one, max_length=20).encode(["a", {"image": picture(60, 60, 0)}])

    # A wrong type shows before anything is encoded.
    monkeypatch.setattr(model, "_preprocess", None)
    with pytest.raises(TypeError, match=r"^items\[7\]"):
        model.encode(["a"] * 7 + [None], batch_size=1)


@for_each("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_pil_images_are_their_files(model, mode):
    """A palette, transparency and print colours mean what they mean in a file."""
    image = Image.fromarray(pixels(picture(40, 30, 1))).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF" if mode in ("CMYK", "YCbCr", "LA") else "PNG")
    a, b = model.encode([image, {"image": file.getvalue()}])
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_lazily_opened_image_in_many_items(monkeypatch, model, tmp_path):
    """Threads preprocess, and two must not read its file at the same time."""
    path = tmp_path / "a.png"
    path.write_bytes(picture(20, 20, 0))
    image = Image.open(path)
    load, reading = ImageFile.ImageFile.load, []

    def slow(self):
        if self is image and self.tile:  # not read yet
            reading.append(self)
            time.sleep(0.05)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", slow)
    monkeypatch.setattr(ahead, "THREADS", 4)
    several = model.encode([image] * 9)  # by the program of the cases above
    assert len(reading) == 1
    np.testing.assert_allclose(several, model.encode([{"image": path}] * 9))


def test_texts_that_were_cut_are_counted_once_and_progress_is_shown(one, capsys, caplog):
    model = opened(one, max_length=64)
    with caplog.at_level(logging.WARNING):
        model.encode(["red"] * 2)
        assert not caplog.messages
        model.encode(["red", *["red " * 200] * 2, "<|image_1|> red"])
    assert caplog.messages == [
        "2 of 4 texts were cut to max_length = 64 tokens",
        "1 of 4 items have image markers without image",
    ]

    # The progress of a call is shown where it is asked for.
    capsys.readouterr()
    model.encode(["a", "b"])
    assert capsys.readouterr().err == ""
    model.encode(["a", "b", "red " * 90], show_progress_bar=True)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.usefixtures("unchecked_shapes")
def test_similarity():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 5))
    found = Embedder.similarity(a, 7 * b[:2])
    expected = [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b[:2]] for x in a]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == np.float32
    assert not Embedder.similarity(np.zeros((1, 5)), b).any()
    np.testing.assert_array_equal(Embedder.similarity(a[0], b), Embedder.similarity(a[:1], b))
    with pytest.raises(ValueError, match=r"^b has shape \(1, 3, 5\)"):
        Embedder.similarity(a, b[None])
    pairs = Embedder.similarity_pairwise(a, 7 * b)
    np.testing.assert_allclose(pairs, np.diagonal(Embedder.similarity(a, b)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"a has shape \(3, 5\), b \(2, 5\)"):
        Embedder.similarity_pairwise(a, b[:2])


def test_the_package_opens_folders_of_models_only(tmp_path):
    # An unsupported folder.
    with pytest.raises(ValueError, match="has no config.json"):
        Embedder.from_pretrained(tmp_path)

    # The package names it without importing it.
    import unime_jax

    assert "Embedder" in unime_jax.__all__ and unime_jax.Embedder is embedder.Embedder
    with pytest.raises(AttributeError, match="no attribute 'Embeder'"):
        unime_jax.Embeder  # noqa: B018


def test_queries_and_documents_have_the_prompts_of_the_folder(model, monkeypatch):
    texts = ["red", "a blue square"]

    def embedded(prompt):
        return model.encode(texts, prompt=prompt)

    assert np.abs(embedded("Find ") - embedded("")).max() > 100 * EXACT
    for prompts, default, query, document in [
        ({}, None, "", ""),
        ({"query": "Find ", "corpus": "Text "}, None, "Find ", "Text "),
        ({"corpus": "Text ", "passage": "Page "}, None, "", "Page "),
        ({"passage": "Page ", "document": "Paper ", "ask": "Ask "}, "ask", "Ask ", "Paper "),
    ]:
        monkeypatch.setattr(model, "prompts", prompts)
        monkeypatch.setattr(model, "default_prompt_name", default)
        np.testing.assert_array_equal(model.encode_query(texts), embedded(query))
        np.testing.assert_array_equal(model.encode_document(texts), embedded(document))
        single = model.encode_document(texts[0], truncate_dim=4)
        np.testing.assert_array_equal(
            single, model.encode(texts[:1], prompt=document, truncate_dim=4)[0]
        )
