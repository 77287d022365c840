"""Opens so many damaged clips in one process of little memory: `fuzz_clips COUNT SEED`.

Prints how many gave all frames all the same, how many were refused, and the slowest, in seconds.
"""

import collections
import json
import random
import resource
import signal
import sys
import time
import warnings

from tests.data.clip_files import every_format
from tests.data.image_files import damaged
from unime_jax.data import clips

MEMORY = 4 * 2**30  # of addresses, which is more than what is used
SECONDS = 10  # for one file


def main(count: int, seed: int) -> None:
    warnings.simplefilter("ignore")  # of Pillow
    draw, files = random.Random(seed), list(every_format().values())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found, slowest = collections.Counter[str](), 0.0
    for number in range(count):
        data = damaged(files[number % len(files)], draw)
        signal.alarm(SECONDS)  # ends the process
        started = time.perf_counter()
        try:
            with clips.opened(data, max_pixels=1_000_000) as clip:
                size = (clip.facts.width, clip.facts.height)
                for frame in clip.frames(range(clip.facts.frames)):
                    assert frame.mode == "RGB" and frame.size == size
            found["decoded"] += 1
        except clips.ClipError as error:
            found["refused"] += 1
            assert str(error) and "\n" not in str(error)
        signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - started)
    print(json.dumps(dict(found) | {"slowest": round(slowest, 2)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
