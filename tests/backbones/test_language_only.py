"""A backbone without its tower: the same embeddings of texts, of a folder without the tower."""

import functools
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_llava_qwen import write_llava_qwen
from tests.backbones.tiny_phi3_v import write_phi3_v, write_weights
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.backbones.tiny_qwen3 import write_qwen3_vl
from tests.backbones.tiny_texts import write_bert, write_nv_embed
from tests.models.oracle import EXACT, TEXT, VISION, load, packed, pair_of
from tests.tables import for_each
from unime_jax import backbones, paths
from unime_jax.batch import Item

FAMILIES = {
    "llava_onevision": lambda folder: write_folder(folder, vision=VISION, text=TEXT),
    "llava_next": lambda folder: write_llava_next(folder, decoder="mistral"),
    "qwen2_vl": write_qwen2_vl,
    "qwen3_vl": write_qwen3_vl,
}
ITEMS = [Item("a red circle"), Item("left of", suffix="\nSummary above sentence in one word:")]
TEACHER = 6


def written(folder, model_type):
    FAMILIES[model_type](folder)
    return pair_of(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A pair of each family, by its model type; read-only."""
    return functools.cache(lambda name: written(tmp_path_factory.mktemp(name), name))


def language_tensors(pair):
    """The part of a checkpoint's weights that its language model is."""
    file = pair.backbone.folder / "model.safetensors"
    published = pair.backbone.names.published
    whole = load_file(file)
    prefix = dict(pair.backbone.names.prefixes)["language_model."]
    towers = [p for ours, p in pair.backbone.names.prefixes if ours != "language_model."]
    keep = {
        name: tensor
        for name, tensor in whole.items()
        if published(name).startswith(prefix)
        and not any(published(name).startswith(tower) for tower in towers)
    }
    assert 0 < len(keep) < len(whole)
    return file, keep


@for_each("model_type", FAMILIES)
def test_embeds_texts_alike_and_reads_nothing_else(pairs, tmp_path, model_type):
    pair = pairs(model_type)
    student = backbones.language_only(pair.backbone, TEACHER)
    assert student.layout.patches == 0 and student.layout.teacher == TEACHER
    parameters = load(student)
    assert parameters.keys() == {p for p in pair.parameters if p.startswith("language_model.")}

    file, kept = language_tensors(pair)
    copy = shutil.copytree(pair.backbone.folder, tmp_path / "copy")
    save_file(kept, copy / file.name, metadata={"format": "pt"})
    bare = backbones.open_backbone(str(copy), max_length=4096)
    again = load(backbones.language_only(bare, TEACHER))
    with pytest.raises(ValueError, match="missing"):
        load(bare)
    for path, leaf in parameters.items():
        np.testing.assert_array_equal(leaf, again[path])

    graph, _ = paths.split(jax.eval_shape(student.make_model, jax.random.key(0)))
    chunk, rows = packed(pair, ITEMS, 64, 0)
    ours, whole = (
        np.asarray(jax.jit(lambda chunk, model=model: model(chunk, EXACT))(chunk))[rows]
        for model in (paths.merge(graph, parameters), pair.model)
    )
    np.testing.assert_array_equal(ours, whole)
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-5


def written_phi3_v(folder):
    write_phi3_v(folder)
    write_weights(folder)


@for_each("write", [write_llava_qwen, written_phi3_v])
def test_in_checkpoints_of_original_code(write, tmp_path):
    write(tmp_path)
    whole = backbones.open_backbone(str(tmp_path), max_length=64)
    expected, found = load(whole), load(backbones.language_only(whole, TEACHER))
    assert found.keys() == {p for p in expected if p.startswith("language_model.")}
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[path])


@for_each("model_type", FAMILIES, quick=("llava_onevision", "qwen2_vl"))  # keys are theirs
def test_random_parameters_are_the_whole_models(pairs, model_type):
    pair = pairs(model_type)
    student = backbones.language_only(pair.backbone, TEACHER)

    @jax.jit
    def make(key):
        whole, own = (paths.split(b.make_model(key))[1] for b in (pair.backbone, student))
        return {path: whole[path] for path in own}, own

    whole, own = make(jax.random.key(3, impl="unsafe_rbg"))  # compiles in a part of the time
    assert len(own) > 5
    for path, leaf in own.items():
        np.testing.assert_array_equal(leaf, whole[path])


@for_each("write", [write_bert, write_nv_embed])
def test_a_text_encoder_has_none(write, tmp_path):
    write(tmp_path)
    backbone = backbones.open_backbone(str(tmp_path), max_length=32)
    with pytest.raises(ValueError, match="no language component"):
        backbones.language_only(backbone, TEACHER)


@for_each("model_type", FAMILIES)
def test_the_language_component_has_none_of_its_own(pairs, model_type):
    student = backbones.language_only(pairs(model_type).backbone, TEACHER)
    with pytest.raises(ValueError, match="no language component"):
        backbones.language_only(student, TEACHER)
