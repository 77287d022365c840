"""Exports in sentence-transformers and back: the same model, whoever saved its folder last."""

import dataclasses
import functools
import json
import logging
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.models.oracle import TEXT, VISION, load, pair_of
from tests.tables import for_each
from unime_jax import Embedder, backbones, paths, sharding
from unime_jax.backbones import Processing
from unime_jax.backbones.preprocessing import processing
from unime_jax.data.truncation import truncated
from unime_jax.export import folder as hf_folder
from unime_jax.export import sentence_transformers as layout

MAX_LENGTH = 140
FAMILIES = {
    "onevision": (functools.partial(write_folder, vision=VISION, text=TEXT), "verbatim"),
    "llava_next": (write_llava_next, "chat"),  # which is not the way of its family
    "qwen2_vl": (write_qwen2_vl, "chat"),
}
LONG = "left of a blue square " * 60
RED = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8))


@dataclasses.dataclass(frozen=True)
class Export:
    """A folder, its backbone's processing, and another one that sentence-transformers saved."""

    folder: pathlib.Path
    processing: Processing
    theirs: SentenceTransformer
    saved: pathlib.Path


def export(name: str, folder: pathlib.Path) -> Export:
    write, style = FAMILIES[name]
    source = folder / "source"
    source.mkdir()
    pair_of(write(source))
    _change(source / "tokenizer_config.json", truncation_side="left")  # which is not followed
    choice = Processing(prompt=style, pixels=(256, 512) if name == "qwen2_vl" else None)
    backbone = backbones.open_backbone(str(source), max_length=MAX_LENGTH, processing=choice)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    target = folder / "hf"
    prompts = {"query": "find: "}
    dtype = np.dtype("float32")
    hf_folder.write(target, backbone, graph, load(backbone), dtype=dtype, prompts=prompts)
    theirs = SentenceTransformer(str(target), device="cpu")
    theirs.save_pretrained(str(folder / "saved"), create_model_card=False)
    return Export(target, choice, theirs, folder / "saved")


