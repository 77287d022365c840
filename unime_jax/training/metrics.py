"""What a run reports while it trains: a JSON line, TensorBoard scalars, a progress bar, and W&B."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from unime_jax import files

_SECONDS_BETWEEN_LINES = 30.0  # of progress, where stderr is a file and a bar would be noise


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
        self._file = files.GrowingFile(path)
        self._workdir = workdir
        self._tensorboard = _TensorBoard(workdir / "tensorboard", resume_step + 1)
        self._wandb = wandb and wandb.init(
            project=wandb_project,
            name=workdir.name,
            dir=None if files.is_remote(workdir) else str(workdir),
            resume="auto",
        )
        self._progress = _Progress(total_steps, resume_step)

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

    def flush(self) -> None:
        """What was written so far is on the disk: call it before a checkpoint of these steps.

        A run that goes on from there does not write them again.
        """
        if not self._writes:
            return
        self._file.sync()
        self._tensorboard.sync()


def write_evaluation(
    workdir: files.Path, scores: Mapping[str, Mapping[str, Any]], steps: int
) -> None:
    """The scores of evaluation.json as scalars in <workdir>/tensorboard/evaluation.

    "before" is step 0 and "after" step `steps`; groups such as "datasets" are a part of the tag.
    An earlier evaluation there is replaced. It is a run of its own to TensorBoard, whose readers
    would otherwise take the events of training at its steps for replaced ones.
    """
    folder = workdir / "tensorboard" / "evaluation"
    try:
        files.remove_tree(folder)
        folder.mkdir(parents=True)
        board = _TensorBoard(folder, 0)
        for side, step in (("before", 0), ("after", steps)):
            if side in scores:
                board.write(step, dict(_flat_scores(scores[side], "evaluation")))
        board.close()
    except OSError as error:  # a run does not end for its statistics
        logging.warning("%s cannot be written: %s", folder, error)


def _flat_scores(scores: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in scores.items():
        if isinstance(value, Mapping):
            yield from _flat_scores(value, f"{prefix}/{name}")
        elif value is not None:
            yield f"{prefix}/{name}", float(value)


class _TensorBoard:
    """Scalars in TensorBoard's format, written at once; into a bucket now and then.

    tensorboardX's own writer has a thread, which a full disk ends, and then waits for it forever.
    """

    def __init__(self, folder: files.Path, first_step: int) -> None:
        self._growing = files.GrowingFolder(folder)
        if folder.exists() and not folder.is_dir():
            files.set_aside(folder, "not a folder")
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(self._growing.local / "events"))
        # Readers drop what an earlier process wrote of this step and later ones.
        self._add(Event(step=first_step, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._add(Event(step=first_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._add(Event(step=step, summary=scalar(name, value)))
        self._file.flush()
        self._growing.changed()

    def sync(self) -> None:
        self._file.flush()
        self._growing.sync()

    def close(self) -> None:
        self._file.close()
        self._growing.sync()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total_steps: int, first_step: int) -> None:
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self._total, self._first = total_steps, first_step
        self._start = time.monotonic()
        self._shown = -math.inf

    def show(self, step: int, values: Mapping[str, float]) -> None:
        text = ", ".join(
            form.format(values[name])
            for name, form in (("loss", "loss {:.4f}"), ("pairs_per_second", "{:.1f} pairs/s"))
            if name in values
        )
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown < _SECONDS_BETWEEN_LINES and step < self._total:
            return
        self._shown = now
        line = tqdm.format_meter(
            step,
            self._total,
            now - self._start,
            unit="step",
            postfix=text,
            initial=self._first,
            bar_format="{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


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
    """Keeps the lines up to `step`; a reader sees the old file or the new one, never half of it.

    Where lines are damaged, other than the last, which a crash may have cut, the file is kept under
    another name as well.
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
