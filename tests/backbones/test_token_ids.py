"""Tokens that the model has no embedding of are errors that name them, in every family."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from tests.backbones.checkpoints import WRITE
from tests.models.oracle import picture
from tests.tables import for_each
from unime_jax import Embedder, backbones, sharding
from unime_jax.batch import Item, Media
from unime_jax.data.bucket_filling import fill_buckets
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.models.layers import Embedding


@pytest.fixture
def written(folders):
    """Copies a family's checkpoint, to be changed."""
    return lambda model_type, target: shutil.copytree(folders(model_type), target / model_type)


def opened(folder):
    return backbones.open_backbone(str(folder), max_length=64)


def rows_of(folder):
    config = json.loads((folder / "config.json").read_text())
    return config.get("vocab_size") or config["text_config"]["vocab_size"]


def extend(folder, *tokens):
    """Adds tokens, the first with the first id that has no row."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if folder.name == "llava_qwen":  # which gets one if it has none
        tokenizer.add_special_tokens([AddedToken("<image>", special=True)])
    while tokenizer.get_vocab_size(with_added_tokens=True) < rows_of(folder):
        number = tokenizer.get_vocab_size(with_added_tokens=True)
        tokenizer.add_special_tokens([AddedToken(f"<|reserved_{number}|>", special=True)])
    before = tokenizer.get_vocab_size(with_added_tokens=True)
    for token in tokens:
        add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
        add([token])
    tokenizer.save(str(folder / "tokenizer.json"))
    return before


@for_each("model_type", WRITE)
def test_an_added_token_is_refused_when_the_folder_is_opened(written, tmp_path, model_type):
    """Any text may hold it, so that it is in ordinary use; as many rows as tokens will do."""
    folder = written(model_type, tmp_path)
    rows = extend(folder)
    assert rows == rows_of(folder)
    opened(folder)
    extend(folder, AddedToken("<emb>", special=False), AddedToken("<more>", special=False))
    message = f"2 token.* beyond the {rows} rows .*such as '<emb>', id {rows}; give the model as ma"
    with pytest.raises(ValueError, match=message):
        opened(folder)
    with pytest.raises(ValueError, match=message):
        Embedder.from_pretrained(folder)


@for_each("model_type", WRITE)
def test_a_special_token_is_refused_where_it_is_used(written, tmp_path, model_type):
    """It may be for padding, which is never asked for; other texts are as before."""
    folder = written(model_type, tmp_path)
    before = opened(folder).preprocess(Item("a b")).tokens
    rows = extend(folder, AddedToken("<emb>", special=True, normalized=False))
    preprocess = opened(folder).preprocess
    np.testing.assert_array_equal(preprocess(Item("a b")).tokens, before)
    message = f"item 'a <emb> b': its token '<emb>' has id {rows}, and the model's embedding has"
    with pytest.raises(ValueError, match=re.escape(message)):
        preprocess(Item("a <emb> b"))


def test_a_token_beyond_a_table_is_named(written, tmp_path):
    # A special token of every prompt is refused when the folder is opened.
    folder = written("qwen2_vl", tmp_path)
    extend(folder, AddedToken("<emb>", special=True, normalized=False))
    chat = backbones.Processing(prompt="chat")
    template = (
        "<emb>{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    )
    template += "<|image_pad|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    for name in ("chat_template.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text()) | {"chat_template": template}
        (folder / name).write_text(json.dumps(content))
    opened(folder)  # raw
    with pytest.raises(ValueError, match="'<emb>'"):
        backbones.open_backbone(str(folder), max_length=64, processing=chat)

    # The embedder names the item.
    (tmp_path := tmp_path / "next").mkdir()
    folder = written("bert", tmp_path)
    extend(folder, AddedToken("<emb>", special=True, normalized=False))
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    model = Embedder.from_pretrained(folder, dtype="float32", mesh=mesh)
    with pytest.raises(ValueError, match=r"items\[1\]: item 'a <emb> b': its token '<emb>'"):
        model.encode(["a b", "a <emb> b"])
    assert np.isfinite(model.encode(["a b"])).all()

    # Bert has a type and a position for every token
    (tmp_path := tmp_path / "next").mkdir()
    folder = written("bert", tmp_path)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"max_position_embeddings": 5}))
    row = opened(folder).preprocess(Item("a b c d e f g"))
    assert len(row.tokens) == 5 and row.truncated == 4
    file.write_text(json.dumps(config | {"type_vocab_size": 0}))
    with pytest.raises(ValueError, match="type_vocab_size is 0; the type of a single text needs"):
        opened(folder)


@for_each("model_type", WRITE)
def test_a_vocabulary_that_is_larger_than_the_model(written, tmp_path, model_type):
    """Tokens that were not added: config.json is another model's."""
    folder = written(model_type, tmp_path)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    (config if "vocab_size" in config else config["text_config"])["vocab_size"] = 100
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"beyond the 100 rows|vocab_size is 100"):
        opened(folder)


@for_each("model_type", WRITE)
def test_nothing_beyond_the_tables_is_packed(folders, model_type):
    """Whatever made the rows: on a device it would read as NaN, or as another row."""
    backbone = opened(folders(model_type))
    layout = backbone.layout
    shapes = BatchShapes((Bucket(64, 0),), layout, 1, 1)
    fill_buckets([backbone.preprocess(Item("a b"))], shapes)
    wrong = [("tokens", layout.vocabulary), ("tokens", -1)]
    wrong += [("slot", 0), ("slot", -2)] if layout.patches else []
    wrong += [("positions", 64)] if layout.learned_positions else []
    assert layout.learned_positions in (None, 64)
    for what, value in wrong:
        row = backbone.preprocess(Item("a b"))
        getattr(row, what)[-1] = value
        with pytest.raises(ValueError, match=f"{what.removesuffix('s')}s from .* does not fit the"):
            fill_buckets([row], shapes)


@for_each("family", ["llava_next", "llava_onevision", "qwen2_vl", "phi3_v"])
def test_slots_end_with_the_images_of_the_row(folders, family):
    backbone = backbones.open_backbone(str(folders(family)), max_length=512)
    row = backbone.preprocess(Item("<|image_1|>\nx", (Media("a.png", picture(40, 30, 1)),)))
    shapes = BatchShapes((Bucket(512, 64),), backbone.layout, 1, 1)
    fill_buckets([row], shapes)
    first, per_tile = backbone.layout.table
    most = first + len(row.patches) * per_tile
    assert 0 < row.slot.max() < most
    row.slot[np.argmax(row.slot[:, 0])] = most
    with pytest.raises(ValueError, match=f"slots from -1 to {most}; they must be from -1 to"):
        fill_buckets([row], shapes)


def test_a_lookup_beyond_the_table_is_not_silent():
    """Should the host ever let one through: NaN, which is never handed out."""
    table = Embedding(3, 2, key=jax.random.key(0))
    found = jax.jit(lambda index: table(index, jnp.float32))(jnp.array([0, 2, 3]))
    assert np.isfinite(found[:2]).all() and np.isnan(found[2]).all()
