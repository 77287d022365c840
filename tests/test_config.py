"""Reading configs: every experiment is valid, and mistakes are named where they are."""

import copy
import dataclasses
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import pytest

from tests.tables import for_each
from unime_jax import config, config_reader
from unime_jax.data.settings import Bucket
from unime_jax.operations import recipes

VARIANTS = [
    (name, variant) for name, (_, variants) in recipes.described().items() for variant in variants
]


def get_config(name, variant):
    """As a file that is run, which may be anywhere."""
    get = runpy.run_path(str(recipes.FOLDER / f"{name}.py"))["get_config"]
    return (get(variant) if variant else get()).to_dict()


@for_each(("name", "variant"), VARIANTS)
def test_every_experiment_is_read(name, variant):
    values = get_config(name, variant)
    settings = config_reader.read(config.kind_of(values), values)
    assert settings.job == values["job"]
    if isinstance(settings, config.TrainConfig):
        hash(settings.trainable), hash(settings.data.buckets)  # rules and buckets are values


def test_configs_need_no_jax():
    """So that --help and recipes are quick, and settings are plain data."""
    script = (
        "import sys, unime_jax.config, unime_jax.config_reader\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'grain', 'transformers', 'numpy'}\n"
        "print(*sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@pytest.fixture(scope="module")
def values():
    return get_config("stage2", "mini")


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


def test_values_arrive_as_the_dataclasses_have_them(values):
    # Values arrive.
    settings = config_reader.read(config.TrainConfig, values)
    assert settings.optimizer.learning_rate == values["optimizer"]["learning_rate"]
    assert settings.loss.hard_negatives == 8
    assert settings.wandb_project is None
    assert settings.trainable == ((".*", True),)
    assert settings.data.buckets == tuple(values["data"]["buckets"])

    # Optional keys take none and numbers widen.
    assert read(values, "loss.hard_negatives", None).loss.hard_negatives is None
    assert read(values, "loss.hardness", 9).loss.hardness == 9.0
    assert isinstance(read(values, "loss.hardness", 9).loss.hardness, float)
    assert isinstance(
        read(values, "loss.false_negative_margin", 1).loss.false_negative_margin, float
    )
    assert read(values, "wandb_project", "x").wandb_project == "x"

    # Lists become tuples. A config that was written as JSON has lists.

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

    # Values are checked by the dataclasses themselves.
    with pytest.raises(ValueError, match="optimizer.final_learning_rate"):
        read(values, "optimizer.final_learning_rate", 1.0)


@for_each(
    ("path", "value", "message"),
    [
        ("optimizer.learning_rat", 1.0, "unknown key config.optimizer.learning_rat; did you mean "
         "config.optimizer.learning_rate?"),
        ("data.homogeneous", 4, "did you mean config.data.source_run?"),
        ("data.size_temperature", 0.0, "config.data.size_temperature=0.0 must be above 0; None"),
        ("data.cluster_size", 1, "config.data.cluster_size=1: rows of a cluster are each other's"),
        ("data.cluster_size", 4, "cluster_size=4, but config.data.mined is empty"),
        ("data.cluster_ranks", (9, 4), "config.data.cluster_ranks=(9, 4): the first rank is 1"),
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
        ("data.buckets", ((48, 0),), "config.data.buckets[0] must be Bucket(tokens=int, tiles=int, "
         "share=float, rows=int, texts=int), not (48, 0); write Bucket(tokens=48, tiles=0)"),
        ("data.buckets", (Bucket(tokens=9, tiles=0), (4, 1, 0.5)),
         "config.data.buckets[1] must be Bucket(tokens=int, tiles=int, share=float, rows=int, "
         "texts=int), not (4, 1, 0.5); write Bucket(tokens=4, tiles=1, share=0.5)"),
        ("data.buckets", (Bucket(tokens=48, tiles=0.5),), "config.data.buckets[0].tiles must be of "
         "type int, not 0.5"),
        ("data.buckets", ({"tokens": 4, "tiles": 1, "shar": 1.0},), "unknown key "
         "config.data.buckets[0].shar; did you mean config.data.buckets[0].share?"),
        ("data.buckets", Bucket(tokens=48, tiles=0), "config.data.buckets must be a sequence of "
         "Bucket(tokens=int, tiles=int, share=float, rows=int, texts=int), not Bucket("),
        ("data.weights", (1, 2), "config.data.weights must be a group of keys"),
        ("data.weights", {"hatespeech": "1"}, "config.data.weights.hatespeech must be of type"),
    ],
)  # fmt: skip
def test_mistakes_are_named(values, path, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(values, path, value)


def test_a_plan_and_buckets_are_the_same_however_they_come(values):
    # Buckets are the same from a recipe and from JSON. <workdir>/config.json has them as objects.
    written = json.dumps(values, default=dataclasses.asdict)
    settings = config_reader.read(config.TrainConfig, json.loads(written))
    assert settings == config_reader.read(config.TrainConfig, values)
    assert settings.data.buckets[0] == Bucket(tokens=20, tiles=0, share=1.0)

    # A plan reads the run by its job.
    for recipe, kind in (("stage2", config.TrainConfig), ("embed", config.EmbedConfig)):
        values = recipes.load(f"plan:{recipe}").to_dict()
        assert type(config_reader.read(config.PlanConfig, values).run) is kind
    values["run"]["job"] = "plan"
    with pytest.raises(ValueError, match="run.job is 'plan'; use one of train, export, embed"):
        config_reader.read(config.PlanConfig, values)


def test_all_unknown_and_missing_keys_of_a_group_come_at_once(values):
    broken = changed(changed(values, "steps", ...), "stps", 3)
    with pytest.raises(ValueError) as error:
        config_reader.read(config.TrainConfig, broken)
    assert "unknown key config.stps; did you mean config.steps?" in str(error.value)
    assert "missing key config.steps" in str(error.value)
