"""Verdict on whether a run learns: skipped steps, collapse, a loss no better than chance.

A model that maps every input to one vector trains, evaluates and exports without an error. Two
metrics of each step give it away: `mean_cosine` of two different rows of the batch, and
`chance_loss`, the loss of a model for which all candidates are alike.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from absl import logging

from unime_jax import files
from unime_jax.config import TrainConfig
from unime_jax.training import tally
from unime_jax.training.loss_settings import Contrastive

STATUS = 65  # of a run whose every step was skipped; trying again changes nothing
FILE = "outcome.json"

WINDOW = 20  # logged steps that are averaged, at the start and at the end of an objective
ENOUGH = 50  # steps of an objective from which on its numbers are judged
ENOUGH_FOR_PROGRESS = 100  # from which on "not below its start" is said while the run goes on
COLLAPSED = 0.99  # mean cosine; pretrained models begin below it, if not far below
NEAR_CHANCE = 0.1  # relative distance of the loss from that of chance
MANY_SKIPPED = 0.1  # share of steps
STEPS_BETWEEN_LOOKS = 10

Verdict = Literal["learnt", "learnt_nothing", "doubtful", "too_short"]
LEARNT_NOTHING = ("all_skipped", "collapsed", "chance")


class EveryStepSkipped(RuntimeError):  # noqa: N818 (what happened, as SystemExit says it)
    """No step had a finite loss and gradient, so the weights are those of the start."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem by name, and a message with its numbers and what to change."""

    name: str
    message: str


