"""Embeddings that are not finite are never handed out: the error names the item and the cause."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.backbones.tiny_texts import write_bert
from tests.tables import for_each
from unime_jax import Embedder, backbones, sharding
from unime_jax.batch import Item
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.inference.encode import make_encoder
from unime_jax.models.forward import make_encode
from unime_jax.models.inference import targets
from unime_jax.models.vlm import Execution

NORM = "encoder.layer.1.output.LayerNorm.weight"
FLOAT32 = np.dtype(np.float32)


def poison(folder, name, value, row=0):
    given = load_file(folder / "model.safetensors")
    given[name][row] = value
    save_file(given, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def folder(tmp_path):
    return write_bert(tmp_path / "bert")


@pytest.fixture
def one_word(folder):
    """Weights that are finite, but of one word so large that float32 overflows on the way."""
    tokens = backbones.open_backbone(str(folder), max_length=64).preprocess(Item("circle")).tokens
    assert len(tokens) == 3
    poison(folder, "embeddings.word_embeddings.weight", 3e38, tokens[1])
    return folder


def opened(folder, **arguments):
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    return Embedder.from_pretrained(folder, **({"dtype": "float32", "mesh": mesh} | arguments))


@for_each("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(folder, value):
    poison(folder, NORM, value)
    message = (
        r"items\[0\], item 'a b': its embedding is not finite \(2 of the 2 in its batch are not\): "
        r"1 of \d+ parameters hold NaN or infinity, such as encoder.layer.output.LayerNorm.weight"
    )
    with pytest.raises(ValueError, match=message):
        opened(folder).encode(["a b", "c"])


@for_each("call", ["encode", "encode_sum"])
def test_the_item_that_overflows_is_named(one_word, call):
    model = opened(one_word)
    assert np.isfinite(model.encode(["a square", "red"])).all()
    message = (
        r"items\[1\], item 'a circle': its embedding is not finite \(1 of the 3 in its batch are "
        r"not\): all weights are finite, so numbers overflow on the way.*float32"
    )
    arguments = {"text_suffix": ""} if call == "encode_sum" else {}
    with pytest.raises(ValueError, match=message):
        getattr(model, call)(["red", "a circle", "blue"], **arguments)


def test_encoders_of_evaluation_and_of_the_exports_check_do_the_same(one_word):
    """In a later window, on a mesh."""
    mesh = sharding.make_mesh(1, 2, 1, jax.devices()[:2])
    backbone = backbones.open_backbone(str(one_word), max_length=64)
    graph, wanted = targets(backbone.make_model, mesh, FLOAT32)
    encoder = make_encoder(
        make_encode(graph, Execution(FLOAT32, "none", "xla")),
        ({}, backbone.load(wanted)),
        backbone.preprocess,
        BatchShapes((Bucket(64, 0),), backbone.layout, 2, 2),
        mesh,
    )
    assert encoder([Item("red"), Item("blue")]).shape == (2, 24)
    with pytest.raises(
        ValueError, match="item 'a circle': its embedding is not finite.*1 of the 2"
    ):
        encoder([Item("red"), Item("blue"), Item("a circle"), Item("a square")])
