"""Opening a folder: which families there are, and which configurations they do not do."""

import json

import pytest

from tests.backbones.tiny_folders import write_folder
from tests.tables import for_each
from unime_jax import Embedder, backbones
from unime_jax.backbones.io import model_folders


@for_each("model_type", ["t5", None])
def test_an_unsupported_family(tmp_path, model_type):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": model_type} if model_type else {})
    )
    with pytest.raises(ValueError) as error:
        backbones.open_backbone(str(tmp_path), max_length=64)
    text = str(error.value)
    assert (
        f'model_type "{model_type}" is not supported; supported: bert, clip, llava_next, ' in text
    )


def test_a_folder_that_is_no_models_is_named(tmp_path):
    # A folder without config.
    with pytest.raises(ValueError, match="has no config.json"):
        backbones.open_backbone(str(tmp_path), max_length=64)
    with pytest.raises(ValueError, match="is not a local folder"):
        backbones.open_backbone(str(tmp_path / "absent"), max_length=64)

    # A work directory points to its model. It has a config.json, which is no model's.
    (tmp_path := tmp_path / "next").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"job": "train"}))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"no exported model yet.*--config.job=export; then open"):
        Embedder.from_pretrained(tmp_path)
    write_folder(tmp_path / "hf")
    with pytest.raises(ValueError, match=f"is in {tmp_path}/hf: open that"):
        Embedder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^(?!.*config.backbone).*is not a local folder"):
        Embedder.from_pretrained("/tmp/nope")


@for_each("name", ["/tmp/no/such", "a/b/c", "not a name", "./x"])
def test_what_cannot_be_a_hub_id_is_not_looked_for_there(monkeypatch, name):
    monkeypatch.setattr(model_folders, "snapshot_download", None)
    with pytest.raises(ValueError, match=f'^"{name}" is not a local folder: there is none of this'):
        backbones.open_backbone(name, max_length=64)


@for_each(
    ("group", "changes", "message"),
    [
        ("text_config", {"use_sliding_window": True, "sliding_window": 100}, "sliding_window is "),
        ("text_config", {"hidden_act": "relu"}, "text_config.hidden_act is 'relu'; this family"),
        (
            "text_config",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "text_config.rope_parameters.rope_type is 'linear'; this family",
        ),
        ("vision_config", {"hidden_act": "relu"}, "vision_config.hidden_act is 'relu'; this fam"),
        ("vision_config", {"is_causal": True}, "vision_config.is_causal is True; this family"),
        (None, {"vision_feature_layer": -2}, "vision_feature_layer is -2; it must be one layer"),
    ],
)
def test_a_configuration_that_the_code_does_not_do(tmp_path, group, changes, message):
    folder = write_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (config[group] if group else config).update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config.json: .*{message}"):
        backbones.open_backbone(str(folder), max_length=256)
