"""Shuffles of grain are computed once in a test process: runs of one seed draw the same rows.

grain finds a row's place by encrypting numbers of 16 bits until one is below the number of rows:
milliseconds for each row that is drawn from the few that sources of tests have.
"""

import functools
import sys

MODULE = "grain._src.python.experimental.index_shuffle.python.index_shuffle_module"
PLACES = 2**16  # that are remembered, by row, number of rows and seed


def remember() -> None:
    """From here on, if grain is imported."""
    module = sys.modules.get(MODULE)
    if module is not None and not hasattr(module.index_shuffle, "cache_info"):
        module.index_shuffle = functools.lru_cache(PLACES)(module.index_shuffle)
