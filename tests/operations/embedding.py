"""Two texts embedded by a process that does nothing else."""

import pathlib

import numpy as np
from absl import logging

from unime_jax import Embedder


def embed(folder: pathlib.Path, file: pathlib.Path) -> None:
    logging.set_verbosity(logging.INFO)
    model = Embedder.from_pretrained(folder, dtype="float32", max_length=32)
    np.save(file, model.encode(["a red circle", "a blue square"]))
