"""Time of a run by phase, over all of its starts: <workdir>/goodput.json."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any, Literal

from absl import logging

from unime_jax import files

Phase = Literal[
    "compute", "input", "checkpoint", "compile", "evaluation", "export", "other", "lost"
]
PHASES: tuple[Phase, ...] = (
    "compute",  # steps, but for what follows
    "input",  # waiting for a batch; the device may still be busy with the step before
    "checkpoint",  # restoring, starting saves, and waiting for the last one
    "compile",  # the step, by each process that starts: traced, and compiled or read from a cache
    "evaluation",
    "export",
    "other",  # opening data and model, reading weights
    "lost",  # compute of steps that a process did after its last checkpoint, and that died with it
)
SECONDS_BETWEEN_WRITES = 10.0
MARKS = 16  # checkpoints that are remembered


class Goodput:
    """A stopwatch with one phase at a time, which continues an earlier process's counts.

    goodput.json has seconds and shares by phase, "starts" (processes so far), "steps", and
    "compute_at": seconds of compute at each of the newest checkpoints, by step. It is written every
    ten seconds at most, so that a kill loses little.

    Args:
      writes: whether this process does.
    """

    def __init__(self, workdir: files.Path, *, writes: bool):
        self._path = workdir / "goodput.json"
        self._writes = writes
        self.seconds: dict[str, float] = {}
        self._compute_at: dict[int, float] = {}
        self._starts = self._steps = 0
        self._go_on({})
        try:
            self._go_on(files.read_object(self._path))
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            if writes:  # a run does not end for its statistics
                files.set_aside(self._path, error)
        self._phase: Phase = "other"
        self._since = self._written = time.perf_counter()

    def _go_on(self, earlier: dict[str, Any]) -> None:
        seconds: dict[str, float]
        seconds = {name: float(earlier.get("seconds", {}).get(name, 0.0)) for name in PHASES}
        compute_at = {int(step): float(t) for step, t in earlier.get("compute_at", {}).items()}
        starts, steps = int(earlier.get("starts", 0)), int(earlier.get("steps", 0))
        if not all(map(math.isfinite, [*seconds.values(), *compute_at.values()])):
            raise ValueError("a time that is not finite")
        self.seconds, self._compute_at = seconds, compute_at
        self._starts, self._steps = starts + 1, steps

    @contextlib.contextmanager
    def spend(self, phase: Phase) -> Iterator[None]:
        """Counts the time inside for `phase` alone."""
        before = self._phase
        self._switch(phase)
        try:
            yield
        finally:
            self._switch(before)

    def resumed(self, steps_done: int) -> None:
        """Counts compute after that step, which an earlier process did not save, as lost."""
        at = 0.0 if not steps_done else self._compute_at.get(steps_done, self.seconds["compute"])
        self.seconds["lost"] += self.seconds["compute"] - at
        self.seconds["compute"] = at
        self._compute_at = {s: t for s, t in self._compute_at.items() if s <= steps_done}
        self._steps = steps_done

    def stepped(self, steps_done: int) -> None:
        self._steps = steps_done
        if time.perf_counter() - self._written >= SECONDS_BETWEEN_WRITES:
            self.write()

    def saved(self, steps_done: int) -> None:
        """Notes the compute so far, as a checkpoint of that step is on its way."""
        self._switch(self._phase)
        self._compute_at[steps_done] = self.seconds["compute"]
        self._compute_at = dict(sorted(self._compute_at.items())[-MARKS:])
        self.write()

    def summary(self) -> dict[str, Any]:
        self._switch(self._phase)
        total = sum(self.seconds.values()) or 1.0
        return {
            "seconds": {name: round(t, 3) for name, t in self.seconds.items()},
            "shares": {name: round(t / total, 4) for name, t in self.seconds.items()},
            "starts": self._starts,
            "steps": self._steps,
            "compute_at": {str(step): round(t, 3) for step, t in self._compute_at.items()},
        }

    def write(self) -> None:
        self._written = time.perf_counter()
        if not self._writes:
            return
        try:
            files.write_whole(self._path, json.dumps(self.summary(), indent=2) + "\n")
        except OSError as error:  # a run does not end for its statistics
            logging.warning("%s cannot be written: %s", self._path, error)

    def log(self) -> None:
        summary = self.summary()
        parts = ", ".join(
            f"{name} {seconds:.1f} s ({summary['shares'][name]:.1%})"
            for name, seconds in summary["seconds"].items()
            if seconds
        )
        logging.info("time of this run in %d start(s): %s", self._starts, parts)

    def _switch(self, phase: Phase) -> None:
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now
