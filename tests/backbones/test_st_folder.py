"""Folders of sentence-transformers: what its files ask for happens here, or is refused by name.

The oracle is sentence-transformers on the same folder, float32.
"""

import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_texts import write_bert
from tests.tables import for_each
from unime_jax import Embedder, backbones, sharding
from unime_jax.backbones.io import st_folder
from unime_jax.export import self_check

TEXTS = ["a man", "two dogs, left of a blue square", "red circle " * 40]
PROMPTS = {"query": "find: ", "passage": "", "odd": "the sea of "}


def opened(folder, **arguments) -> Embedder:
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    return Embedder.from_pretrained(folder, **{"dtype": "float32", "mesh": mesh} | arguments)


def change(folder: pathlib.Path, name: str, **changes) -> None:
    file = folder / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def assert_same(found, expected):
    """Cosines, as lengths differ where embeddings are truncated."""
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert found.shape == expected.shape
    assert np.sum(found * expected, axis=1).min() >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """With prompts, one of them by default, and a dimension that is kept."""
    folder = write_bert(tmp_path_factory.mktemp("bert"))
    change(
        folder,
        "config_sentence_transformers.json",
        prompts=PROMPTS,
        default_prompt_name="query",
        similarity_fn_name="dot",
        truncate_dim=10,
    )
    return folder


@pytest.fixture(scope="module")
def model(bert):
    return opened(bert)


@pytest.fixture(scope="module")
def theirs(bert):
    return SentenceTransformer(str(bert), device="cpu")


@for_each(
    "arguments",
    [
        {},
        {"prompt": ""},
        {"prompt": "where is "},
        {"prompt_name": "odd"},
        {"prompt_name": "passage"},
        {"truncate_dim": 24},
        {"truncate_dim": 3, "prompt_name": "query"},
    ],
)
def test_prompts_and_dimension(model, theirs, arguments):
    assert_same(model.encode(TEXTS, **arguments), theirs.encode(TEXTS, **arguments))


def test_prompts_and_dimension_of_the_folder_are_used_and_may_be_set(model, bert):
    # What the folder asks for matters, so that the cases above are told apart.
    whole = {"truncate_dim": 24}
    default, none = (model.encode(TEXTS[:2], **whole | x) for x in ({}, {"prompt": ""}))
    assert np.sum(default * none, axis=1).max() < 0.999
    assert model.dimension == model.truncate_dim == 10
    assert model.prompts == PROMPTS and model.default_prompt_name == "query"
    assert model.rendered("x") == "find: x" and model.rendered("x", prompt_name="odd")[-1] == "x"
    assert model.encode_sum(TEXTS[:1]).shape == (1, 10)

    # What is not there is an error.
    with pytest.raises(ValueError, match=r"no prompt 'que'; .* has 'odd', 'passage', 'query'"):
        model.encode(["x"], prompt_name="que")
    with pytest.raises(ValueError, match="prompt is 'a' and prompt_name is 'query'; give one"):
        model.encode(["x"], prompt="a", prompt_name="query")
    with pytest.raises(ValueError, match="truncate_dim is 25; embeddings of this model have 24"):
        model.encode(["x"], truncate_dim=25)

    # Attributes may be set, as in sentence-transformers.
    model = opened(bert, truncate_dim=5)
    model.prompts["mine"] = "this: "
    model.default_prompt_name, model.truncate_dim = "mine", 7
    assert model.rendered("x") == "this: x" and model.encode(["x"]).shape == (1, 7)


LENGTHS = {
    "own file": ({"max_seq_length": 20}, {}, 20),
    "newer key": ({"processor_kwargs": {"model_max_length": 18}, "max_seq_length": 20}, {}, 18),
    "older key": ({"tokenizer_args": {"model_max_length": 19}}, {}, 19),
    "of calls": ({"processing_kwargs": {"text": {"max_length": 12}}}, {}, 12),
    "tokenizer": ({}, {"model_max_length": 22}, 22),
    "cut in front": ({"max_seq_length": 20}, {"truncation_side": "left"}, 20),
}


@for_each("form", LENGTHS)
def test_lengths(tmp_path, form):
    settings, tokenizer, longest = LENGTHS[form]
    folder = write_bert(tmp_path, settings=settings)
    change(folder, "tokenizer_config.json", **tokenizer)
    model, theirs = opened(folder), SentenceTransformer(str(folder), device="cpu")
    texts = ["a red circle left of a blue square " * 9 + "the sea", "short"]
    assert model.max_length == longest
    assert_same(model.encode(texts), theirs.encode(texts))


def test_settings_under_an_older_name_and_modules_that_are_refused(tmp_path):
    folder = write_bert(tmp_path, settings={"max_seq_length": 20})
    (folder / st_folder.SETTINGS[0]).rename(folder / "sentence_roberta_config.json")
    assert opened(folder).max_length == SentenceTransformer(str(folder)).max_seq_length == 20

    (tmp_path := tmp_path / "refused").mkdir()
    # Products of any length are refused.
    folder = write_bert(tmp_path, modules=("Transformer", "Pooling"))
    change(folder, "config_sentence_transformers.json", similarity_fn_name="dot")
    with pytest.raises(ValueError, match="is 'dot', of embeddings of any length"):
        opened(folder)

    # Modules that are code.
    (tmp_path := tmp_path / "next").mkdir()
    folder = write_bert(tmp_path)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom_st.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="custom_st.Transformer is code of the folder's own"):
        opened(folder)


