"""Garbage collection of test processes: what imports have made is not looked through again.

A full collection passes over a million objects of jax, torch and transformers in half a second,
and what jax traces sets one off every few seconds. None of these objects ever becomes garbage.
"""

import gc

THRESHOLD = (20_000, 20, 20)  # objects, and collections: Python's (700, 10, 10) is soon traced


def pause() -> None:
    """Puts collections off while modules are imported."""
    gc.disable()


def begin_after_imports() -> None:
    """Collects from here on what is made from here on."""
    gc.freeze()
    gc.set_threshold(*THRESHOLD)
    gc.enable()
