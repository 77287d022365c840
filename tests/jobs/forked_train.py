"""Runs of the training job in forked processes, which cost no imports: killed and started again.

    python -m tests.jobs.forked_train <config.json> <folder of workdirs> <ends, JSON>

An end is (signal, moment, later): so many seconds after the moment, which is a number of seconds
from the start, "parameters": they are listed, "step N": that step is logged, or "save N": its
checkpoint is being written. Each end is of a run of its own, <folder>/<number>, which is then
started again and left alone. Prints how both processes ended, -9 for SIGKILL, and the seconds from
the signal to the end.
"""

import json
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Callable

from ml_collections import ConfigDict

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


def has_come(moment: str | float, workdir: pathlib.Path, seconds: float) -> bool:
    if not isinstance(moment, str):
        return seconds >= moment
    if moment == "parameters":
        return (workdir / "parameters.txt").exists()
    what, number = re.fullmatch(r"(step|save) (\d+)", moment).groups()
    if what == "step":
        return any(line["step"] >= int(number) for line in metrics(workdir))
    return any(workdir.glob(f"checkpoints/{number}.*tmp*"))


def disturbed(config: ConfigDict, workdir: pathlib.Path, end: list) -> list[float]:
    """One run that is ended, and one that goes on."""
    number, moment, later = end
    log = workdir.with_suffix(".log").open("wb")

    def run() -> None:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        train.run(config, workdir)

    child, started, ended, told = forked(run), time.monotonic(), 0, None
    while not ended:
        if told is None and has_come(moment, workdir, time.monotonic() - started):
            time.sleep(later)
            os.kill(child, number)
            told = time.monotonic()
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.001)
    took = time.monotonic() - (told or time.monotonic())
    again = os.waitpid(forked(run), 0)[1]
    return [*map(os.waitstatus_to_exitcode, (status, again)), took]


if __name__ == "__main__":
    config_file, folder, ends = sys.argv[1:]
    given = ConfigDict(json.loads(pathlib.Path(config_file).read_text()))
    found = [
        disturbed(given, pathlib.Path(folder) / str(number), end)
        for number, end in enumerate(json.loads(ends))
    ]
    print(json.dumps(found))