@dataclasses.dataclass(frozen=True)
class Window:
    """Means over logged steps of one objective, from `first_step` to `last_step`."""

    first_step: int
    last_step: int
    loss: float
    chance_loss: float
    mean_cosine: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Verdict, findings and counts after so many steps.

    The windows are the start and the end of the newest objective, None before its first step.
    """

    steps: int
    skipped_steps: int
    verdict: Verdict
    findings: tuple[Finding, ...]
    start: Window | None
    end: Window | None
    counts: Mapping[str, int]


class Monitor:
    """A running judgement of the steps of a run, with warnings while it does not learn.

    A warning comes again when the run has twice as many steps.

    Args:
      earlier: the lines of metrics.jsonl up to the step that a resumed run goes on from.
    """

    def __init__(self, settings: TrainConfig, earlier: Iterable[Mapping[str, Any]] = ()):
        self._settings = settings
        self._start: list[Mapping[str, Any]] = []
        self._end: collections.deque[Mapping[str, Any]] = collections.deque(maxlen=WINDOW)
        self._objective = -1  # the step before its first
        self._logged = self._steps = self._skipped = 0
        self._again: dict[str, int] = {}
        self._counts = dict.fromkeys(tally.COUNTS, 0)
        for record in earlier:
            self._add(record)

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes one step's metrics; logs a warning if it is time for one."""
        self._add({"step": step} | dict(metrics))
        if step % STEPS_BETWEEN_LOOKS:
            return
        for finding in self.outcome(running=True).findings:
            if step >= self._again.get(finding.name, 0):
                self._again[finding.name] = 2 * step
                logging.warning("step %d: %s", step, finding.message)

    def outcome(self, *, running: bool = False) -> Outcome:
        """The outcome by now; a `running` one gets fewer findings, as its loss may still fall."""
        size = max(1, min(WINDOW, self._logged // 4))
        start = _window(self._start[:size])
        end = _window(list(self._end)[-size:])
        findings = tuple(self._findings(start, end, running))
        return Outcome(
            steps=self._steps,
            skipped_steps=self._skipped,
            verdict=self._verdict(findings),
            findings=findings,
            start=start,
            end=end,
            counts=self._counts,
        )

    def _add(self, record: Mapping[str, Any]) -> None:
        self._steps = record["step"]
        self._skipped = int(record.get("skipped_steps") or 0)
        for name in self._counts:
            self._counts[name] += int(record.get(name) or 0)
        objective = _objective_of(self._settings, self._steps)
        if objective != self._objective:
            self._objective, self._logged = objective, 0
            self._start.clear()
            self._end.clear()
        if not math.isfinite(_number(record, "loss")):
            return
        self._logged += 1
        if len(self._start) < WINDOW:
            self._start.append(record)
        self._end.append(record)

    @property
    def _is_enough(self) -> bool:
        warm = self._steps > (self._settings.optimizer.warmup_steps or 0)
        return warm and self._steps - self._objective >= ENOUGH

    def _verdict(self, findings: Iterable[Finding]) -> Verdict:
        names = {finding.name for finding in findings}
        if names & set(LEARNT_NOTHING):
            return "learnt_nothing"
        if names:
            return "doubtful"
        return "learnt" if self._is_enough else "too_short"

    def _findings(
        self, start: Window | None, end: Window | None, running: bool
    ) -> Iterable[Finding]:
        steps, skipped = self._steps, self._skipped
        if steps and skipped >= steps:
            yield Finding(
                "all_skipped",
                f"every one of the {steps} steps was skipped, because its loss or gradient was not "
                "finite: the weights are those of the start. Look at the backbone's weights and at "
                "config.execution.dtype first, then at config.optimizer.learning_rate and the data",
            )
            return
        if skipped > MANY_SKIPPED * steps and (skipped > 1 or not running):
            yield Finding(
                "skipped_steps",
                f"{skipped} of {steps} steps ({skipped / steps:.0%}) were skipped, because their "
                "loss or gradient was not finite. Lower config.optimizer.learning_rate, or raise "
                "optimizer.warmup_steps",
            )
        if start is None or end is None or not self._is_enough:
            return
        what = f"loss {end.loss:.3f} over steps {end.first_step} to {end.last_step}"
        chance = f"{end.chance_loss:.3f}, that of a model that cannot tell candidates apart"
        distance = end.loss / end.chance_loss - 1 if end.chance_loss > 0 else math.nan
        if end.mean_cosine >= COLLAPSED and abs(distance) <= NEAR_CHANCE:
            yield Finding(
                "collapsed",
                f"the model has collapsed: the mean cosine of two different inputs is "
                f"{end.mean_cosine:.4f}, and the {what} is near {chance}. {self._advice()}",
            )
        elif distance >= 0:
            yield Finding(
                "chance", f"nothing is learnt: {what} is not below {chance}. {self._advice()}"
            )
        elif end.loss >= start.loss and not (
            running and steps - self._objective < ENOUGH_FOR_PROGRESS
        ):
            yield Finding(
                "no_progress",
                f"the {what} is not below its start, {start.loss:.3f} over steps "
                f"{start.first_step} to {start.last_step} of the same objective. Unless the model "
                f"had been trained on this data before: {self._advice()}",
            )

    def _advice(self) -> str:
        """Keys to change, with their present values."""
        settings, loss = self._settings, self._settings.loss
        text = (
            f"Lower config.optimizer.learning_rate (now {settings.optimizer.learning_rate:g}) or "
            f"raise optimizer.warmup_steps (now {settings.optimizer.warmup_steps})"
        )
        if isinstance(loss, Contrastive) and loss.hard_negatives is not None:
            text += (
                "; the hardest negatives alone make a model collapse: begin with plain InfoNCE by "
                f"config.infonce_steps (now {settings.infonce_steps}), or raise "
                f"loss.hard_negatives (now {loss.hard_negatives})"
            )
        elif isinstance(loss, Contrastive) and loss.hardness:
            text += f"; or lower config.loss.hardness (now {loss.hardness:g})"
        return text


def say(workdir: files.Path) -> None:
    """Logs the findings of <workdir>/outcome.json."""
    outcome = read(workdir)
    for finding in outcome.get("findings", []):
        level = logging.ERROR if finding["name"] in LEARNT_NOTHING else logging.WARNING
        logging.log(level, "after %d steps: %s", outcome["steps"], finding["message"])
    if outcome.get("verdict") == "too_short":
        logging.info("%d steps are too few to tell whether the run learns", outcome["steps"])


def write(workdir: files.Path, outcome: Outcome) -> None:
    """Writes <workdir>/outcome.json."""
    text = json.dumps(dataclasses.asdict(outcome), indent=2) + "\n"
    try:
        files.write_whole(workdir / FILE, text)
    except OSError as error:  # a run does not end for its statistics
        logging.warning("%s cannot be written: %s", workdir / FILE, error)


def read(workdir: files.Path) -> dict[str, Any]:
    """<workdir>/outcome.json; {} if it is not there or is damaged."""
    try:
        outcome = files.read_object(workdir / FILE)
    except (FileNotFoundError, ValueError):
        return {}
    findings = outcome.get("findings")
    whole = isinstance(outcome.get("steps"), int) and isinstance(findings, list)
    if not whole or not all(_is_finding(finding) for finding in findings or ()):
        return {}
    return outcome


def messages(workdir: files.Path) -> list[str]:
    """Messages of the findings of <workdir>/outcome.json."""
    return [finding["message"] for finding in read(workdir).get("findings", [])]


def _is_finding(finding: Any) -> bool:
    names = ("name", "message")
    return isinstance(finding, dict) and all(isinstance(finding.get(n), str) for n in names)


def _objective_of(settings: TrainConfig, step: int) -> int:
    """The number of steps before the objective of `step` began: plain InfoNCE, or the loss."""
    return settings.infonce_steps if step > settings.infonce_steps else 0


def _window(records: list[Mapping[str, Any]]) -> Window | None:
    if not records:
        return None

    def mean(name: str) -> float:
        values = [_number(record, name) for record in records]
        return sum(values) / len(values)

    return Window(
        first_step=records[0]["step"],
        last_step=records[-1]["step"],
        loss=mean("loss"),
        chance_loss=mean("chance_loss"),
        mean_cosine=mean("mean_cosine"),
    )


def _number(record: Mapping[str, Any], name: str) -> float:
    value = record.get(name)
    return math.nan if value is None else float(value)
