"""Merging of whole folders: what is written, from what, and what is refused."""

import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
import yaml
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from experiments import merge as recipe
from tests import children
from tests.backbones.checkpoints import tensors
from tests.backbones.tiny_texts import write_bert
from tests.jobs import dying_merge
from tests.models.oracle import make_pair
from tests.tables import for_each
from unime_jax import config_reader, main
from unime_jax.config import MergeConfig
from unime_jax.export import folder as hf_folder
from unime_jax.export import self_check
from unime_jax.jobs import evaluated_model, merge
from unime_jax.training import setup


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        yield


def moved(folder: pathlib.Path, target: pathlib.Path, seed: int) -> pathlib.Path:
    """A copy of a folder with other weights."""
    shutil.copytree(folder, target)
    rng = np.random.default_rng(seed)
    content = {
        name: x + rng.normal(scale=0.1, size=x.shape).astype(x.dtype)
        for name, x in tensors(folder).items()
    }
    save_file(content, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of images and texts. Read-only."""
    root = tmp_path_factory.mktemp("models")
    first = make_pair(root / "0", grid=2).backbone.folder
    return [first, moved(first, root / "1", 1)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two models of texts. Read-only."""
    root = tmp_path_factory.mktemp("texts")
    return [write_bert(root / "0"), moved(root / "0", root / "1", 1)]


def config_of(folders, **changes) -> ConfigDict:
    config = recipe.get_config()
    config.models = tuple(map(str, folders))
    config.verify = False
    config.update(changes)
    return config


def content_of(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_a_merge_is_a_whole_folder(folders, tmp_path):
    workdir = tmp_path / "run"
    merge.run(config_of(folders, weights=(1.0, 3.0), max_length=256), workdir)
    folder = workdir / "hf"
    weights, (first, second) = tensors(folder), map(tensors, folders)
    for name, x in weights.items():
        expected = (first[name] + 3 * second[name].astype(np.float64)) / 4
        np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-7, err_msg=name)
    names = {file.name for file in folder.iterdir()}
    assert names >= {"tokenizer.json", "processor_config.json", "modules.json", "embedder.json"}
    assert self_check.repeat(folder) > 0.99999
    recorded = json.loads((folder / "self_check.json").read_text())
    assert [bool(entry["image"]) for entry in recorded["inputs"]] == [False, False, True, True]

    # Other jobs take the work directory, as they take that of a run.
    assert setup.exported(str(workdir)) == evaluated_model.model_source(str(workdir)) == str(folder)
    # What it is made of, by hashes: another part has others, the record of a check aside.
    record = json.loads((folder / merge.RECORD).read_text())
    assert [part["weight"] for part in record["models"]] == [1.0, 3.0]
    files = [part["files"] for part in record["models"]]
    assert files[0].keys() == files[1].keys()
    assert {n for n in files[0] if files[0][n] != files[1][n]} == {"model.safetensors"}
    assert record["tensors"] == {"merged": len(weights), "copied": 0, "left_out": []}
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    assert "base_model" not in yaml.safe_load(front)  # folders here are no hub ids
    assert f"| part 2, weight 3 | `{folders[1]}` |" in body
    assert "It is a merge of 2 models" in body and "trained with" not in body
    # An export of it would not be this merge.
    (tmp_path / "copy").mkdir()
    hf_folder.copy_files(folder, tmp_path / "copy")
    assert not (tmp_path / "copy" / merge.RECORD).exists()


def test_killed_and_made_again(texts, tmp_path):
    """An earlier folder stays as it is until the new one is whole, and takes its place."""
    workdir = tmp_path / "run"
    shutil.copytree(texts[0], workdir / "hf")
    before = content_of(workdir / "hf")
    part = shutil.copytree(texts[1], tmp_path / "a run" / "hf")
    inputs = [{"text": text, "image": None} for text in ("one", "another two")]
    for name, content in (
        ("self_check.json", {"inputs": inputs}),
        ("self_check_items.json", {"texts": ["one", "another two"]}),
    ):
        (part / name).write_text(json.dumps(content))
    config = config_of([part.parent, texts[0]], method="ties", base=str(texts[0]))
    config.dtype = "bfloat16"
    child = children.start(dying_merge.run, config.to_dict(), workdir, output=tmp_path / "log")
    assert child.wait(120) == -signal.SIGKILL, child.said()
    assert (workdir / "hf.partial" / "model.safetensors").exists()
    assert content_of(workdir / "hf") == before

    merge.run(config, workdir)
    assert not (workdir / "hf.partial").exists()
    recorded = json.loads((workdir / "hf" / "self_check.json").read_text())
    assert recorded["inputs"] == inputs  # of the first part's own check
    assert recorded["dtype"] == "bfloat16"
    assert json.loads((workdir / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="config.models: .*run is where the merge is written"):
        merge.run(config_of([workdir, texts[1]]), workdir)


def with_json(folder, target, name, **changes):
    """A copy of a folder with other values in one of its files."""
    shutil.copytree(folder, target)
    content = json.loads((target / name).read_text()) | changes
    (target / name).write_text(json.dumps(content))
    return target


def test_models_of_different_kinds_are_refused(folders, texts, tmp_path):
    """All at once, each with what differs, before weights are read."""
    other_vocabulary = shutil.copytree(texts[0], tmp_path / "vocabulary")
    tokenizer = json.loads((other_vocabulary / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other_vocabulary / "tokenizer.json").write_text(json.dumps(tokenizer))
    others = {
        "family": folders[0],
        "shapes": with_json(texts[0], tmp_path / "shapes", "config.json", intermediate_size=48),
        "settings": with_json(texts[0], tmp_path / "settings", "config.json", layer_norm_eps=0.1),
        "vocabulary": other_vocabulary,
        "length": with_json(
            texts[0], tmp_path / "length", "sentence_bert_config.json", max_seq_length=24
        ),
    }
    with pytest.raises(ValueError) as error:
        merge.run(config_of([texts[0], *others.values()]), tmp_path / "run")
    assert main.says_it_all(error.value)
    said = str(error.value)
    for expected in (
        f"config.models: {folders[0]} and {{0}}: they are of the families llava_onevision and bert",
        "/shapes and {0}: the shapes of their parameters differ: ",
        "intermediate",
        "/settings and {0}: the settings of their models differ: layer_norm_eps 0.1 and 1e-12",
        "/vocabulary and {0}: the vocabularies of their tokenizers differ in 2 tokens, such as",
        "/length and {0}: max_length of their processing is 24 and 32; config.max_length sets it",
    ):
        assert expected.format(texts[0]) in said, said
    assert said.count("config.models: ") == 5, said
    assert not (tmp_path / "run" / "hf").exists()

    raw = with_json(folders[0], tmp_path / "raw", "config.json")
    processing = {"prompt": "raw", "image_size": None, "pinpoints": [], "pixels": None}
    processing |= {"grid_positions": True, "legacy_padding": False}
    (raw / "embedder.json").write_text(json.dumps(processing | {"max_length": 4096}))
    with pytest.raises(ValueError, match="prompt of their processing is 'raw' and 'chat'; config"):
        merge.run(config_of([folders[0], raw]), tmp_path / "run")


@for_each(
    "changes, message",
    [
        ({"models": ("a",)}, "models=.*: config.method='linear' merges two models or more"),
        ({"models": ("a", "b", "c"), "method": "slerp"}, "method='slerp' merges two models"),
        ({"weights": (1.0,)}, r"weights=\(1.0,\) are 1, and config.models are 2"),
        ({"weights": (1.0, -1.0)}, "weights=.*: their sum must be above zero"),
        ({"weights": (2.0, -1.0), "method": "slerp"}, "slerp takes none below zero"),
        ({"method": "ties"}, "config.base is empty: ties merges differences"),
        ({"base": "c"}, "config.base='c': config.method='linear' has no use for it"),
        ({"method": "ties", "base": "c", "density": 0.0}, "density=0.0 must be above 0"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        config_reader.read(MergeConfig, config_of(["a", "b"], **changes).to_dict())
