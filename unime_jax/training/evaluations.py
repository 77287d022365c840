"""Evaluations during training: when one is due, their scores by step, and which step is the best.

<workdir>/evaluations.jsonl has a line {"step", "scores"} for each, with scores as those of a side
of evaluation.json. A step is saved before it is evaluated, and a run that goes on from there
evaluates it if its line is missing, so that a kill neither repeats nor loses an evaluation.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from unime_jax import files
from unime_jax.config import TrainConfig
from unime_jax.training import metrics

FILE = "evaluations.jsonl"

Scores = Mapping[str, Any]


class Evaluations:
    """The scores of one run by step; every process has them, process 0 writes them."""

    def __init__(self, workdir: files.Path, settings: TrainConfig):
        self._path = workdir / FILE
        self._every, self._steps = settings.evaluation.every, settings.steps
        self.scores = read(workdir)

    def resume(self, steps_done: int) -> None:
        """Drops the scores after that step, as the metrics are: the run gets there again."""
        if jax.process_index() == 0:
            metrics.cut_after(self._path, steps_done)
        self.scores = {step: v for step, v in self.scores.items() if step <= steps_done}

    def is_due(self, steps_done: int) -> bool:
        """At multiples of `evaluation.every`; the end of the run has an evaluation of its own."""
        inside = 0 < steps_done < self._steps and steps_done not in self.scores
        return bool(self._every) and inside and steps_done % self._every == 0

    def add(self, steps_done: int, scores: Scores) -> None:
        """Keeps the scores of a step; nothing if it has some.

        Raises:
          RuntimeError: they cannot be written.
        """
        if steps_done in self.scores:
            return
        self.scores[steps_done] = scores
        if jax.process_index() != 0:
            return
        line = json.dumps({"step": steps_done, "scores": scores}, allow_nan=False) + "\n"
        try:
            files.append(self._path, line)
        except OSError as error:
            raise RuntimeError(
                f"{self._path} cannot be written: {error.strerror or error}. See to it that there "
                "is room; then the same command goes on from the newest checkpoint."
            ) from error

    def best(self, steps: Iterable[int]) -> int | None:
        """See `best_step`."""
        return best_step(self.scores, steps)


def best_step(scores: Mapping[int, Scores], steps: Iterable[int]) -> int | None:
    """The one of `steps` with the highest overall score, the latest of equals; None without any."""
    ranked = {s: overall(scores[s]) for s in steps if s in scores}
    known = {s: value for s, value in ranked.items() if value is not None}
    return max(known, key=lambda s: (known[s], s), default=None)


def overall(scores: Scores) -> float | None:
    """The percentage by which checkpoints are compared.

    "All", the mean over MMEB's datasets; without any, the overlap of nearest neighbours with the
    teacher's, for distillation; without that, R@1 of retrieval, the mean over sets; without that,
    the mean over composition subsets.
    """
    if scores.get("All") is not None:
        return float(scores["All"])
    if scores.get("distillation"):
        return float(scores["distillation"]["overlap"])
    if scores.get("retrieval"):
        return float(scores["retrieval"]["R@1"])
    subsets = list((scores.get("composition") or {}).values())
    return sum(subsets) / len(subsets) if subsets else None


def read(workdir: files.Path) -> dict[int, Scores]:
    """The scores of <workdir>/evaluations.jsonl by step; damaged lines are passed over."""
    try:
        lines = (workdir / FILE).read_bytes().splitlines()
    except OSError:
        return {}
    scores = {}
    for line in lines:
        try:
            values = json.loads(line)
            value = overall(values["scores"])
            if value is None or math.isfinite(value):
                scores[int(values["step"])] = values["scores"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return scores


def check(settings: TrainConfig) -> None:
    """Raises ValueError if the keys of evaluations during training do not fit each other."""
    every, evaluation = settings.evaluation.every, settings.evaluation
    problems = []
    if every < 0:
        problems.append(
            f"config.evaluation.every={every} must not be negative; 0 evaluates at the ends only."
        )
    named = evaluation.mmeb or evaluation.composition or evaluation.texts or settings.data.eval
    if every > 0 and not named:
        problems.append(
            f"config.evaluation.every={every}, but there is nothing to evaluate: name a dataset in "
            "config.evaluation.mmeb, composition or texts, or in config.data.eval."
        )
    if settings.checkpoint.keep_best and every == 0:
        problems.append(
            "config.checkpoint.keep_best=True: nothing is evaluated during training, so no "
            "checkpoint is known to be the best. Set config.evaluation.every."
        )
    if settings.export.checkpoint == "best" and not settings.checkpoint.keep_best:
        problems.append(
            'config.export.checkpoint="best", but the best checkpoint is not kept. Set '
            "config.checkpoint.keep_best=True."
        )
    if problems:
        raise ValueError("\n".join(problems))
