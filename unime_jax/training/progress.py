"""A progress bar on a terminal, a line now and then elsewhere."""

import math
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0  # where stderr is a file and a bar would be noise


class Progress:
    """Steps, or other units, done of all of them, with the loss and the rate, on stderr.

    Lines take the rate, and the time that is left by it, from the first that is shown on: the
    steps before it have compiled their program.
    """

    def __init__(self, total_steps: int, first_step: int, unit: str = "step") -> None:
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit=unit,
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self._total, self._unit = total_steps, unit
        self._start = time.monotonic()
        self._first_shown: tuple[int, float] | None = None  # step and time of the first line
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
        if now - self._shown < SECONDS_BETWEEN_LINES and step < self._total:
            return
        self._shown = now
        step_then, then = self._first_shown or (step, now)
        self._first_shown = step_then, then
        rate = (step - step_then) / (now - then) if now > then else None
        line = tqdm.format_meter(
            step,
            self._total,
            now - self._start,
            unit=self._unit,
            postfix=text,
            initial=step_then,
            rate=rate,
            bar_format="{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
