"""One process of several that do nothing but join, and then what they are told to.

It is to "wait" for the others at the end; to "raise" an error; to be "killed"; to be "slow", that
is to wait after others have.
"""

import os
import pathlib
import signal
import sys
import time
import traceback

from absl import logging

from unime_jax.operations import processes

LATER = 6.0  # seconds that a slow process needs more than others


def run(arguments: dict, what: str, folder: pathlib.Path | None = None) -> None:
    logging.set_verbosity(logging.INFO)
    processes._SEEN_SECONDS = 1.0
    try:
        processes.join(**arguments)
        if folder:
            processes.check_shared(folder)
        if what == "raise":
            raise ValueError("this one has no data")
    except ValueError as error:
        processes.fail(f"error: {error}", expected=True)
        sys.exit(f"alone: {error}")
    if what == "killed":
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "slow":
        time.sleep(LATER)
    try:
        processes.leave()
    except Exception:  # as unime_jax.main
        processes.fail(traceback.format_exc(), expected=False)
        raise
    sys.stdout.write("left\n")
