"""NV-Embed's folder: strings to rows, weights by name, and the way through Embedder and meshes."""

import builtins
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.backbones.checkpoints import DTYPES, assert_same, targets, tensors
from tests.backbones.tiny_texts import write_nv_embed
from tests.float32 import assert_same_rows
from tests.models.oracle import EXACT, load
from tests.tables import for_each
from unime_jax import Embedder, backbones, paths, sharding
from unime_jax.backbones import Processing
from unime_jax.backbones.preprocessing import processing
from unime_jax.batch import Item, Media
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.export import folder as hf_folder
from unime_jax.inference.encode import make_encoder
from unime_jax.models import forward

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "nv_embed"
INSTRUCTION = "Instruct: name the shape\nQuery: "
EOS = 2


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder whose outputs the original code recorded: tokens are bytes."""
    folder = tmp_path_factory.mktemp("recorded") / "folder"
    shutil.copytree(GOLDEN, folder)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast"} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """In the published form, its tokenizer too; no weights."""
    return write_nv_embed(tmp_path_factory.mktemp("tiny"))


def opened(folder, max_length=4096):
    return backbones.open_backbone(str(folder), max_length=max_length)


def case(name):
    return json.loads((GOLDEN / name / "case.json").read_text()), load_file(
        GOLDEN / name / "io.safetensors"
    )


# Strings to rows


@for_each("name", ["encode_query", "encode_passage"])
def test_recorded_strings_and_their_embeddings(recorded, name):
    settings, data = case(name)
    preprocess = opened(recorded, settings["max_length"]).preprocess
    for i, text in enumerate(settings["prompts"]):
        row = preprocess(Item(text, prefix=settings["instruction"]))
        length = data["attention_mask"][i].sum()
        np.testing.assert_array_equal(row.tokens, data["input_ids"][i, :length])
        pooled = np.flatnonzero(data["pool_mask"][i])
        assert pooled.tolist() == list(range(row.pool_start, length))
        assert row.pool_start == settings["instruction_token_count_without_bos"]
        assert row.tokens[-1] == EOS and row.truncated == 0

    # Recorded embeddings of strings
    settings, data = case(name)
    model = Embedder.from_pretrained(recorded, dtype="float32")
    found = model.encode(settings["prompts"], prompt=settings["instruction"])
    assert_same_rows(found, data["embedding"])
    assert np.sum(found * data["embedding"], axis=1).min() >= 0.99999


def test_the_original_cuts_the_end_off_and_we_the_text(recorded):
    settings, data = case("encode_truncated")
    limit = settings["max_length"]
    preprocess = opened(recorded, limit).preprocess
    long, short = (Item(x, prefix=settings["instruction"]) for x in settings["prompts"])
    row = preprocess(short)
    np.testing.assert_array_equal(row.tokens, data["input_ids"][1, : len(row.tokens)])
    assert row.truncated == 0
    row, theirs = preprocess(long), data["input_ids"][0]
    assert EOS not in theirs and len(row.tokens) == len(theirs) == limit
    np.testing.assert_array_equal(row.tokens, [*theirs[:-1], EOS])
    whole = opened(recorded).preprocess(long)
    assert row.truncated == len(whole.tokens) - limit
    assert row.pool_start == whole.pool_start == np.flatnonzero(data["pool_mask"][0])[0]


@given(
    instruction=st.sampled_from(["", INSTRUCTION, "Query: "]),
    text=st.text("a redcil\u00e9\u4e2d\n", max_size=40),
    suffix=st.sampled_from(["", " ok"]),
    limit=st.integers(2, 90),
)
def test_prefix_suffix_and_eos_are_never_cut(tiny, instruction, text, suffix, limit):
    """Pieces are words here, and one of them may be of the prefix and the text both."""
    item = Item(text, prefix=instruction, suffix=suffix)
    whole = opened_once(tiny)(item)
    preprocess = dataclasses.replace(
        opened_once(tiny), prompt=dataclasses.replace(opened_once(tiny).prompt, max_length=limit)
    )
    if len(whole.tokens) <= limit:
        np.testing.assert_array_equal(preprocess(item).tokens, whole.tokens)
        return
    try:
        row = preprocess(item)
    except ValueError as error:
        assert "prefix, suffix and special tokens are" in str(error)
        return
    assert len(row.tokens) == limit and row.truncated == len(whole.tokens) - limit
    assert row.tokens[0] == 1 and row.tokens[-1] == EOS and row.pool_start == whole.pool_start
    cut = decoded(tiny, row.tokens)
    assert cut.startswith(instruction) and cut.endswith(suffix)
    kept = cut.removeprefix(instruction).removesuffix(suffix)
    if "\ufffd" not in kept:  # a letter's bytes are tokens, which may be cut apart
        assert text.startswith(kept)


OPENED = {}


def opened_once(folder):
    if folder not in OPENED:
        OPENED[folder] = opened(folder).preprocess
    return OPENED[folder]


def decoded(folder, tokens):
    return opened_once(folder).prompt.tokenizer.decode(list(tokens)).removeprefix(" ")


def test_what_cannot_be_embedded_is_refused(recorded, tiny):
    # An instruction that leaves nothing to pool.
    with pytest.raises(ValueError, match="special tokens are 9 tokens, and max_length is 8; raise"):
        opened(recorded, 8).preprocess(Item("text", prefix="Query: "))
    assert opened(recorded, 9).preprocess(Item("text", prefix="Query: ")).pool_start == 7
    # In pieces of its own, the prefix is as long as together with the text.
    with pytest.raises(ValueError, match="its prefix takes all 3 tokens, so none is pooled"):
        opened(tiny).preprocess(Item("le", prefix="circ"))

    # Images are refused.
    preprocess = opened(tiny).preprocess
    for item in (
        Item("red", (Media("a.png", b"x"),)),
        Item("red", (Media("gone.png"),)),
        Item("red", (Media("", b"x"),)),
        Item("red", (Media("", b"x"), Media("", b"y"))),
    ):
        with pytest.raises(ValueError, match="embeds texts only; leave out the image"):
            preprocess(item)

    # There is no choice of processing.
    with pytest.raises(ValueError, match="no choice of processing"):
        backbones.open_backbone(
            str(tiny), max_length=64, processing=Processing(prompt="raw", image_size=(28, 28))
        )


def test_rows_of_texts(tiny):
    # A leading space is a piece as in tokenizer.json.
    spaces = [len(opened(tiny).preprocess(Item(" " * n + "red")).tokens) for n in range(3)]
    assert spaces == [3, 4, 5]

    # Rows lie in the layout.
    backbone = opened(tiny)
    row = backbone.preprocess(Item("red", prefix=INSTRUCTION))
    assert backbone.layout.pooled and not backbone.layout.patches
    assert row.patches is None and row.slot_weight is None
    np.testing.assert_array_equal(row.positions[:, 0], np.arange(len(row.tokens)))


# Configurations


def changed(folder, tmp_path, file="config.json", **changes):
    shutil.copytree(folder, tmp_path / "changed")
    path = tmp_path / "changed" / file
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *group, key = key.split("__")
        (content[group[0]] if group else content)[key] = value
    path.write_text(json.dumps(content))
    return tmp_path / "changed"


@for_each(
    ("key", "value"),
    [
        ("padding_side", "left"),
        ("is_mask_instruction", False),
        ("add_eos", False),
        ("mask_type", "c"),
        ("add_pad_token", False),
        ("text_config__model_type", "mistral"),
        ("text_config__hidden_act", "relu"),
        ("latent_attention_config__output_normalize", False),
        ("latent_attention_config__latent_dim", 16),
        ("latent_attention_config__hidden_dim", 4096),
    ],
)
def test_a_configuration_that_the_code_does_not_do(tiny, tmp_path, key, value):
    with pytest.raises(ValueError, match=f"config.json: {key.replace('__', '.')} is {value!r}"):
        opened(changed(tiny, tmp_path, **{key: value}))


@for_each("changes", [{"eos_token": None}, {"eos_token": "e"}, {"bos_token": None}])
def test_a_tokenizer_that_does_not_fit(tiny, tmp_path, changes):
    with pytest.raises(ValueError, match="tokenizer.json reads the EOS"):
        opened(changed(tiny, tmp_path, "tokenizer_config.json", **changes))


def test_neither_window_nor_code_of_the_folder_counts(tiny, tmp_path, monkeypatch):
    # The sliding window is none of this model.
    folder = changed(tiny, tmp_path, text_config__sliding_window=8)
    assert opened(folder).preprocess.prompt.max_length == 4096
    assert opened(folder, 10**6).preprocess.prompt.max_length == 32768

    # Its code is not even asked for.
    assert "auto_map" in json.loads((tiny / "config.json").read_text())
    asked = []
    monkeypatch.setattr(builtins, "input", lambda question="": asked.append(question) or "n")
    opened(tiny)
    assert not asked


# Weights


def test_there_and_back_changes_no_bit_and_an_export_embeds_the_same(recorded, tmp_path):
    # There and back changes no bit.
    for dtype in DTYPES.values():
        backbone = opened(recorded)
        parameters = backbone.load(targets(backbone, dtype=dtype))
        (tmp_path / dtype.name).mkdir()
        backbone.save_weights(tmp_path / dtype.name, parameters, dtype)
        given = {name: x.astype(dtype) for name, x in tensors(recorded).items()}
        assert_same(tensors(tmp_path / dtype.name), given)

    # Every tensor is a parameter. Nothing is carried or passed over; a fused tensor is two.
    parameters = load(opened(recorded))
    given = tensors(recorded)
    assert sum(x.size for x in parameters.values()) == sum(x.size for x in given.values())
    kv = given["latent_attention_model.cross_attend_blocks.0.fn.to_kv.weight"]
    block = "latent_attention_model.cross_attention"
    np.testing.assert_array_equal(parameters[f"{block}.to_k.kernel"].T, kv[:256])
    np.testing.assert_array_equal(parameters[f"{block}.to_v.kernel"].T, kv[256:])

    # An exported folder embeds the same.
    backbone = opened(recorded)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    target = tmp_path / "export"
    hf_folder.write(target, backbone, graph, load(backbone), dtype=DTYPES["float32"], prompts={})
    assert_same(tensors(target), tensors(recorded))
    assert processing.read(target) == Processing(prompt="raw")
    assert not (target / "modules.json").exists() and backbone.caveats
    assert not backbone.loads_in_transformers
    texts = ["a red circle " * 4, ""]
    found, expected = (
        Embedder.from_pretrained(folder, dtype="float32").encode(texts, prompt=INSTRUCTION)
        for folder in (target, recorded)
    )
    np.testing.assert_array_equal(found, expected)


@for_each("shape", [(1, 8, 1), (2, 2, 2), (1, 1, 8)])
def test_sharded_read_equals_unsharded_read(recorded, shape):
    backbone = opened(recorded)
    expected = load(backbone)
    found = backbone.load(targets(backbone, sharding.make_mesh(*shape)))
    assert_same(found, expected)


# Through what is there for every family

TEXTS = ["", "red", "a blue square " * 5, "a red circle", "two\nlines", "\u4e2d\u6587 " * 9]


@pytest.fixture(scope="module")
def alone(recorded):
    """Each text by itself on one device, with the instruction and without."""
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    model = Embedder.from_pretrained(recorded, dtype="float32", mesh=mesh)
    return {
        prompt: np.concatenate([model.encode([text], prompt=prompt) for text in TEXTS])
        for prompt in ("", INSTRUCTION)
    }


def test_texts_and_instructions_differ(alone):
    both = np.concatenate(list(alone.values()))
    apart = np.linalg.norm(both[:, None] - both, axis=-1) + 10 * np.eye(len(both))
    assert apart.min() > 1e-3


@pytest.mark.slow
@for_each("shape", [(1, 8, 1), (2, 2, 2)])
def test_embedder_on_meshes(recorded, alone, shape):
    mesh = sharding.make_mesh(*shape)
    model = Embedder.from_pretrained(recorded, dtype="float32", mesh=mesh)
    assert model.dimension == 64
    for prompt, expected in alone.items():
        found = model.encode(TEXTS, prompt=prompt, batch_size=4)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@for_each("shape", [(1, 1, 1), (2, 2, 2)])
def test_encoder_over_chunks_and_buckets(recorded, alone, shape):
    backbone = opened(recorded)
    mesh = sharding.make_mesh(*shape, jax.devices()[: np.prod(shape)])
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    parameters = backbone.load(targets(backbone, mesh))
    shapes = BatchShapes((Bucket(60, 0), Bucket(240, 0)), backbone.layout, 4, 8)
    encode = forward.make_encode(graph, EXACT)
    encoder = make_encoder(encode, ({}, parameters), backbone.preprocess, shapes, mesh)
    items = [Item(text, prefix=prompt) for text in TEXTS for prompt in alone]
    expected = np.stack(list(alone.values()), axis=1).reshape(len(items), -1)
    np.testing.assert_allclose(encoder(items), expected, atol=1e-5)


def test_rendered_and_max_length(recorded):
    model = Embedder.from_pretrained(recorded, dtype="float32", max_length=10**6)
    assert model.rendered("red", prompt=INSTRUCTION) == INSTRUCTION + "red</s>"
    assert model.max_length == 32768
    with pytest.raises(ValueError, match=r"^items\[1\]: .*texts only"):
        model.encode(["red", {"image": np.zeros((4, 4, 3), np.uint8)}])
