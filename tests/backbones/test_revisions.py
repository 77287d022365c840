"""Revisions of hub repositories, what is recorded of them, and that no remote code is run."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import transformers

from tests.backbones.test_peft_targets import write_adapter
from tests.backbones.tiny_texts import write_bert
from unime_jax import Embedder, backbones, paths
from unime_jax.backbones.io import adapters, merging, model_folders
from unime_jax.backbones.preprocessing import processing
from unime_jax.export import folder as hf_folder
from unime_jax.models import lora

FLOAT32 = np.dtype(np.float32)
MAIN, OTHER, TUNED = ("1" * 40, "2" * 40, "3" * 40)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Two commits of a base and one of an adapter, as they lie in the cache after downloads."""
    snapshots = {
        ("org/base", None): tmp_path / "models--org--base" / "snapshots" / MAIN,
        ("org/base", "v2"): tmp_path / "models--org--base" / "snapshots" / OTHER,
        ("org/tuned", "v1"): tmp_path / "models--org--tuned" / "snapshots" / TUNED,
    }
    base = write_bert(snapshots["org/base", None])
    shutil.copytree(base, snapshots["org/base", "v2"])
    adapter = snapshots["org/tuned", "v1"]
    settings = dict(target_modules=["query"], revision="v2")
    write_adapter(base, adapter, transformers.AutoModel, **settings)
    file = adapter / merging.CONFIG
    config = json.loads(file.read_text()) | {"base_model_name_or_path": "org/base"}
    file.write_text(json.dumps(config))

    def snapshot_download(hub_id, *, revision, token, allow_patterns):
        if (hub_id, revision) not in snapshots:
            raise OSError(f"no {hub_id} at {revision}")
        return str(snapshots[hub_id, revision])

    monkeypatch.setattr(model_folders, "snapshot_download", snapshot_download)
    model_folders.download.cache_clear()
    yield snapshots
    model_folders.download.cache_clear()


def opened(name, revision=None):
    return backbones.open_backbone(str(name), max_length=64, revision=revision)


def exported(backbone, folder):
    graph, parameters = paths.split(jax.jit(backbone.make_model)(jax.random.key(0)))
    hf_folder.write(folder, backbone, graph, parameters, dtype=FLOAT32, prompts={})
    return json.loads((folder / processing.FILE).read_text())["commits"]


def test_the_revision_that_was_asked_for_must_be_there_is_opened_and_recorded(
    hub, tmp_path, monkeypatch
):
    for revision, commit in ((None, MAIN), ("v2", OTHER)):
        backbone = opened("org/base", revision)
        assert backbone.folder == hub["org/base", revision] and backbone.folder.name == commit
        assert backbone.commits == {"org/base": commit}
        folder = tmp_path / f"export-{commit}"
        assert exported(backbone, folder) == {"org/base": commit}
        # An export of the export knows, too, and is opened as before.
        again = opened(folder)
        assert again.processing == backbone.processing and again.commits == backbone.commits
        assert exported(again, tmp_path / f"again-{commit}") == {"org/base": commit}

    (tmp_path := tmp_path / "next").mkdir()
    # An adapter and its base have a revision each.
    backbone = opened("org/tuned", "v1")
    assert backbone.folder == hub["org/base", "v2"]
    assert backbone.commits == {"org/tuned": TUNED, "org/base": OTHER}
    assert exported(backbone, tmp_path / "export") == backbone.commits

    # Adapters name the commit of their base. As PEFT has it, which then opens that one.
    (tmp_path := tmp_path / "next").mkdir()
    backbone = opened("org/base", "v2")
    config = lora.LoraConfig(2, 4.0, False, ((r".*\.query", True), (".*", False)))

    def make():
        model = backbone.make_model(jax.random.key(0))
        lora.add(model, config, key=jax.random.key(1))
        return model

    _, shapes = paths.split(jax.eval_shape(make))
    parameters = {path: jax.device_put(np.ones(x.shape, x.dtype)) for path, x in shapes.items()}
    adapters.save(tmp_path / "adapter", backbone, parameters, config, dtype=FLOAT32)
    record = json.loads((tmp_path / "adapter" / merging.CONFIG).read_text())
    assert (record["base_model_name_or_path"], record["revision"]) == ("org/base", OTHER)
    assert (tmp_path / "adapter" / merging.WEIGHTS).exists()

    # A revision that is not there.
    with pytest.raises(ValueError, match="org/base.* at revision 'v9'"):
        opened("org/base", "v9")

    # A local folder has no revision.
    folder = hub["org/base", None]
    assert opened(folder).commits == {}
    message = "revision is 'v2', but .* is a folder here, of which there is one"
    with pytest.raises(ValueError, match=message):
        opened(folder, "v2")
    with pytest.raises(ValueError, match=message):
        Embedder.from_pretrained(folder, revision="v2")

    # The embedder hands the revision on
    asked = []
    find = model_folders.find
    monkeypatch.setattr(model_folders, "find", lambda *a, **k: asked.append(a) or find(*a, **k))
    Embedder.from_pretrained("org/base", revision="v2", dtype="float32")
    assert asked == [("org/base", "v2", None)]


def test_transformers_is_never_left_to_ask(tmp_path):
    # Transformers is never left to ask about code. Everything that it opens is opened with
    # trust_remote_code=False.
    with pytest.MonkeyPatch.context() as monkeypatch:
        asked = {}

        def spy(owner, name):
            opening = getattr(owner, name).__func__

            def spied(cls, *arguments, **settings):
                asked.setdefault(owner.__name__, []).append(settings.get("trust_remote_code"))
                return opening(cls, *arguments, **settings)

            monkeypatch.setattr(owner, name, classmethod(spied))

        spy(transformers.AutoConfig, "from_pretrained")
        spy(transformers.AutoTokenizer, "from_pretrained")
        folder = write_bert(tmp_path / "bert")
        file = folder / "config.json"
        code = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
        file.write_text(json.dumps(json.loads(file.read_text()) | code))
        (folder / "evil.py").write_text("raise SystemExit('code was run')\n")
        opened(folder)
        assert asked["AutoConfig"][0] is False and asked["AutoTokenizer"][0] is False

    # Transformers is asked for nothing elsewhere. Whatever is opened with it in this package says
    # so in the same line.
    package = pathlib.Path(backbones.__file__).parents[1]
    for file in package.rglob("*.py"):
        for line in file.read_text().splitlines():
            if ".from_pretrained(" in line and "Embedder" not in line and '"' not in line:
                assert "trust_remote_code=False" in line, (file, line)
