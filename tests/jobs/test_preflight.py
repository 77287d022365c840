"""What is cheap to see is seen first, and all of it is said at once."""

import copy
import shutil

import pytest

from experiments import embed as embed_recipe
from tests.jobs import tiny_run
from unime_jax import main
from unime_jax.jobs import embed, export, train
from unime_jax.training import inputs, resume


@pytest.fixture
def nothing_is_built(monkeypatch):
    """Preparing data would be an error."""

    def prepare(*_):
        raise AssertionError("data is prepared")

    monkeypatch.setattr(inputs, "prepare", prepare)


def test_everything_wrong_with_a_run_comes_in_one_message(config, tmp_path, nothing_is_built):
    config = tiny_run.with_evaluation(config)
    config.data.folder = str(tmp_path / "absent")
    config.batch_size, config.chunk_size = 20, 12
    config.loss.hard_negatives = 20
    config.wandb_project = "no_such_package"
    config.trainable = (("(", True),)
    config.backbone = "/nowhere"
    config.optimizer.schedule_steps = 3
    config.data.eval = "own"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError) as error:
        train.run(config, tmp_path / "file" / "run")
    assert main.says_it_all(error.value)
    text = str(error.value)
    for expected in (
        "config.batch_size=20 must be a multiple of 8",
        "config.chunk_size=12 must be a multiple of 8",
        "config.loss.hard_negatives=20 must be below",
        "cannot be written: Not a directory",
        "optimizer.schedule_steps=3 ends the schedule before steps=6",
        "config.trainable: '(' is no regular expression",
        "config.wandb_project='no_such_package', but the package wandb is not installed",
        'config.backbone: "/nowhere" is not a local folder',
        f"config.data.train: no data in {tmp_path}/absent/mini_mmeb/train",
        f"config.evaluation.mmeb: no data in {tmp_path}/absent/mini_mmeb/eval",
        f"config.evaluation.composition: no data in {tmp_path}/absent",
        f"config.data.eval: no data in {tmp_path}/absent/own",
        f"config.evaluation.images: there is no folder {tmp_path}/absent/mini_mmeb/images",
    ):
        assert expected in text, expected
    assert text.startswith("11 things are wrong, and nothing has been read or built yet:\n- ")


CANNOT_BE = [
    ({"backbone": "/nowhere"}, 'config.backbone: "/nowhere" is not a local folder'),
    ({"backbone": "some/model"}, 'config.backbone: "some/model" is not a local .*hub: '),
    ({"init_from": "/nowhere"}, "config.init_from=/nowhere: there is no exported model"),
    ({"data.prepare.module": "data_pipelines.nil"}, "prepare.module='data_pipelines.nil': the"),
    ({"data.prepare.module": "no.such"}, "prepare.module='no.such': there is no such module"),
    ({"evaluation.mmeb": "/elsewhere"}, "config.evaluation.mmeb: no data in /else"),
    ({"optimizer.warmup_steps": 9}, "optimizer.warmup_steps=9 .* steps=6"),
]


def test_nothing_is_built_for_a_run_that_cannot_be(config, tmp_path, nothing_is_built):
    """Also with data that the run would prepare: what it makes itself is not missed."""
    config.data.folder = str(tmp_path / "data")  # and the backbone with it
    config.backbone = f"{tmp_path}/data/mini_mmeb/backbone"
    config.data.prepare.module, config.init = "data_pipelines.mini_mmeb", "random"
    for changes, message in CANNOT_BE:
        wrong = copy.deepcopy(config)
        wrong.update_from_flattened_dict(changes)
        with pytest.raises(ValueError, match=message) as error:
            train.run(wrong, tmp_path / "run")
        assert "things are wrong" not in str(error.value), changes


def test_a_folder_without_weights_is_seen_before_the_data(config, tmp_path, nothing_is_built):
    bare = shutil.ignore_patterns("*.safetensors")
    config.backbone = str(shutil.copytree(config.backbone, tmp_path / "model", ignore=bare))
    with pytest.raises(ValueError, match="config.backbone: .* holds no model.safetensors"):
        train.run(config, tmp_path / "run")


def test_an_export_is_checked(config, tmp_path):
    config.job = "export"
    config.backbone, config.data.train = "/nowhere", "mini_mmeb/trian"
    config.batch_size = 20
    with pytest.raises(ValueError, match="(?s)^3 things.*_size=20.*config.backb.*config.data.tr"):
        export.run(config, tmp_path)

    # An embedding job is checked
    config = embed_recipe.get_config()
    config.backbone = str(tmp_path / "nowhere")
    config.data.folder, config.data.texts = str(tmp_path), ("texts.txt",)
    config.mesh.tensor = 3
    expected = "(?s)^4 things.*mesh.tensor=3.*config.backbone: .*nowhere.*datasets: .*texts.txt is"
    with pytest.raises(ValueError, match=expected):
        embed.run(config, tmp_path / "run")


def test_only_training_minds_a_work_directory_that_is_a_pattern(config, tmp_path, nothing_is_built):
    """Checkpoints could not be read again there; embeddings and exports hold none."""
    with pytest.raises(ValueError, match=r"'\[' in a path is a pattern for Orbax"):
        train.run(config, tmp_path / "lr[1e-4]")
    resume.open_workdir(tmp_path / "embeddings[1]")
