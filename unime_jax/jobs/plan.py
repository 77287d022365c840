"""The plan before you rent: what a run needs of TPU slices that are not at hand.

The program that the run would start is compiled for each slice, by libtpu, which needs no TPU for
that. Nothing is read but config.json and the tokenizer, and nothing is computed.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unime_jax import backbones, config, config_reader, files, sharding
from unime_jax.backbones import Backbone
from unime_jax.data import inference_shapes, length_sample
from unime_jax.data.shapes import Bucket
from unime_jax.jobs import boundary
from unime_jax.planning import (
    chips,
    compiler,
    estimate,
    lengths,
    memory,
    program,
    report,
    search,
    suggest,
)
from unime_jax.planning.report import Entry
from unime_jax.planning.suggest import Settings
from unime_jax.training import automatic, size_checks

PACKAGE = pathlib.Path(__file__).parents[1]


def run(config_dict: ConfigDict, workdir: files.Path) -> None:
    """Plans every recipe on every slice; tables are logged and left in plan.md and plan.json.

    What was planned before, by the same code, versions and settings, is read from <workdir>/cache.

    Raises:
      ValueError: a config does not make sense, leaves keys open, names slices that there are none
        of, or another process plans in `workdir`.
      RuntimeError: every single plan failed, and the table says why, too; or a disk takes no more.
    """
    plans = read(config_dict.to_dict())
    for planned in plans:
        for topology in planned.topologies:
            chips.parse(topology)  # a wrong name is best said before the first compilation
    entries: list[Entry] = []
    with boundary.owning(workdir, "plan.lock", "plans in"):
        for planned in plans:
            recipe = Recipe(planned, workdir / "cache")
            for topology in planned.topologies:
                entries.append(recipe.plan(topology))
                _write(entries, workdir)  # what is done is kept if a later one is interrupted
    logging.info("%s\n\n%s\n%s", workdir, report.page(entries), workdir / "plan.json")
    problems = {f"{entry.recipe} on {entry.topology}": entry.problem for entry in entries}
    if problems and all(problems.values()):
        listed = "\n".join(f"- {where}: {problem}" for where, problem in problems.items())
        raise RuntimeError(f"not one of {len(problems)} plans could be made:\n{listed}")


def read(values: Mapping[str, Any]) -> list[config.PlanConfig]:
    """The plans that a config asks for: one, or several by name.

    Raises:
      ValueError: a config does not make sense, or a run's keys are open: a plan has no data that
        their values could follow from.
    """
    if config.kind_of(values) is config.PlansConfig:
        plans = list(config_reader.read(config.PlansConfig, values).recipes.values())
    else:
        plans = [config_reader.read(config.PlanConfig, values)]
    for planned in plans:
        if isinstance(planned.run, config.TrainConfig):
            open_keys = automatic.left_open(planned.run)
            known = (*automatic.OF_DEVICES, *(["data.buckets"] if planned.lengths else []))
            keys = [f"config.run.{key}" for key in open_keys if key not in known]
            if keys == ["config.run.data.buckets"]:
                raise ValueError(
                    f"the plan {planned.name!r} leaves open what the data's lengths decide in the "
                    "run: config.run.data.buckets. Name buckets, or in config.lengths a CSV file "
                    "of pair, tokens and tiles of a sample of items."
                )
            if keys:
                raise ValueError(
                    f"the plan {planned.name!r} leaves open what backbone and data decide in the "
                    f"run: {', '.join(keys)}. A plan needs values: name them, for example those of "
                    f"the {automatic.FILE} that a trial run leaves in its work directory."
                )
    return plans


def _write(entries: list[Entry], workdir: files.Path) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_json(entries), indent=2) + "\n"
    files.write_whole(workdir / "plan.json", text)
    files.write_whole(workdir / "plan.md", report.page(entries) + "\n")


class Recipe:
    """A run to be planned, with its backbone and costs, which are the same on all slices."""

    def __init__(self, planned: config.PlanConfig, cache: pathlib.Path):
        self.planned = planned
        self.settings = planned.run
        self.cache = cache
        self._sample = length_sample.read(planned.lengths) if planned.lengths else None
        self._backbone: Backbone | None = None
        self._row_costs: dict[Any, estimate.RowCosts] = {}

    def plan(self, topology: str) -> Entry:
        """The plan for a slice, and of a change: one that fits, or one that fills what is left."""
        cached = self.cache / f"plan_{self._key(topology)}.json"
        if cached.exists():
            try:
                return report.entry_from_json(files.read_object(cached))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                files.set_aside(cached, error)
        try:
            self.settings = self._with_memory(topology)
        except ValueError:  # which the attempt will say
            self.settings = self.planned.run
        entry = self.attempt(topology, self.settings)
        if entry.compiler and entry.memory and entry.memory.fits and self.planned.search:
            searched, said = search.search(self, topology, entry, self.planned.search)
            entry = dataclasses.replace(entry, searched=searched, suggestion=said)
        elif entry.compiler and entry.memory and self.planned.suggest:
            look = suggest.faster if entry.memory.fits else suggest.suggest
            entry = dataclasses.replace(entry, suggestion=look(self, topology, entry))
        if entry.compiler:  # a plan without a compiler is made again when there is one
            self.cache.mkdir(parents=True, exist_ok=True)
            files.write_whole(cached, json.dumps(report.entry_to_json(entry)) + "\n")
        return entry

    def attempt(self, topology: str, settings: Settings, *, compiled: bool = True) -> Entry:
        """The plan of these settings for a slice, or the part that is known without compiling."""
        where = chips.parse(topology)
        entry = Entry(
            recipe=self.planned.name,
            topology=topology,
            backbone=settings.backbone,
            stand_in=self.planned.model,
            settings=described(settings),
        )
        try:
            made = self._program(settings, where)
            return self._planned(entry, made, where, compiled and made.compiles)
        except (ValueError, jax.errors.JaxRuntimeError) as error:  # other slices may do
            return dataclasses.replace(entry, problem=str(error))

    def _planned(
        self, entry: Entry, made: program.Program, where: chips.Slice, compiles: bool
    ) -> Entry:
        """An entry with memory, work and time."""
        trains = "steps" in entry.settings
        rows = made.items * (2 + made.shapes.negatives) if trains else made.items
        if self._sample and not (self.planned.rows or self.planned.tokens):
            load = lengths.load_of(self._sample, made.shapes, made.items)
        else:
            load = estimate.assume(made.shapes, rows, self.planned.rows, self.planned.tokens)
        key = (made.shapes.buckets, load, made.execution)
        if key not in self._row_costs:
            self._row_costs[key] = estimate.row_costs(made, load)
        row = self._row_costs[key]
        compiled = compiler.compile_program(made, where, self.cache) if compiles else None
        needed = memory.memory(made, where, row.kept, compiled)
        if compiled:
            small = "" if needed.fits else ", more than there is"
            peak = needed.known_peak / 1e9
            logging.info("%s on %s: %.1f GB a chip%s", entry.recipe, where.name, peak, small)
        work = estimate.work(made, load, row, compiled)
        time = estimate.estimate(work, where, made.items)
        return dataclasses.replace(
            entry,
            settings=entry.settings
            | {
                "mesh": dict(made.mesh.shape),
                "load": dataclasses.asdict(load),
                "pad_share": estimate.pad_share(
                    made.shapes, load, estimate.live_chunks(made.shapes, load)
                ),
            },
            compiler=compiler.versions() if compiled else "",
            memory=needed,
            work=work,
            estimate=time,
            hours=time.seconds * entry.settings["steps"] / 3600 if trains else None,
        )

    def _program(self, settings: Settings, where: chips.Slice) -> program.Program:
        backbone = self._open()
        mesh = _mesh(settings, where)
        if isinstance(settings, config.TrainConfig):
            size_checks.check_sizes(settings, mesh)
            return program.train_program(settings, backbone, mesh, teacher=self.planned.teacher)
        shapes = inference_shapes.plan_of(
            Bucket(backbone.preprocess.prompt.max_length, 0),
            backbone.layout,
            sharding.row_shards(mesh),
            settings.batch_size,
        )
        return program.embed_program(backbone, mesh, shapes, jnp.dtype(settings.dtype))

    def _with_memory(self, topology: str) -> Settings:
        """The run's settings, of which some may follow from lengths and the slice's memory."""
        settings, where = self.planned.run, chips.parse(topology)
        if not isinstance(settings, config.TrainConfig):
            return settings
        mesh, size = _mesh(settings, where), int(where.chip.hbm)
        if self._sample:
            settings = automatic.with_lengths(settings, self._open(), mesh, size, self._sample)
        return automatic.with_memory(settings, self._open(), mesh, size)

    def _open(self) -> Backbone:
        """The backbone, opened once."""
        if self._backbone is None:
            settings = self.planned.run
            longest = (
                max((bucket.tokens for bucket in settings.data.buckets), default=None)
                if isinstance(settings, config.TrainConfig)
                else settings.max_length
            )
            self._backbone = backbones.open_backbone(
                self.planned.model or settings.backbone,
                max_length=longest,
                revision=None if self.planned.model else settings.revision,
                processing=settings.processing,
                weights=False,
                clips=isinstance(settings, config.TrainConfig) and settings.data.clips,
            )
        return self._backbone

    def _key(self, topology: str) -> str:
        """Hash of everything that a plan follows from."""
        values = dataclasses.asdict(self.planned)
        del values["topologies"]
        model = self.planned.model or self.settings.backbone
        described_in = files.as_path(model).glob("*.json")
        sources = [*sorted(PACKAGE.rglob("*.py")), *sorted(described_in)]
        digest = hashlib.blake2b(digest_size=12)
        for text in (topology, repr(values), _digest(self._sample), compiler.versions()):
            digest.update(text.encode() + b"\0")
        for file in sources:
            digest.update(file.read_bytes())
        return digest.hexdigest()


def _digest(sample: length_sample.Sample | None) -> str:
    """Of all lengths; "": there are none."""
    if sample is None:
        return ""
    return hashlib.blake2b(b"".join(array.tobytes() for array in sample)).hexdigest()


def _mesh(settings: Settings, where: chips.Slice) -> Mesh:
    """The config's mesh over the slice, abstract if there is no compiler for it."""
    sizes = settings.mesh
    try:
        devices = compiler.devices(where)
    except compiler.NoCompilerError as error:
        logging.warning("%s: %s", where.name, error)
        return program.abstract_mesh(sizes, where.chips)
    return sharding.make_mesh(sizes.data, sizes.fsdp, sizes.tensor, devices)


def described(settings: Settings) -> dict[str, Any]:
    """The settings that a plan shows, with "steps" where a run trains."""
    if isinstance(settings, config.TrainConfig):
        return {
            "batch_size": settings.batch_size,
            "steps": settings.steps,
            "chunk_size": settings.chunk_size,
            "objective": settings.loss.objective,
            "lora_rank": settings.lora.rank,
            "execution": dataclasses.asdict(settings.execution),
            "buckets": [dataclasses.asdict(bucket) for bucket in settings.data.buckets],
        }
    return {
        "batch_size": settings.batch_size,
        "max_length": settings.max_length or "the folder's",
        "dtype": settings.dtype,
    }
