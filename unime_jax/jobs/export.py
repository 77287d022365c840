"""Export a run's newest or best checkpoint: merged weights, a PEFT adapter, checks, a model card.

Training ends with it; `--config.job=export` does it at any time, also for a run that was stopped.
With `--config.steps=0` it is the backbone itself that is exported, a PEFT adapter on it merged.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unime_jax import config, config_reader, files, paths, sharding
from unime_jax.backbones.io import adapters
from unime_jax.data import formats
from unime_jax.export import folder as hf_folder
from unime_jax.export import model_card, self_check
from unime_jax.jobs import preflight
from unime_jax.models.vlm import Execution
from unime_jax.operations import compilation_cache, disk_errors, processes, watchdog, workdir_lock
from unime_jax.operations.config_file import write_config
from unime_jax.operations.watchdog import Watchdog
from unime_jax.training import evaluations, inputs, outcome, resume
from unime_jax.training.checkpoint import Checkpoints
from unime_jax.training.setup import Setup, examples, make_mesh, set_up
from unime_jax.training.step import TrainState


def run(config_dict: ConfigDict, workdir: files.Path) -> None:
    """Writes <workdir>/hf, and <workdir>/hf_adapter if the config asks for it.

    Raises:
      ValueError: there is no checkpoint in `workdir`, every step of it was skipped, or the config
        does not fit it.
      RuntimeError: the export does not reproduce the model.
    """
    settings = config_reader.read(config.TrainConfig, config_dict.to_dict())
    watch = settings.watchdog
    stacks = workdir / f"stacks-export-{jax.process_index()}.txt"
    with (
        disk_errors.explained(workdir),
        Watchdog(stacks, seconds=watch.seconds, exit=watch.exit),
    ):
        with watchdog.phase("the set-up has not gone on", watch.setup_seconds):
            mesh = preflight.check(
                lambda: make_mesh(settings),
                workdir,
                lambda problems: preflight.check_export(settings, problems),
            )
        compilation_cache.use_for_job(settings.compilation_cache, workdir)
        trained = bool(settings.steps or settings.epochs)
        if trained:
            resume.check_config(workdir, config_dict.to_dict())
        if not (workdir / "config.json").exists():
            write_config(workdir, config_dict)
        with jax.set_mesh(mesh):
            with watchdog.phase("the set-up has not gone on", watch.setup_seconds):
                rows = inputs.open_rows(settings.data) if settings.data.train else {}
                setup = set_up(settings, mesh, rows, workdir)
                if trained:
                    state = restore(setup, workdir, evaluations.read(workdir))
                    if int(state.skipped) >= int(state.step) > 0:
                        raise ValueError(
                            f"every one of the {int(state.step)} steps of {workdir} was skipped, so"
                            " there is nothing to export; config.steps=0 exports the backbone as"
                            " it is"
                        )
                    parameters, steps = state.trainable | state.frozen, int(state.step)
                    del state
                else:
                    parameters, steps = setup.initial(), 0
            with watchdog.phase("the export has not gone on", watch.export_seconds):
                write(setup, parameters, steps, rows, workdir)


def restore(
    setup: Setup, workdir: files.Path, scores: Mapping[int, evaluations.Scores]
) -> TrainState:
    """The state of the checkpoint that `export.checkpoint` names, frozen weights included.

    Args:
      scores: of evaluations during training, by step.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        every=setup.settings.checkpoint.every,
        keep=setup.settings.checkpoint.keep,
        fingerprints=resume.fingerprints(setup.backbone),
        read_only=True,  # the run may be going on
    )
    state = None
    with checkpoints:
        if checkpoints.latest_step() is not None:
            if setup.settings.export.checkpoint == "best":
                step = _best_step(workdir, scores, checkpoints.steps())
                state = checkpoints.restore_step(step, setup.initial_state())
            else:
                state = checkpoints.restore(setup.initial_state())
    if state is None:
        raise ValueError(
            f"{workdir} has no checkpoint to export; train first, or set config.steps=0 to"
            " export the backbone as it is"
        )
    return state


def _best_step(
    workdir: files.Path, scores: Mapping[int, evaluations.Scores], steps: Sequence[int]
) -> int:
    """The one of these steps with the highest score, or a ValueError."""
    best = evaluations.best_step(scores, steps)
    if best is None:
        raise ValueError(
            f'config.export.checkpoint="best", but {workdir / evaluations.FILE} has no score of a'
            " checkpoint that is there: train on with config.evaluation.every, or export the"
            ' "newest"'
        )
    logging.info("the best checkpoint of %s is that of step %d", workdir, best)
    return best


def write(
    setup: Setup,
    parameters: paths.Parameters,
    steps: int,
    rows: Mapping[str, formats.Source],
    workdir: files.Path,
) -> None:
    """Everything that a run hands on after so many steps; process 0 writes, all take part.

    Another export into the same folder, of a run that goes on, is waited for. `rows` are the
    training data, from which the self-check takes its inputs.

    Raises:
      RuntimeError: the export does not reproduce the model.
    """
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            held = workdir_lock.owned(workdir, "export.lock", what="exports into", wait=True)
            stack.enter_context(held)
        processes.barrier("export begins")
        _write(setup, parameters, steps, rows, workdir)


def _write(
    setup: Setup,
    parameters: paths.Parameters,
    steps: int,
    rows: Mapping[str, formats.Source],
    workdir: files.Path,
) -> None:
    settings, backbone = setup.settings, setup.backbone
    assert settings.export.dtype  # None is resolved in set-up
    dtype = np.dtype(settings.export.dtype)
    target = workdir / "hf"
    hf_folder.write(
        target,
        backbone,
        setup.abstract_model.graph,
        parameters,
        dtype=dtype,
        prompts=settings.export.prompts,
        dims=settings.matryoshka.dims if steps else (),
        truncate_dim=settings.export.truncate_dim,
    )
    processes.barrier("export written")  # by process 0, for all to read
    items = examples(rows, backbone.preprocess, setup.shapes)
    mesh, execution = _checked_on(setup)
    cosine = self_check.self_check(
        target,
        items,
        setup.encoder(parameters),
        backbone,
        shapes=setup.test_shapes,
        mesh=mesh,
        execution=execution,
        max_length=backbone.preprocess.prompt.max_length,
        dtype=dtype,
    )
    if settings.export.adapter and settings.lora.rank:
        adapters.save(workdir / "hf_adapter", backbone, parameters, settings.lora, dtype=dtype)
    if jax.process_index() != 0:
        return
    model_card.write(
        target,
        workdir,
        settings,
        backbone,
        steps=steps,
        cosine=cosine,
        items=items,
        sources=sorted(settings.data.weights or rows),
        warnings=outcome.messages(workdir),
    )
    if settings.export.verify:
        self_check.repeat_in_a_new_process(target)
        logging.info("%s passed its check in a process of its own", target)


def _checked_on(setup: Setup) -> tuple[Mesh, Execution]:
    """Where an export is read back: in the host's memory if the devices hold a base of int8.

    They may have no room for the whole model beside it; where there are several hosts, they do.
    """
    if setup.settings.execution.frozen_dtype != "int8" or jax.process_count() > 1:
        return setup.mesh, setup.execution
    mesh = sharding.make_mesh(1, 1, 1, jax.devices("cpu")[:1])
    return mesh, dataclasses.replace(setup.execution, attention="xla")
