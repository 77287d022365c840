"""Saving what was opened: the same embeddings to the bit, here and in sentence-transformers."""

import shutil
import types

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from tests.backbones.test_peft_targets import write_adapter
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.backbones.tiny_texts import write_bert
from tests.models.oracle import pair_of, picture
from tests.tables import for_each
from unime_jax import Embedder, sharding
from unime_jax.backbones import Processing
from unime_jax.backbones.io import model_folders
from unime_jax.export import saved_model

LONG = "left of a blue square " * 40
TEXTS = ["a red circle", LONG]
ITEMS = [*TEXTS, {"text": "red", "image": picture(28, 28, 0)}]
CHATS = [
    [
        {"role": "system", "content": [{"type": "text", "text": "seek: "}]},
        {"role": "user", "content": [{"type": "text", "text": text}]},
    ]
    for text in ("a red circle", "a blue square")
]


def opened(folder, dtype="float32", **arguments) -> Embedder:
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    return Embedder.from_pretrained(folder, dtype=dtype, mesh=mesh, **arguments)


def names(folder) -> set[str]:
    return {file.name for file in folder.iterdir()}


@for_each("dtype", ["float32", "bfloat16", "int8"], quick=["float32"])
def test_what_was_opened_is_saved_and_gives_the_same_embeddings(tmp_path, dtype):
    """Weights in the precision of their file, whatever the devices hold; settings of the object."""
    source = tmp_path / "source"
    source.mkdir()
    pair_of(write_qwen2_vl(source))
    (source / "README.md").write_text("# mine")
    (source / "self_check.json").write_text("{}")
    model = opened(source, dtype, max_length=80, processing=Processing(prompt="chat"))
    model.prompts |= {"query": "find: ", "document": ""}
    model.default_prompt_name, model.truncate_dim = "query", 8
    model.save_pretrained(tmp_path / "a")
    given, kept = (load_file(x / "model.safetensors") for x in (source, tmp_path / "a"))
    assert given.keys() == kept.keys()
    assert all(given[n].dtype == kept[n].dtype and (given[n] == kept[n]).all() for n in given)
    again = opened(tmp_path / "a", dtype)
    assert (again.prompts, again.default_prompt_name) == (model.prompts, "query")
    assert (again.truncate_dim, again.max_length) == (8, 80)
    np.testing.assert_array_equal(again.encode(ITEMS), model.encode(ITEMS))
    with pytest.raises(ValueError, match="exists; delete it, or save to another folder"):
        model.save_pretrained(tmp_path / "a")

    # The card of a folder is kept; of an export with another length it would not be true.
    assert (tmp_path / "a" / "README.md").read_text() == "# mine"
    if dtype != "float32":
        return
    for file in ("README.md", "self_check.json", "self_check_2.png"):
        (tmp_path / "a" / file).write_text("as it was")
    again.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "self_check_2.png").read_text() == "as it was"
    longer = opened(tmp_path / "a", max_length=95)
    longer.save_pretrained(tmp_path / "c")
    assert not [name for name in names(tmp_path / "c") if name.startswith("self_check")]
    assert "# c\n\nEmbeddings of length 1" in (tmp_path / "c" / "README.md").read_text()
    theirs = SentenceTransformer(str(tmp_path / "c"), device="cpu")
    for given in (TEXTS, CHATS):
        vectors = theirs.encode(given, prompt="") if given is CHATS else theirs.encode(given)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        assert np.sum(vectors * longer.encode(given), axis=1).min() >= 0.99999
    asked = longer.encode_query(TEXTS)  # with the prompt of the folder
    np.testing.assert_array_equal(asked, longer.encode(TEXTS, prompt="find: "))

    # What other libraries cannot be told has no place for prompts; nothing is left of a failure.
    resized = opened(source, processing=Processing(prompt="chat", image_size=(28, 28)))
    resized.save_pretrained(tmp_path / "d")
    assert not (tmp_path / "d" / "modules.json").exists()
    resized.prompts = {"query": "find: "}
    with pytest.raises(ValueError, match="has no files of sentence-transformers, where prompts"):
        resized.save_pretrained(tmp_path / "e")
    assert names(tmp_path) == {"source", "a", "b", "c", "d"}

    # transformers reads the same weights.
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "c")
    reference = transformers.AutoModelForImageTextToText.from_pretrained(source)
    assert all(map(np.array_equal, *(x.state_dict().values() for x in (loaded, reference))))


