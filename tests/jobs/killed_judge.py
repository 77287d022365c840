"""A judging job that kills itself, for `tests.children`, and a judge that compiles at once."""

import os
import pathlib
import signal
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from unime_jax import files
from unime_jax.jobs import judge, judge_model


def plain(*_: object, **__: object) -> Callable[..., jax.Array]:
    """In the place of `make_answer_logits`: logits that differ by tokens, equal if these are."""

    def logits(trainable, frozen, inputs):
        if inputs.segment is None:
            own = (jnp.arange(inputs.tokens.shape[1]) < inputs.length[:, None])[:, None]
        else:
            number = jnp.arange(1, inputs.segment_end.shape[1] + 1)[:, None]
            own = (inputs.segment[:, None] == 0) | (inputs.segment[:, None] == number)
        total = jnp.where(own, inputs.tokens[:, None], 0).sum(axis=2)
        return jnp.sin(total[:, :, None] * jnp.array([1.0, 2.0])).reshape(len(own), -1)

    return logits


def run(at: int, config: dict, workdir: pathlib.Path) -> None:
    """Runs the job until it would give file number `at` of rows its name."""
    write_whole, count = files.write_whole, 0

    def write(file: pathlib.Path, content: str | bytes) -> None:
        nonlocal count
        count += file.suffix == ".jsonl"
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        write_whole(file, content)

    files.write_whole = write
    jax.local_devices = lambda: jax.devices()[:1]
    judge_model.make_answer_logits = plain
    judge.run(ConfigDict(config), workdir)
