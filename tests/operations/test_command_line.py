"""--config.<key>=<value>: by the types of the config, at every level, mistakes named together."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

import pytest
from ml_collections import ConfigDict

from tests.tables import for_each
from unime_jax import config, config_reader
from unime_jax.data.settings import Bucket
from unime_jax.operations import command_line, recipes


def given(*arguments: str, recipe: str = "stage2") -> ConfigDict:
    values = recipes.load(recipe)
    overrides, others = command_line.split(arguments)
    assert not others
    command_line.apply(values, overrides)
    return values


def optional_keys(cls, prefix=""):
    """Dotted keys that take None, with the dataclass whose keys they are."""
    return [key for key, hint in command_line.keys(cls) if config_reader.is_optional(hint)]


@for_each("recipe", ["stage1", "stage2", "llave"])
def test_every_optional_key_takes_none_and_a_value(recipe):
    hints, tried = dict(command_line.keys(config.TrainConfig)), 0
    for key in optional_keys(config.TrainConfig):
        group, _, name = key.rpartition(".")
        values = recipes.load(recipe)
        if name == "size_temperature":  # in the place of which a recipe may have weights
            values.data.weights = ConfigDict()
        at: Any = values
        for inner in filter(None, group.split(".")):
            at = at.get(inner, {})
        if name not in at:  # of another loss
            continue
        (kind,) = [kind for kind in typing.get_args(hints[key]) if kind is not type(None)]
        if typing.get_origin(kind) is typing.Literal:
            text = expected = typing.get_args(kind)[0]
        else:
            text, expected = {
                bool: ("True", True),
                int: ("4", 4),
                float: ("0.5", 0.5),
                str: ("x", "x"),
                Sequence[int]: ("()", ()),  # of which there are none, or as many as buckets
                Sequence[tuple[str, bool]]: ("((r'a\\.b', True),)", ((r"a\.b", True),)),
            }.get(kind, ("(336, 672)", (336, 672)))
        for value, wanted in (("None", None), (text, expected), ("None", None)):
            command_line.apply(values, [(key, value)])
            assert at[name] == wanted, key
            config_reader.read(config.TrainConfig, values.to_dict())
        tried += 1
    assert tried >= 5


def test_values_have_the_type_of_their_key_and_groups_take_none():
    values = given(
        "--config.loss.hardness=9",
        "--config.optimizer.clip_norm=inf",
        "--config.export.adapter",
        "--noconfig.export.verify",
        "--config.execution.recompute=FALSE",
        "--config.mesh.data", "-1",
        "--config.backbone=None",
        "--config.data.suffix=",
        "--config.data.weights.digits=2",
        "--config.data.columns.query=ask",
        "--config.export.prompts={'query': 'Find '}",
        '--config.trainable=((r"vision_tower\\..*", False), (".*", True))',
        "--config.data.buckets=[Bucket(tokens=40, tiles=0), Bucket(tokens=56, tiles=3, share=0.5)]",
    )  # fmt: skip
    assert (values.loss.hardness, type(values.loss.hardness)) == (9.0, float)
    assert values.optimizer.clip_norm == float("inf") and values.mesh.data == -1
    assert values.export.adapter is True and values.export.verify is False
    assert values.execution.recompute is False
    assert values.backbone == "None" and values.data.suffix == ""  # which are texts
    assert values.data.weights.to_dict() == {"digits": 2.0}
    assert values.data.columns.to_dict() == {"query": "ask"}
    assert values.export.prompts.to_dict() == {"query": "Find "}
    assert values.trainable == ((r"vision_tower\..*", False), (".*", True))
    assert values.data.buckets == (
        Bucket(tokens=40, tiles=0),
        Bucket(tokens=56, tiles=3, share=0.5),
    )
    config_reader.read(config.TrainConfig, values.to_dict())

    # Elements of a tuple may come one by one
    plan = "plan:stage2"
    values = given("--config.topologies=v5e:4x4", "--config.topologies", "v6e:4x4", recipe=plan)
    assert values.topologies == ("v5e:4x4", "v6e:4x4")
    assert given("--config.topologies=v5e:2x4", recipe=plan).topologies == ("v5e:2x4",)
    assert given("--config.rows=0.5", recipe=plan).rows == (0.5,)

    # What refers to a key follows it
    values = given("--config.data.folder=/elsewhere")
    assert values.backbone == "/elsewhere/mini_mmeb/backbone"
    assert given("--config.data.folder=/x", "--config.backbone=/y").backbone == "/y"

    # An optional group takes None, and its keys.
    assert given(recipe="embed").processing is None
    values = given("--config.processing.prompt=raw", "--config.processing.crops=4", recipe="embed")
    settings = config_reader.read(config.EmbedConfig, values.to_dict())
    assert settings.processing and settings.processing.prompt == "raw"
    assert settings.processing.crops == 4 and settings.processing.pinpoints == ()
    values = given("--config.processing.prompt=raw", "--config.processing=None", recipe="embed")
    assert values.processing is None
    with pytest.raises(ValueError, match="config.lora must be a group of keys, not None"):
        given("--config.lora=None")


@for_each(
    ("argument", "message"),
    [
        ("optimizer.learning_rte=1", 'did you mean --config.optimizer.learning_rate, "learning_ra'),
        ("lss.hardness=1", 'did you mean --config.loss.hardness, "loss" instead of "lss"?'),
        ("lss.hardnes=1", 'did you mean --config.loss, "loss" instead of "lss"?'),
        ("batchsize=1", "did you mean --config.batch_size,"),
        ("hardness=1", "did you mean --config.loss.hardness?"),
        ("data.homogeneous=4", "did you mean --config.data.source_run,"),
        ("loss.tile=4", "did you mean --config.loss.column_block,"),
        ("processing.orphans=token", "did you mean --config.processing.missing_images,"),
        ("tile=4", "did you mean --config.loss.column_block?"),
        ("data.learning_rate=1", "did you mean --config.optimizer.learning_rate?"),
        ("data.prepare.sed=1", "did you mean --config.data.prepare.seed,"),
        ("data.foo=1", "--config.data.foo: there is no such key; config.data has folder, prepare,"),
        ("zzz.qqq=1", "--config.zzz.qqq: there is no such key; config has job, seed, steps,"),
        ("steps.x=1", "--config.steps.x: config.steps is no group of keys, but a value"),
        ("steps=many", "config.steps must be of type int, not 'many'"),
        ("steps=1.5", "config.steps must be of type int, not '1.5'"),
        ("steps=None", "config.steps must be of type int, not 'None'"),
        ("loss.column_block=x", "config.loss.column_block must be of type int, not 'x' (or None)"),
        ("loss.symmetric=maybe", "config.loss.symmetric must be of type bool, not 'maybe'"),
        ("loss.texts=all", "--config.loss.texts: there is no such key;"),
        ("execution.dtype=float16", "config.execution.dtype is 'float16'; use one of 'floa"),
        ("processing.image_size=(3,)", "config.processing.image_size must be (int, int), not (3,)"),
        ("trainable=.*", "config.trainable must be a sequence, not '.*'"),
        ("data.weights.digits=x", "config.data.weights.digits must be of type float, not 'x'"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_what_is_nearest(argument, message):
    with pytest.raises(ValueError) as error:
        given(f"--config.{argument}")
    assert message in str(error.value)


def test_all_mistakes_come_at_once_and_other_arguments_are_left_alone():
    with pytest.raises(ValueError) as error:
        given("--config.stps=1", "--config.seed=x", "--config.lora.rnk=3")
    assert [line.split(":")[0].split(" ")[0] for line in str(error.value).splitlines()] == [
        "--config.stps", "config.seed", "--config.lora.rnk",
    ]  # fmt: skip

    # Keys of runs in a plan
    values = given("--config.recipes.llave_7b.run.loss.hard_negatives=4", recipe="plan")
    assert values.recipes.llave_7b.run.loss.hard_negatives == 4
    with pytest.raises(ValueError, match='"llave_7b" instead of "llave_7"'):
        given("--config.recipes.llave_7.run.steps=1", recipe="plan")
    with pytest.raises(ValueError, match='"loss" instead of "lss"'):
        given("--config.recipes.llave_7b.run.lss.tile=1", recipe="plan")
    values = given("--config.run.data.folder=/x", "--config.rows=1", recipe="plan:stage2")
    assert values.run.backbone == "/x/mini_mmeb/backbone" and values.rows == (1.0,)
    with pytest.raises(ValueError, match="did you mean --config.run.optimizer.learning_rate,"):
        given("--config.run.optimizer.learning_rat=1", recipe="plan:stage2")
    with pytest.raises(ValueError, match="did you mean --config.run.batch_size"):
        given("--config.batch_size=1", recipe="plan:stage2")

    # Other arguments are left alone.
    overrides, others = command_line.split(
        ["--config=stage2", "--workdir=/x", "--config.steps=3", "--", "--config.steps=4"]
    )
    assert overrides == [("steps", "3")]
    assert others == ["--config=stage2", "--workdir=/x", "--", "--config.steps=4"]

    # Keys are those of the dataclasses
    found = dict(command_line.keys(config.TrainConfig))
    assert "loss.hardness" in found and "loss.texts" in found and "data.prepare.seed" in found
    assert not any(dataclasses.is_dataclass(hint) for hint in found.values())


@for_each(
    ("arguments", "command"),
    [
        (["job=plan"], "--config=plan:stage2:qwen2_vl_7b"),
        (["plan.suggest=False"], "--config=plan:stage2:qwen2_vl_7b --config.suggest=False"),
        (
            ["batch_size=8", "job=plan", 'plan.topologies=("v5e:4x4",)'],
            "--config=plan:stage2:qwen2_vl_7b --config.run.batch_size=8"
            """ '--config.topologies=("v5e:4x4",)'""",
        ),
    ],
)
def test_who_plans_a_recipe_by_its_job_is_told_the_command(arguments, command):
    overrides, _ = command_line.split([f"--config.{argument}" for argument in arguments])
    with pytest.raises(ValueError) as error:
        command_line.refuse_plan("stage2:qwen2_vl_7b", overrides)
    assert str(error.value).endswith(f"Instead: {command}")
    command_line.refuse_plan("stage2", [("job", "export"), ("steps", "0")])


# Buckets

SMALL, LARGE = Bucket(tokens=40, tiles=0), Bucket(tokens=56, tiles=3, share=0.5)


@for_each(
    "texts",
    [
        [f"({SMALL}, {LARGE})"],
        ["Bucket(tokens=40, tiles=0), Bucket(tokens=56, tiles=3, share=0.5)"],
        ["[Bucket(40, 0), Bucket(56, 3, share=0.5)]"],
        ["Bucket(tokens=40, tiles=0)", "Bucket(tokens=56, tiles=3, share=0.5)"],
        ["[{'tokens': 40, 'tiles': 0, 'share': 1}, {'tokens': 56, 'tiles': 3, 'share': 0.5}]"],
    ],
)
def test_buckets_are_written_as_in_recipes_as_objects_or_one_by_one(texts):
    values = given(*(f"--config.data.buckets={text}" for text in texts))
    assert values.data.buckets == (SMALL, LARGE)


@for_each(
    ("text", "message"),
    [
        ("((40, 0, 1.0), (56, 3, 0.5))", "buckets[1] must be Bucket(tokens=int, tiles=int, share="
         "float, rows=int, texts=int), not (56, 3, 0.5); write Bucket(tokens=56, tiles=3, "
         "share=0.5)"),
        ("(Bucket(tokens=40),)", "missing key config.data.buckets[0].tiles (int)"),
        ("(Bucket(tokens=40, tile=0),)", "did you mean config.data.buckets[0].tiles?"),
        ("(Bucket(tokens=1.5, tiles=0),)", "buckets[0].tokens must be of type int, not 1.5"),
        ("(Buckets(tokens=40, tiles=0),)", "must be a sequence of Bucket(tokens=int, "),
        ("(Bucket(tokens=40, tiles=0)", "must be a sequence of Bucket(tokens=int, "),
        ("(Bucket(**{}),)", "must be a sequence of Bucket(tokens=int, "),
        ("Bucket(1, 2, 3, 4, 5, 6)", "must be a sequence of Bucket(tokens=int, "),
        ("(Bucket(open('x'), 2),)", "must be a sequence of Bucket(tokens=int, "),
        ("40", "must be a sequence of Bucket(tokens=int, tiles=int, share=float, "
         "rows=int, texts=int), not 40"),
    ],
)  # fmt: skip
def test_buckets_that_are_none_show_the_spelling(text, message):
    with pytest.raises(ValueError) as error:
        given(f"--config.data.buckets={text}")
    assert message in str(error.value)


# Short runs


def fitted(*arguments: str, recipe: str = "stage2"):
    before = recipes.load(recipe).to_dict()
    overrides, _ = command_line.split(arguments)
    values = given(*arguments, recipe=recipe)
    said = command_line.fit_short_run(values, before, {key for key, _ in overrides})
    return values, "\n".join(said)


def test_a_short_run_has_the_recipes_share_of_warmup_and_others_what_was_asked_for():
    values, said = fitted("--config.steps=61")
    assert values.optimizer.warmup_steps == 15 and said == ""
    values, said = fitted("--config.steps=12", "--config.optimizer.warmup_steps=20")
    assert values.optimizer.warmup_steps == 20 and "warmup" not in said
    values, said = fitted("--config.epochs=3", recipe="own")
    assert (values.steps, values.epochs) == (0, 3) and "steps: 300 -> 0" in said
    values, said = fitted("--config.epochs=3", "--config.steps=12", recipe="own")
    with pytest.raises(ValueError, match="config.steps=12 and config.epochs=3: a run has one"):
        config_reader.read(config.TrainConfig, values.to_dict())
    values, said = fitted("--config.steps=12", "--config.optimizer.schedule_steps=700")
    assert values.optimizer.warmup_steps == 15 and "warmup" not in said
    assert fitted("--config.job=export", "--config.steps=0")[1] == ""

    # A short run is planned as it would be trained
    values, said = fitted("--config.run.steps=12", recipe="plan:stage2")
    assert values.run.optimizer.warmup_steps == 1
    assert "config.run.optimizer.warmup_steps: 15 -> 1" in said
    given = "--config.run.steps=12", "--config.run.optimizer.warmup_steps=11"
    assert fitted(*given, recipe="plan:stage2")[0].run.optimizer.warmup_steps == 11

    # A run of infonce alone says so
    assert "all 12 steps are plain InfoNCE" in fitted("--config.steps=12")[1]
    assert "InfoNCE" not in fitted("--config.steps=12", "--config.infonce_steps=0")[1]

    # A short run has the recipes share of warmup
    for recipe, steps, expected in [
        ("stage2", 12, 1),
        ("stage2", 1, 0),
        ("stage2:qwen2_vl_7b", 100, 10),
        ("llave", 15, 1),
    ]:
        values, said = fitted(f"--config.steps={steps}", recipe=recipe)
        assert values.optimizer.warmup_steps == expected
        assert f"-> {expected}, as a run of {steps} steps would have none at the full" in said
        config_reader.read(config.TrainConfig, values.to_dict())