def test_an_encoder_and_an_adapter_are_saved_and_pushed(tmp_path, monkeypatch):
    base = write_bert(tmp_path / "base")
    half = {
        n: x.astype(ml_dtypes.bfloat16) for n, x in load_file(base / "model.safetensors").items()
    }
    save_file(half, base / "model.safetensors", metadata={"format": "pt"})
    adapter = write_adapter(
        base, tmp_path / "adapter", transformers.AutoModel, target_modules=["query"]
    )
    for file in base.iterdir():  # sentence-transformers' own, which an adapter has beside it
        if file.is_file() and "sentence" in file.name or file.name == "modules.json":
            shutil.copyfile(file, adapter / file.name)
    shutil.copytree(base / "1_Pooling", adapter / "1_Pooling", dirs_exist_ok=True)
    model = opened(adapter, max_length=9)
    model.prompts = {"query": "find: "}
    calls = {}

    def upload(self, *, folder_path, **arguments):
        calls["upload"] = arguments | {"token": self.token}
        shutil.copytree(folder_path, tmp_path / "hub")
        return types.SimpleNamespace(commit_url="https://huggingface.co/me/mine/commit/1")

    api = saved_model.HfApi
    monkeypatch.setattr(api, "create_repo", lambda self, *a, **k: calls.update(repo=(a, k)))
    monkeypatch.setattr(api, "create_branch", lambda self, *a, **k: calls.update(branch=(a, k)))
    monkeypatch.setattr(api, "upload_folder", upload)
    url = model.push_to_hub("me/mine", token="secret", private=True, revision="dev")
    assert url == "https://huggingface.co/me/mine/commit/1"
    assert calls == {
        "repo": (("me/mine",), {"private": True, "exist_ok": True}),
        "branch": (("me/mine",), {"branch": "dev", "exist_ok": True}),
        "upload": {
            "repo_id": "me/mine",
            "revision": "dev",
            "commit_message": "Add model by unime_jax",
            "delete_patterns": ["*.safetensors", "*.safetensors.index.json"],
            "token": "secret",
        },
    }
    kept = load_file(tmp_path / "hub" / "model.safetensors")
    merged = {name for name, x in kept.items() if x.dtype == np.float32}
    assert merged and all("query.weight" in name for name in merged)  # others as in the file
    hub = tmp_path / "models--me--mine" / "snapshots" / ("1" * 40)
    shutil.copytree(tmp_path / "hub", hub)
    asked = []

    def download(hub_id, *, revision, token, allow_patterns):
        asked.append((hub_id, revision, token))
        return str(hub)

    monkeypatch.setattr(model_folders, "snapshot_download", download)
    model_folders.download.cache_clear()
    again = opened("me/mine", revision="dev", token="secret")
    whole = Embedder.from_pretrained("me/mine", token="secret")
    model_folders.download.cache_clear()
    assert asked == [("me/mine", "dev", "secret"), ("me/mine", None, "secret")]
    assert "secret" not in str(whole.__reduce__())
    assert again.max_length == 9
    arguments = {"prompt_name": "query"}
    np.testing.assert_allclose(
        again.encode(TEXTS, **arguments), model.encode(TEXTS, **arguments), atol=1e-6
    )
    whole_numbers = {"dtype": torch.float32}
    theirs = SentenceTransformer(str(hub), device="cpu", model_kwargs=whole_numbers)
    theirs = theirs.encode(TEXTS, **arguments)
    np.testing.assert_allclose(again.encode(TEXTS, **arguments), theirs, atol=1e-5)
    again.save_pretrained(tmp_path / "again")
    card = (tmp_path / "again" / "README.md").read_text()
    assert card == (hub / "README.md").read_text() and "SentenceTransformer(" in card
    assert "saved from `adapter` by unime_jax" in card and str(tmp_path) not in card

    # What the hub says is told, and nothing is left behind.
    def refuse(self, *args, **kwargs):
        raise OSError("403 Forbidden")

    monkeypatch.setattr(api, "create_repo", refuse)
    monkeypatch.setattr(saved_model.tempfile, "tempdir", str(tmp_path / "hub"))
    before = names(tmp_path / "hub")
    with pytest.raises(ValueError, match="'me/mine' cannot be uploaded to .*: 403 Forbidden"):
        again.push_to_hub("me/mine")
    assert names(tmp_path / "hub") == before
