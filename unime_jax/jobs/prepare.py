"""Data that a recipe generates before its job begins, where it is missing."""

import importlib
import pathlib
import time

import jax
from absl import logging

from unime_jax import config
from unime_jax.operations import processes


def prepare(settings: config.PrepareConfig, folder: pathlib.Path) -> None:
    """Process 0 generates, the others wait; nothing happens without a module."""
    if not settings.module:
        return
    if jax.process_index() == 0:
        started = time.perf_counter()
        importlib.import_module(settings.module).prepare(
            folder,
            seed=settings.seed,
            train_rows=settings.train_rows,
            eval_rows=settings.eval_rows,
        )
        logging.info("data in %s ready after %.1f s", folder, time.perf_counter() - started)
    processes.barrier("data prepared")