REFUSED = {
    "prompt": (
        "config_sentence_transformers.json",
        {"default_prompt_name": "query", "prompts": {"a": "b"}},
        "default_prompt_name is 'query', and prompts are 'a'",
    ),
    "scores": (
        "config_sentence_transformers.json",
        {"similarity_fn_name": "manhattan"},
        "similarity_fn_name is 'manhattan', of embeddings of length one",
    ),
    "dimension": ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim is 0"),
    "task": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "'fill-mask'; only"),
    "output": (
        "sentence_bert_config.json",
        {"modality_config": {"text": {"method": "forward", "method_output_name": "logits"}}},
        "modality_config.text.method_output_name is 'logits'; only 'last_hidden_state'",
    ),
    "config": (
        "sentence_bert_config.json",
        {"config_args": {"is_decoder": True}},
        "config_kwargs.is_decoder is True, which is not supported",
    ),
    "call": (
        "sentence_bert_config.json",
        {"processing_kwargs": {"text": {"add_special_tokens": False}}},
        "processing_kwargs.text.add_special_tokens is False",
    ),
    "not cut": (
        "sentence_bert_config.json",
        {"processing_kwargs": {"text": {"truncation": False}}},
        "processing_kwargs.text.truncation is False; only True",
    ),
    "normalize": (
        "2_Normalize/config.json",
        {"module_input_name": "token_embeddings"},
        "module_input_name is 'token_embeddings'",
    ),
}


@for_each("name", REFUSED)
def test_what_is_not_done_is_refused(tmp_path, name):
    file, changes, message = REFUSED[name]
    folder = write_bert(tmp_path)
    (folder / file).parent.mkdir(exist_ok=True)
    change(folder, file, **changes)
    with pytest.raises(ValueError, match=message) as error:
        opened(folder)
    assert str(folder / file) in str(error.value)


def test_a_check_of_an_export_is_of_what_was_recorded(bert, model, tmp_path):
    """Whatever prompt and dimension the folder asks for."""
    shutil.copytree(bert, tmp_path / "hf")
    whole = model.encode(TEXTS, prompt="", truncate_dim=24)
    record = {
        "inputs": [{"text": text, "image": None} for text in TEXTS],
        "embeddings": whole.tolist(),
        "dtype": "float32",
    }
    (tmp_path / "hf" / self_check.FILE).write_text(json.dumps(record))
    items = {"texts": TEXTS, "computed_in": "float32"}
    (tmp_path / "hf" / self_check.ITEMS).write_text(json.dumps(items))
    assert self_check.repeat(tmp_path / "hf") >= 0.99999

    for wrong in range(len(TEXTS)):
        other = whole.copy()
        other[wrong] = whole[wrong - 1]
        (tmp_path / "hf" / self_check.FILE).write_text(
            json.dumps(record | {"embeddings": other.tolist()})
        )
        with pytest.raises(RuntimeError, match="does not give the embeddings of its self_check"):
            self_check.repeat(tmp_path / "hf")
    edited = [entry | {"text": f"{entry['text']}."} for entry in record["inputs"]]
    edited[0] = record["inputs"][0]
    (tmp_path / "hf" / self_check.FILE).write_text(json.dumps(record | {"inputs": edited}))
    with pytest.raises(RuntimeError, match=r"words an item as 'two dogs.*square'; when it was"):
        self_check.repeat(tmp_path / "hf")


# Other families: models of images, which are only opened here


def in_a_folder(folder, pooling, **settings):
    """A LLaVA that sentence-transformers would load, not exported from here."""
    write_llava_next(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    change(folder, "1_Pooling/config.json", **pooling)
    change(folder, "sentence_bert_config.json", **settings)
    return folder


@for_each(
    "pooling",
    [{"pooling_mode": "mean"}, {"pooling_mode_mean_tokens": True}, {"pooling_mode": "cls"}],
)
def test_pooling_of_image_models(tmp_path, pooling):
    folder = in_a_folder(tmp_path, pooling)
    with pytest.raises(ValueError, match="1_Pooling/config.json: pooling is (mean|cls).*lasttoken"):
        backbones.open_backbone(str(folder), max_length=64)


def test_what_is_assumed_of_image_models_is_said(tmp_path, caplog):
    # What is assumed is said.
    folder = in_a_folder(tmp_path, {"pooling_mode_lasttoken": True}, max_seq_length=77)
    backbone = backbones.open_backbone(str(folder), max_length=None)
    assert backbone.preprocess.prompt.max_length == 77
    (message,) = caplog.messages
    assert "does not record how its inputs are made; assumed is {'prompt': 'raw'" in message
    assert "Embedder.from_pretrained overrules it" in message
    caplog.clear()
    chosen = backbones.Processing(prompt="chat")
    backbones.open_backbone(str(folder), max_length=None, processing=chosen)
    assert not caplog.messages

    # A plain folder says it in the log.
    (tmp_path := tmp_path / "next").mkdir()
    caplog.clear()
    write_llava_next(tmp_path)
    with caplog.at_level(logging.INFO):
        backbone = backbones.open_backbone(str(tmp_path), max_length=None)
    assert backbone.preprocess.prompt.max_length == backbones.MAX_LENGTH
    assert any("assumed is {'prompt': 'raw'" in message for message in caplog.messages)

    # Other settings of image models.
    (tmp_path := tmp_path / "next").mkdir()
    folder = in_a_folder(
        tmp_path,
        {"pooling_mode": "lasttoken"},
        processing_kwargs={"image": {"max_pixels": 9}},
        do_lower_case=False,
    )
    with pytest.raises(ValueError, match=r"processing_kwargs.image.max_pixels is 9"):
        backbones.open_backbone(str(folder), max_length=64)
