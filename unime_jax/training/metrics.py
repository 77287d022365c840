"""Metrics of a run while it trains: metrics.jsonl, TensorBoard, a progress bar, and W&B."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from unime_jax import files
from unime_jax.operations.growing_files import GrowingFile
from unime_jax.training.progress import Progress
from unime_jax.training.tensorboard import TensorBoard, flat_scores, write_evaluation


class MetricsWriter:
    """Writes a run's metrics into its work directory; use it in a `with` statement.

    `<workdir>/metrics.jsonl` gets one strict-JSON object a call, "step" first, flushed at once. A
    value that is not finite is written as null, because JSON has no NaN and readers choke on it.
    `<workdir>/tensorboard` gets the same as scalars. Stderr gets a progress bar with the loss, the
    rate ("pairs_per_second", if among the metrics) and the time left; plain lines now and then if
    it is not a terminal. Where a run has several processes, only process 0 writes.

    A run that died may have written steps that its last checkpoint does not know. Opening with
    `resume_step=s` drops all lines after step s, and an unfinished last line, in one atomic
    replacement; so the default of 0 starts the file anew.

    Args:
      workdir: the run's directory; made if absent.
      total_steps: where the progress bar ends.
      wandb_project: report to this Weights & Biases project as well; None: do not touch it.
      resume_step: the step that the run goes on from, 0 for a new one.

    Raises:
      ModuleNotFoundError: `wandb_project` is given and wandb is not installed.
    """

    def __init__(
        self,
        workdir: files.Path,
        *,
        total_steps: int,
        wandb_project: str | None,
        resume_step: int = 0,
    ) -> None:
        self._writes = jax.process_index() == 0
        self._last_step = resume_step
        if not self._writes:
            return
        wandb = _import_wandb(wandb_project) if wandb_project else None
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        cut_after(path, resume_step)
        self._file = GrowingFile(path)
        self._workdir = workdir
        self._tensorboard = TensorBoard(workdir / "tensorboard", resume_step + 1)
        self._wandb = wandb and wandb.init(
            project=wandb_project,
            name=workdir.name,
            dir=None if files.is_remote(workdir) else str(workdir),
            resume="auto",
        )
        self._progress = Progress(total_steps, resume_step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._writes:
            return
        self._progress.close()
        for file in (self._file, self._tensorboard):
            try:
                file.close()
            except OSError:  # a disk that is full, which `write` has said
                if exception[0] is None:
                    raise
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(exception[0] is not None))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Reports scalars (anything `float` takes) of one step; steps must increase.

        Raises:
          ValueError: `step` is not after the last one, or a metric is called "step".
          RuntimeError: the disk does not take them.
        """
        if step <= self._last_step:
            raise ValueError(f"metrics of step {step} come after those of step {self._last_step}")
        if "step" in metrics:
            raise ValueError('a metric is called "step", which is the name of the step number')
        self._last_step = step
        if not self._writes:
            return
        values = {name: float(value) for name, value in metrics.items()}
        strange = [name for name, value in values.items() if not math.isfinite(value)]
        if strange:
            logging.warning("step %d: not finite: %s", step, ", ".join(strange))
        line = {"step": step} | {k: None if k in strange else v for k, v in values.items()}
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._tensorboard.write(step, values)
        except OSError as error:
            raise RuntimeError(
                f"{error.strerror or error}: the metrics of step {step} cannot be written to "
                f"{self._workdir}. See to it that there is room and that it can be written; then "
                "the same command goes on from the newest checkpoint."
            ) from error
        if self._wandb is not None:
            self._wandb.log(values, step=step)
        self._progress.show(step, values)

    def write_scores(self, scores: Mapping[int, Mapping[str, Any]]) -> None:
        """Reports all evaluations so far by step; the last is that of the newest step."""
        if not self._writes:
            return
        write_evaluation(self._workdir, scores)
        if self._wandb is not None:
            step = max(scores)
            self._wandb.log(dict(flat_scores(scores[step])), step=step)

    def flush(self) -> None:
        """Flushes all lines to the disk; call it before a checkpoint of these steps.

        A run that goes on from there does not write them again.
        """
        if not self._writes:
            return
        self._file.sync()
        self._tensorboard.sync()


def _import_wandb(project: str):
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"wandb_project is {project!r}, but the package wandb is not installed; "
            "run `pip install wandb`, or leave wandb_project unset"
        ) from error
    return wandb


def cut_after(path: files.Path, step: int) -> None:
    """Drops the lines after `step` of a file with a JSON object and its "step" on each line.

    A reader sees the old file or the new one, never half of it. Where lines are damaged, other than
    the last, which a crash may have cut, the file is kept under another name as well.
    """
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        files.set_aside(path, error.strerror or error)
        return
    steps = [step_of(line) for line in lines]
    kept = [line + b"\n" for line, own in zip(lines, steps) if own is not None and own <= step]
    if len(kept) == len(lines) and not last:
        return
    logging.info(
        "%s: dropping %d lines that are not of a step up to %d",
        path,
        len(lines) - len(kept) + bool(last),
        step,
    )
    if None in steps:
        files.set_aside(path, f"{steps.count(None)} lines are not a step's metrics")
    files.write_whole(path, b"".join(kept))


def step_of(line: bytes | str) -> float | None:
    """The step of a line; None if it is damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int | float) and math.isfinite(step) else None
