"""A MiniMMEB with a backbone of a few thousand parameters, and a config to train it in seconds."""

import importlib
import json
import os
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from data_pipelines.mini_mmeb import prepare
from data_pipelines.mini_mmeb.backbone import BackboneSize, TowerSize
from experiments import stage2
from unime_jax import paths
from unime_jax.backbones import open_backbone
from unime_jax.data.settings import Bucket

ROOT = pathlib.Path(__file__).resolve().parents[2]

SIZE = BackboneSize(
    text=TowerSize(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48),
    vision=TowerSize(hidden_size=24, layers=2, heads=2, intermediate_size=32),
    tile=24,
    patch=12,
    vocabulary=640,
)


def build_data(folder: pathlib.Path) -> None:
    """Rows and backbone. It has weights: a run that draws them compiles a program for it."""
    prepare(folder, seed=0, train_rows=24, eval_rows=2, backbone=SIZE)
    backbone = open_backbone(str(folder / "mini_mmeb" / "backbone"), max_length=None, weights=False)
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    drawn = {path: _draw(path, target.shape, rng) for path, target in shapes.items()}
    backbone.save_weights(backbone.folder, drawn, np.dtype("float32"))


def _draw(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A parameter as a random start has it."""
    kind = path.rpartition(".")[2]
    if kind in ("weight", "bias"):  # of norms the weight
        return np.full(shape, float(kind == "weight"), np.float32)
    scale = 0.02 if kind == "embedding" else shape[-2 if kind == "kernel" else -1] ** -0.5
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def make_config(folder: pathlib.Path) -> ConfigDict:
    """stage2's own config, small: six steps of sixteen pairs, and no evaluation."""
    config = stage2.get_config()
    config.data.folder = str(folder)
    config.data.prepare.module = ""  # done by `build_data`
    config.init = "pretrained"
    config.steps = 6
    config.batch_size = config.chunk_size = 16
    config.optimizer.warmup_steps = 1
    config.checkpoint.every = 6  # a save takes as long as all steps
    config.data.negatives = 1
    config.data.buckets = (Bucket(tokens=56, tiles=3),)  # one: half as much to compile
    config.data.source_run = 4
    config.evaluation.mmeb = config.evaluation.composition = config.evaluation.images = ""
    config.evaluation.rows = 64
    config.export.verify = False  # a process more for each run
    return config


def with_evaluation(config: ConfigDict) -> ConfigDict:
    config.evaluation.update(stage2.get_config().evaluation.to_dict())
    config.evaluation.rows = 64
    config.evaluation.limit = 1
    config.evaluation.dims, config.evaluation.precisions = (8,), ("binary",)
    return config


def flags(config: ConfigDict, experiment: str = "experiments/stage2.py") -> list[str]:
    """An experiment, and what differs from it in `config`."""
    module = importlib.import_module(experiment.removesuffix(".py").replace("/", "."))
    given, wanted = module.get_config(), dict(_leaves(config))
    changes = [f"--config.{k}={wanted[k]}" for k, value in _leaves(given) if wanted[k] != value]
    return [f"--config={experiment}", *changes]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, changed."""
    return {**os.environ, **changes}


def metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl; none if there is no file yet."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def saved(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path."""
    folder = workdir / "checkpoints" / str(step)
    tree = ocp.StandardCheckpointer().restore(folder / "state")
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _leaves(config: ConfigDict, prefix: str = ""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
