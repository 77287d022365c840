"""`--config.job=doctor` with the recipe and flags of any run: its config, to be looked at."""

import importlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from unime_jax.operations import command_line, recipes
from unime_jax.operations.command_line import Override

JOB, GROUP = ("job", "doctor"), "doctor."
WITHOUT = ("plan", "benchmark")  # jobs that are no runs of their own


def split(overrides: Sequence[Override]) -> tuple[bool, list[Override], list[Override]]:
    """Whether the doctor is asked for, its own overrides, and those of the run."""
    asked = JOB in overrides
    own = [override for override in overrides if asked and override[0].startswith(GROUP)]
    return asked, own, [each for each in overrides if each != JOB and each not in own]


def whole(values: ConfigDict, own: Sequence[Override], command: dict[str, Any]) -> ConfigDict:
    """The config of job doctor for a run's.

    Args:
      values: the run's config.
      own: overrides of the doctor's keys.
      command: of `config.Command`, by field.

    Raises:
      ValueError: the run is none that is looked at, or a key of the doctor is not known or of
        another type.
    """
    if values.job in WITHOUT:
        raise ValueError(
            f"--config.job=doctor: the recipe is for job {values.job}, and the doctor looks at a "
            "run: give the recipe of the run itself, for example --config=stage2:qwen2_vl_7b"
        )
    base = importlib.import_module(f"{recipes.__name__}.base")
    doctor = ConfigDict({"job": "doctor", "doctor": base.doctor(), "command": command})
    doctor.run = values
    command_line.apply(doctor, own)
    return doctor.lock()
