"""Decodes so many damaged files in one process of little memory: `fuzz_images COUNT SEED`.

Prints how many were decoded all the same, how many were refused, and the slowest, in seconds.
"""

import collections
import json
import pathlib
import random
import re
import resource
import signal
import sys
import time

from tests.data.image_files import damaged, every_format
from unime_jax.data.images import ImageError, decode

MEMORY = 3 * 2**30  # of addresses, which is more than what is used
SECONDS = 10  # for one file


def main(count: int, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    draw, files = random.Random(seed), every_format()
    found, slowest = collections.Counter[str](), 0.0
    for number in range(count):
        data = damaged(files[number % len(files)], draw)
        signal.alarm(SECONDS)  # ends the process
        started = time.perf_counter()
        try:
            assert decode(data, max_pixels=4_000_000).mode == "RGB"
            found["decoded"] += 1
        except ImageError as error:
            found["refused"] += 1
            assert str(error) and "\n" not in str(error)
        signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - started)
    # Not ru_maxrss, which begins at what the parent of a process used.
    status = pathlib.Path("/proc/self/status").read_text()
    peak = int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) // 1024
    print(json.dumps(dict(found) | {"slowest": round(slowest, 2), "peak_mib": peak}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
