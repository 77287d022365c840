"""Reading configs: every experiment is valid, and mistakes are named where they are."""

import copy
import dataclasses
import pathlib
import re
import runpy
from collections.abc import Mapping, Sequence
from typing import Literal

import pytest

from unime_jax import config, config_reader

EXPERIMENTS = sorted((pathlib.Path(__file__).parents[1] / "experiments").glob("*.py"))
DATACLASSES = {
    "train": config.TrainConfig,
    "embed": config.EmbedConfig,
    "evaluate": config.EvaluateConfig,
    "plan": config.PlansConfig,
}


def variants():
    """(file, variant) of every experiment; a file names its variants in its first lines."""
    for file in EXPERIMENTS:
        text = file.read_text()
        named = re.findall(rf"--config=experiments/{file.name}:(\w+)", text)
        yield file, None
        yield from ((file, name) for name in named)


def get_config(file, variant):
    get = runpy.run_path(str(file))["get_config"]
    return (get(variant) if variant else get()).to_dict()


@pytest.mark.parametrize(
    ("file", "variant"), variants(), ids=lambda x: x.stem if isinstance(x, pathlib.Path) else x
)
def test_every_experiment_is_read(file, variant):
    values = get_config(file, variant)
    settings = config_reader.read(DATACLASSES[values["job"]], values)
    assert settings.job == values["job"]
    if isinstance(settings, config.TrainConfig):
        hash(settings.trainable), hash(settings.data.buckets)  # rules and buckets are values


@pytest.fixture(scope="module")
def values():
    (file,) = [file for file in EXPERIMENTS if file.stem == "stage2"]
    return get_config(file, "mini")


def changed(values, path, value):
    """A copy of `values` with the entry at a dotted path set, or deleted for Ellipsis."""
    values = copy.deepcopy(values)
    *groups, key = path.split(".")
    inner = values
    for group in groups:
        inner = inner[group]
    if value is ...:
        del inner[key]
    else:
        inner[key] = value
    return values


def read(values, path, value):
    return config_reader.read(config.TrainConfig, changed(values, path, value))


def test_values_arrive(values):
    settings = config_reader.read(config.TrainConfig, values)
    assert settings.optimizer.learning_rate == values["optimizer"]["learning_rate"]
    assert settings.loss.hard_negatives == 8
    assert settings.wandb_project is None
    assert settings.trainable == ((".*", True),)
    assert settings.data.buckets == tuple(values["data"]["buckets"])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimizer.learning_rat", 1.0, "unknown key config.optimizer.learning_rat; did you mean "
         "config.optimizer.learning_rate?"),
        ("batchsize", 1, "did you mean config.batch_size"),
        ("mesh.zzz", 1, "unknown key config.mesh.zzz; known: data, fsdp, tensor"),
        ("optimizer.beta1", ..., "missing key config.optimizer.beta1 (float)"),
        ("optimizer", ..., "missing key config.optimizer (OptimizerConfig)"),
        ("steps", 10.0, "config.steps must be of type int, not 10.0"),
        ("steps", "10", "config.steps must be of type int, not '10'"),
        ("steps", True, "config.steps must be of type int, not True"),
        ("loss.symmetric", 1, "config.loss.symmetric must be of type bool, not 1"),
        ("loss.temperature", None, "config.loss.temperature must be of type float, not None"),
        ("loss.temperature", False, "config.loss.temperature must be of type float, not False"),
        ("loss.hard_negatives", 8.0, "config.loss.hard_negatives must be of type int, not 8.0"),
        ("backbone", None, "config.backbone must be of type str, not None"),
        ("init", "fresh", "config.init is 'fresh'; use one of 'pretrained', 'random'"),
        ("loss", 3, "config.loss must be a group of keys, not 3"),
        ("trainable", ".*", "config.trainable must be a sequence, not '.*'"),
        ("trainable", (".*", True), "config.trainable[0] must be a sequence, not '.*'"),
        ("trainable", ((".*", 1),), "config.trainable[0][1] must be of type bool, not 1"),
        ("data.buckets", ((48, 0),), "config.data.buckets[0] must be (int, int, float), not (48,"),
        ("data.buckets", ((48, 0.5, 1),), "config.data.buckets[0][1] must be of type int"),
        ("data.weights", (1, 2), "config.data.weights must be a group of keys"),
        ("data.weights", {"hatespeech": "1"}, "config.data.weights.hatespeech must be of type"),
    ],
)  # fmt: skip
def test_mistakes_are_named(values, path, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(values, path, value)


def test_all_unknown_and_missing_keys_of_a_group_come_at_once(values):
    broken = changed(changed(values, "steps", ...), "stps", 3)
    with pytest.raises(ValueError) as error:
        config_reader.read(config.TrainConfig, broken)
    assert "unknown key config.stps; did you mean config.steps?" in str(error.value)
    assert "missing key config.steps" in str(error.value)


def test_optional_keys_take_none_and_numbers_widen(values):
    assert read(values, "loss.hard_negatives", None).loss.hard_negatives is None
    assert read(values, "loss.hardness", 9).loss.hardness == 9.0
    assert isinstance(read(values, "loss.hardness", 9).loss.hardness, float)
    assert isinstance(
        read(values, "loss.false_negative_margin", 1).loss.false_negative_margin, float
    )
    assert read(values, "wandb_project", "x").wandb_project == "x"


def test_lists_become_tuples():
    """A config that was written as JSON has lists."""

    @dataclasses.dataclass(frozen=True)
    class Example:
        rules: Sequence[tuple[str, bool]]
        sizes: tuple[tuple[int, int], ...]
        weights: Mapping[str, float]
        kind: Literal["a"]

    given = {"rules": [[".*", True]], "sizes": [[1, 2], [3, 4]], "weights": {"x": 1}, "kind": "a"}
    expected = Example(((".*", True),), ((1, 2), (3, 4)), {"x": 1.0}, "a")
    assert config_reader.read(Example, given) == expected
    assert config_reader.read(Example, given | {"sizes": []}).sizes == ()


def test_values_are_checked_by_the_dataclasses_themselves(values):
    with pytest.raises(ValueError, match="optimizer.final_learning_rate"):
        read(values, "optimizer.final_learning_rate", 1.0)
