"""Configs and command lines that are refused, in a sentence and before anything is trained."""

import copy
import functools

import pytest

from experiments import llave, stage2
from tests import children
from tests.jobs.tiny_run import metrics
from unime_jax import main
from unime_jax.config import TrainConfig
from unime_jax.config_reader import read as read_config
from unime_jax.data import schema
from unime_jax.data.settings import Bucket
from unime_jax.jobs import train


def put(config, path, value):
    """Sets a key whatever its type was, as a hand-written config file could."""
    *groups, key = path.split(".")
    group = functools.reduce(lambda group, name: group[name], groups, config.unlock())
    if key in group:
        del group[key]
    group[key] = value


WRONG = [
    ({"loss.hard_negatives": 16}, "hard_negatives=16 must be below config.batch_size=16"),
    ({"loss.pool": 5}, "loss.pool=5 must divide config.batch_size=16"),
    ({"loss.pool": 1}, "loss.pool=1: pairs of a pool are each other's negatives"),
    (
        {"loss.query_query_margin": 0.1},
        "query_query_margin=0.1, but config.loss.query_query is False",
    ),
    ({"loss.closed_sources": ("digit",)}, "loss.closed_sources: no such source: 'digit'"),
    ({"loss.source_temperatures": (("digits", 0.0),)}, "has 0.0 for 'digits'; a temperature must"),
    (
        {"loss.closed_sources": ("digits",), "data.negatives": 0},
        "loss.closed_sources is about explicit negatives, but config.data.negatives=0",
    ),
    ({"batch_size": 20}, "batch_size=20 must be a multiple of 8"),
    ({"chunk_size": 12}, "chunk_size=12 must be a multiple of 8"),
    ({"mesh.tensor": 3}, r"mesh.tensor=3 does not give the 8 device"),
    ({"backbone": "/nowhere/at/all"}, "/nowhere/at/all"),
    ({"data.weights": {"digit": 1.0}}, "no such source: 'digit'"),
    (
        {"data.size_temperature": 2.0, "data.weights": {"digits": 1.0}},
        "size_temperature=2.0 and config.data.weights={'digits': 1.0} both say how often",
    ),
    ({"data.train": "mini_mmeb/trian"}, "no data in .*trian"),
    ({"data.columns": {"qurey": "a"}}, "unknown key config.data.columns.qurey; did you mean query"),
    ({"data.columns": {"query": "ask"}}, "query='ask': there is no such column. The columns are"),
    ({"optimizer.lerning_rate": 1.0}, "lerning_rate; did you mean config.optimizer.learning_r"),
    ({"optimizer.schedule": "poly"}, "schedule is 'poly'; use one of 'linear'"),
    ({"optimizer.warmup_steps": 6}, "optimizer.warmup_steps=6 .* steps=6"),
    ({"steps": "many"}, "config.steps must be of type int, not 'many'"),
    ({"trainable": (("language_model.*", True),)}, "trainable: no rule matches"),
    ({"data.source_run": 5}, "source_run = 5 must divide batch_size = 16"),
    (
        {"data.buckets": (Bucket(tokens=56, tiles=3), Bucket(tokens=40, tiles=0))},
        "buckets must go from small to large",
    ),
]


def test_wrong_and_missing_settings_are_named_before_anything_is_trained(config, workdir):
    for changes, message in WRONG:
        wrong = copy.deepcopy(config)
        for path, value in changes.items():
            put(wrong, path, value)
        with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
            train.run(wrong, workdir)
        assert main.says_it_all(raised.value), changes  # no traceback on the command line
        assert not metrics(workdir), changes

    # A missing key is named
    del config.loss.temperature
    with pytest.raises(ValueError, match=r"missing key config.loss.temperature \(float\)"):
        train.run(config, workdir)


def interrupted():
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    main.app.run = interrupt
    main.run()


def test_the_command_line_answers_a_mistake_in_a_line_and_a_bug_keeps_its_traceback(tmp_path):
    flags = ["--config=experiments/stage2.py", "--config.optimizer.learning_rte=1"]
    argv = [*flags, f"--workdir={tmp_path}"]
    mistaken, stopped = (
        children.start(call, output=tmp_path / call.__name__, argv=argv)
        for call in (main.run, interrupted)
    )
    assert (mistaken.wait(60), stopped.wait(60)) == (1, 130)
    assert '"learning_rate" instead of "learning_rte"' in mistaken.said()
    assert "Ctrl-C: the same command goes on" in stopped.said()
    assert "Traceback" not in mistaken.said() + stopped.said()

    # A bug keeps its traceback
    with pytest.raises(TypeError) as raised:
        schema.check_names(None, [])
    assert not main.says_it_all(raised.value)


def test_every_variant_of_an_experiment_is_a_valid_config():
    for experiment in (stage2, llave):
        for variant in ("mini", "llava_onevision_7b"):
            given = experiment.get_config(variant).to_dict()
            assert read_config(TrainConfig, given).optimizer.warmup_steps < given["steps"]
        with pytest.raises(KeyError, match="use one of mini, (mini_video, )?llava"):
            experiment.get_config("7b")
