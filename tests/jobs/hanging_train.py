"""unime_jax.main whose data hang after some time, as on a dead file server.

After `hang_after(reads)` so many examples are read; whoever wants another one waits on a pipe that
nobody writes to.
"""

import itertools
import os

from unime_jax.data import loader


def hang_after(reads: int) -> None:
    read_example, count = loader.read_example, itertools.count(1)
    pipe, _ = os.pipe()

    def read_or_hang(*arguments, **options):
        if next(count) > reads:
            os.read(pipe, 1)
        return read_example(*arguments, **options)

    loader.read_example = read_or_hang
