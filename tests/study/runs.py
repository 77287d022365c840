"""Runs of the study: each a job of the library in a folder of its own, its result one JSON file.

A finished run is known by its file, so the same command goes on after a kill; a run that was cut
off goes on from what its job left.
"""

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import evaluate, merge, mine, study
from tests.study import masks, oracle
from unime_jax import files
from unime_jax.evaluation import scores
from unime_jax.jobs import evaluate as evaluate_job
from unime_jax.jobs import merge as merge_job
from unime_jax.jobs import mine as mine_job
from unime_jax.jobs import train
from unime_jax.operations import command_line


@dataclasses.dataclass(frozen=True)
class Study:
    """A study's folder, its seeds, and what the command line changes of every training run."""

    folder: pathlib.Path
    data: pathlib.Path
    seeds: Sequence[int]
    overrides: Sequence[command_line.Override] = ()
    start_steps: int = study.START_STEPS

    def config(self, variant: str, seed: int) -> ConfigDict:
        """The config of a training run."""
        values = study.get_config(variant).lock()
        own = {"seed": str(seed), "data.folder": str(self.data)}
        if variant == "start":
            own["steps"] = str(self.start_steps)
        else:
            own["init_from"] = str(self.folder / "start")
        if values.data.mined:
            own["data.mined"] = str(self.folder / "mined")
        if "judged" in values.data.train:
            own["data.train"] = str(self.folder / "judged" / "rows")
        given = [(k, v) for k, v in self.overrides if variant != "start" or k != "steps"]
        command_line.apply(values, [*given, *own.items()])
        return values

    def result(self, name: str) -> pathlib.Path:
        """The file of a finished run."""
        return self.folder / "results" / f"{name.replace(':', '_')}.json"

    def workdir(self, name: str) -> pathlib.Path:
        """The folder of a run."""
        return self.folder / name.replace(":", "_")


def start(this: Study) -> None:
    """Trains the model that all variants start from."""
    if not this.result("start").exists():
        _train(this, "start", this.config("start", 0), "start")


def variant(this: Study, name: str, seed: int) -> None:
    """Trains a variant with a seed, which draws its batches: the weights start alike."""
    run = f"{name}-{seed}"
    if this.result(run).exists():
        return
    values, workdir = this.config(name, seed), this.workdir(run)
    if values.data.mined or "judged" in name:
        mined(this, "start", "mined")
    if "judged" in name:
        oracle.judge(this.folder / "judged", this.config("negatives:both", 0))
    _take_scores_before(this.workdir("start"), workdir)
    _train(this, run, values, name, seed=seed)


def merged(this: Study, name: str) -> None:
    """Merges a variant's seeds, which have one start, and evaluates the model."""
    run = f"merge-{name}"
    if this.result(run).exists():
        return
    started = time.perf_counter()
    values = merge.get_config().lock()
    values.models = tuple(str(this.workdir(f"{name}-{seed}")) for seed in this.seeds)
    values.verify = False
    merge_job.run(values, this.workdir(run))
    like, own = this.config("start", 0), evaluate.get_config().lock()
    own.backbone, own.data.folder = str(this.workdir(run)), like.data.folder
    own.data.prepare = like.data.prepare
    own.evaluation.composition, own.evaluation.cache = "", ""
    own.evaluation.mmeb, own.evaluation.images = like.evaluation.mmeb, like.evaluation.images
    own.evaluation.limit = like.evaluation.limit
    workdir = this.workdir(f"{run}-scores")
    evaluate_job.run(own, workdir)
    side = scores.read_scores(workdir)["scores"]
    _write(this, run, side, "merge", started, of=name, seeds=list(this.seeds))


def measured(this: Study, run: str) -> None:
    """Measures masks and mined negatives by the vectors of a run's model."""
    name = f"masks-{run}"
    if this.result(name).exists():
        return
    values = this.config("negatives:both", 0)
    values.data.mined = str(mined(this, run, "mined" if run == "start" else f"mined_{run}"))
    write_result(this, name, {"variant": "masks", "of": run, **masks.measure(values)})


def mined(this: Study, run: str, folder: str) -> pathlib.Path:
    """Mines negatives within each source by the model of a run; the table's folder."""
    values = mine.get_config().lock()
    like = this.config("start", 0)
    values.backbone = str(this.workdir(run) / "hf")
    values.data.folder, values.data.train = like.data.folder, like.data.train
    values.data.first_rows = like.data.first_rows
    values.search.pool = "source"
    mine_job.run(values, this.folder / folder)
    return this.folder / folder


def write_result(this: Study, run: str, result: Mapping[str, Any]) -> None:
    """Marks a run as finished."""
    this.result(run).parent.mkdir(exist_ok=True)
    files.write_whole(this.result(run), json.dumps(result, indent=2) + "\n")


def results(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Results of all finished runs."""
    return [files.read_object(file) for file in sorted((folder / "results").glob("*.json"))]


def _train(this: Study, run: str, values: ConfigDict, name: str, **about: Any) -> None:
    started, workdir = time.perf_counter(), this.workdir(run)
    train.run(values, workdir)
    _write(this, run, scores.read_scores(workdir)["after"], name, started, **about)
    shutil.rmtree(workdir / "checkpoints")


def _write(
    this: Study, run: str, side: Mapping[str, Any], variant: str, started: float, **about: Any
) -> None:
    seconds = round(time.perf_counter() - started, 1)
    write_result(this, run, {"variant": variant, **about, "scores": side, "seconds": seconds})
    print(f"{run}: {side['All']:.1f} % after {seconds:.0f} s", flush=True)


def _take_scores_before(start: pathlib.Path, workdir: pathlib.Path) -> None:
    """A variant before training is the start after it: that is not evaluated again."""
    if (workdir / "evaluation.json").exists():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(start / "results_after.npz", workdir / "results_before.npz")
    scores.write_scores(workdir, "before", scores.read_scores(start)["after"])