def _change(file: pathlib.Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    return functools.cache(lambda name: export(name, tmp_path_factory.mktemp(name)))


@functools.cache  # of folders that no test changes
def opened(folder, **arguments) -> Embedder:
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    return Embedder.from_pretrained(folder, dtype="float32", mesh=mesh, **arguments)


def assert_same(found, expected):
    assert np.sum(found * expected, axis=1).min() >= 0.99999


@for_each("model_type", FAMILIES)
def test_long_texts_and_pictures_by_the_same_call(exports, model_type, tmp_path):
    # A long text has the recorded length.
    one = exports(model_type)
    model = opened(one.folder)
    assert model.max_length == MAX_LENGTH
    file = str(tmp_path / "red.png")
    texts = [LONG, "a red circle", {"text": file}]
    assert_same(model.encode(texts), one.theirs.encode(texts))
    named = {"prompt_name": "query"}
    assert_same(model.encode(texts, **named), one.theirs.encode(texts, **named))

    # Pictures are given in the same way.
    RED.save(file)
    items = [RED, {"image": file}, {"image": file, "text": "a"}]
    assert_same(model.encode(items), one.theirs.encode(items))


@for_each("model_type", FAMILIES)
def test_other_libraries_leave_our_file_out_or_carry_it_along(exports, model_type, tmp_path):
    """And yet the model is used as it was trained."""
    one = exports(model_type)
    assert not (one.saved / processing.FILE).exists()
    first, second = (
        backbones.open_backbone(str(folder), max_length=None) for folder in (one.folder, one.saved)
    )
    assert first.processing == one.processing
    # What lies in the image processor's files is read from there.
    assert second.processing == dataclasses.replace(one.processing, pixels=None)
    prompts = [backbone.preprocess.prompt for backbone in (first, second)]
    assert prompts[0].frames == prompts[1].frames
    assert prompts[0].max_length == prompts[1].max_length == MAX_LENGTH
    assert second.defaults.prompts["query"] == "find: "

    # Transformers carries the record along
    one = exports(model_type)
    AutoModel.from_pretrained(one.folder).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(one.folder).save_pretrained(tmp_path)
    assert not (tmp_path / "modules.json").exists()
    backbone = backbones.open_backbone(str(tmp_path), max_length=None)
    assert backbone.processing == dataclasses.replace(one.processing, pixels=None)
    assert backbone.preprocess.prompt.max_length == MAX_LENGTH


ITEMS = [LONG, "<|image_1|>\na", RED, {"text": "a red circle", "image": RED}]


@for_each("model_type", FAMILIES)
def test_embeddings_of_what_sentence_transformers_saved(exports, model_type):
    """Under whatever names it has written the weights."""
    one = exports(model_type)
    found = opened(one.saved).encode(ITEMS)
    assert_same(found, opened(one.folder).encode(ITEMS))
    assert_same(found[:2], one.theirs.encode(ITEMS[:2]))


def test_an_export_says_how_many_numbers_its_users_get(exports, tmp_path):
    """And which were trained to be enough, where vLLM reads it."""
    backbone = backbones.open_backbone(str(exports("onevision").folder), max_length=None)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    hf_folder.write(
        tmp_path,
        backbone,
        graph,
        load(backbone),
        dtype=np.dtype("float32"),
        prompts={},
        dims=(4, 8),
        truncate_dim=8,
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["matryoshka_dimensions"] == [4, 8, backbone.dimension]
    assert config["is_matryoshka"] is True
    ours, theirs = opened(tmp_path), SentenceTransformer(str(tmp_path), device="cpu")
    assert ours.truncate_dim == theirs.truncate_dim == 8
    for arguments in ({}, {"truncate_dim": 4}, {"truncate_dim": backbone.dimension}):
        expected = theirs.encode(ITEMS[:3], **arguments)
        assert expected.shape[1] == arguments.get("truncate_dim", 8)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert_same(ours.encode(ITEMS[:3], **arguments), expected)
    phi = dataclasses.replace(backbone, loads_in_transformers=False)
    with pytest.raises(ValueError, match="truncate_dim=8: exports of .* no files of sentence-tr"):
        hf_folder.check_truncation(phi, 8)


def test_the_wrong_prompt_gives_other_embeddings(exports):
    one, items = exports("llava_next"), ITEMS
    wrong = opened(one.saved, processing=Processing(prompt="raw")).encode(items)
    assert np.sum(wrong * one.theirs.encode(items), axis=1).max() < 0.99


@for_each("name", FAMILIES)
def test_the_template_tells_it_where_nothing_else_does(exports, tmp_path, name, caplog):
    """Exports of before there was a record in config.json, saved by sentence-transformers."""
    one = exports(name)
    folder = tmp_path / "old"
    shutil.copytree(one.saved, folder)
    file = folder / "config.json"
    content: dict[str, Any] = json.loads(file.read_text())
    del content[processing.KEY]
    file.write_text(json.dumps(content))
    backbone = backbones.open_backbone(str(folder), max_length=None)
    assert backbone.processing.prompt == one.processing.prompt
    assert backbone.preprocess.prompt.max_length == MAX_LENGTH
    assert not caplog.messages
    settings = folder / "sentence_bert_config.json"
    content = json.loads(settings.read_text())
    del content["processing_kwargs"]["chat_template"]
    settings.write_text(json.dumps(content))
    backbones.open_backbone(str(folder), max_length=None)
    (message,) = caplog.messages
    assert "does not record how its inputs are made; assumed is" in message


def test_what_was_changed_in_sentence_transformers(exports, tmp_path, caplog):
    # Another template than the recorded one is said.
    folder = tmp_path / "other"
    shutil.copytree(exports("llava_next").saved, folder)
    _change(folder / "sentence_bert_config.json", processing_kwargs={})
    backbone = backbones.open_backbone(str(folder), max_length=None)
    assert backbone.processing.prompt == "chat"
    (message,) = caplog.messages
    assert "words its inputs by another chat template; the recorded one is used" in message

    # Another length is followed.
    (tmp_path := tmp_path / "length").mkdir()
    theirs = SentenceTransformer(str(exports("llava_next").folder), device="cpu")
    theirs.max_seq_length = 33
    theirs.save_pretrained(str(tmp_path), create_model_card=False)
    model = opened(tmp_path)
    assert model.max_length == 33
    assert_same(model.encode([LONG]), theirs.encode([LONG]))


def test_an_untold_cut_with_an_image(exports):
    """sentence-transformers cuts the end of such a row, unless it is told to cut nothing."""
    one = exports("llava_next")
    item = {"text": LONG, "image": RED}
    whole = {"processing_kwargs": {"text": {"truncation": False}}}
    found = opened(one.folder, max_length=1000).encode([item])
    assert_same(found, one.theirs.encode([item], **whole))
    assert np.sum(opened(one.folder).encode([item]) * one.theirs.encode([item])) < 0.9999


@for_each("suffix", [True, False])
def test_what_a_model_card_says_of_it(suffix):
    long, names = layout.differences(140, suffix=suffix)
    assert ("A row with an image of more than 140 tokens" in long) == suffix
    assert '"text": {"truncation": False}' in long and '{"image": name}' in names


def test_names_of_images_are_warned_of(exports, tmp_path, caplog):
    model = opened(exports("llava_next").folder)
    (tmp_path / "b.mp4").touch()
    file = str(tmp_path / "a.JPG")
    RED.save(file)
    texts = [file, "see https://x.org/a.png", "http://x.org/a.png?b=c"]
    caplog.clear()  # of the export, where this test is the first
    with caplog.at_level(logging.WARNING):
        model.encode([{"text": file}, {"image": file}, "a.png", "a red circle"])
        assert not caplog.messages
        model.encode(["a.png", *texts])
        model.encode_sum([str(tmp_path / "b.mp4"), "a red circle", "a.png"])
    first, second = caplog.messages
    assert "2 of 4 items are texts that name an image or a video, the first is items[1], '" in first
    assert file in first and '{"image": name}' in first and second.startswith("1 of 3 items")


def test_the_first_numbers_of_an_embedding():
    vectors = np.array([[3.0, 4.0, 12.0], [0.0, 0.0, 1.0]], np.float32)
    np.testing.assert_allclose(truncated(vectors, 2), [[0.6, 0.8], [0, 0]], atol=1e-6)
    assert truncated(vectors, 3) is vectors
