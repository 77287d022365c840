"""Runs of the training job in forked processes, which cost no imports: killed and started again.

An end is (signal, moment, later): so many seconds after the moment, which is a number of seconds
from the start, "parameters": they are listed, "step N": that step is logged by this run, or
"save N": its checkpoint is being written.
"""

import json
import os
import pathlib
import re
import time
import traceback
from collections.abc import Callable, Sequence

from absl import logging
from ml_collections import ConfigDict

from tests.jobs import plain_steps
from tests.jobs.tiny_run import metrics
from unime_jax.jobs import train


def forked(call: Callable[[], None]) -> int:
    """Starts `call` in a child; its process id."""
    child = os.fork()
    if child:
        return child
    status: object = 1
    try:
        call()
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status if isinstance(status, int) else 1)


def condition(moment: str | float, workdir: pathlib.Path) -> Callable[[], bool]:
    """Whether the moment of a run that starts now has come."""
    started = time.monotonic()
    if not isinstance(moment, str):
        return lambda: time.monotonic() - started >= moment
    if moment == "parameters":
        return lambda: (workdir / "parameters.txt").exists()
    what, number = re.fullmatch(r"(step|save) (\d+)", moment).groups()
    if what == "save":
        return lambda: any(workdir.glob(f"checkpoints/{number}.*tmp*"))
    earlier = []  # whether the lines of a run before have been cut

    def is_logged() -> bool:
        reached = any(line["step"] >= int(number) for line in metrics(workdir))
        if not reached:
            earlier.append(True)
        return reached and bool(earlier)

    return is_logged


def disturbed(
    config: ConfigDict, workdir: pathlib.Path, ends: Sequence[list], goes_on: bool
) -> list[float]:
    """Runs of one work directory: all that are ended, and if it `goes_on` one to the last step."""
    log = workdir.with_suffix(".log").open("wb")

    def run() -> None:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        logging.set_verbosity(logging.INFO)
        train.run(config, workdir)

    statuses, longest = [], 0.0
    for number, moment, later in ends:
        child, has_come, ended, told = forked(run), condition(moment, workdir), 0, None
        while not ended:
            if told is None and has_come():
                time.sleep(later)
                os.kill(child, number)
                told = time.monotonic()
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.001)
        longest = max(longest, time.monotonic() - (told or time.monotonic()))
        statuses.append(status)
    if goes_on:
        statuses.append(os.waitpid(forked(run), 0)[1])
    return [*map(os.waitstatus_to_exitcode, statuses), longest]


def all_disturbed(
    config: dict, folder: pathlib.Path, ends: Sequence[Sequence[list]], plain: bool
) -> None:
    """Runs in <folder>/<number>, each ended by its `ends` in turn, and then taken to the last step.

    `plain`: with steps without the model, and left where the last of its `ends` came.

    Leaves in <folder>/ends.json, by work directory, how its processes ended, -9 for SIGKILL, and
    the longest time in seconds from a signal to the end.
    """
    if plain:
        plain_steps.replace_here()
    found = [
        disturbed(ConfigDict(config), folder / str(number), of_one, goes_on=not plain)
        for number, of_one in enumerate(ends)
    ]
    (folder / "ends.json").write_text(json.dumps(found))
