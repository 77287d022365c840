"""Keys of job doctor: how closely it looks at the config of another job."""

import dataclasses
from typing import Literal

from unime_jax.config.embed import EmbedConfig
from unime_jax.config.evaluate import EvaluateConfig
from unime_jax.config.judge import JudgeConfig
from unime_jax.config.merge import MergeConfig
from unime_jax.config.mine import MineConfig
from unime_jax.config.rounds import RoundsConfig
from unime_jax.config.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """How closely the doctor looks."""

    rows: int  # of the training data that are read, a sample by `seed`; images are decoded
    # the TPU slice that the run is meant for, such as "v5e:4x4"; "": the devices of this machine
    slice: str
    compile: bool  # compile the step for `slice`, which takes minutes, for the peak of its memory
    # of a step, as measured; None: as goodput.json of the work directory has it, else by the plan
    step_seconds: float | None
    lost_minutes: float  # of work, that a preemption may cost at most

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"config.doctor.rows={self.rows}: the sample has a row or more.")
        if self.compile and not self.slice:
            raise ValueError(
                "config.doctor.compile=True compiles for a TPU slice: name one, such as "
                "--config.doctor.slice=v5e:4x4."
            )
        if self.step_seconds is not None and not 0 < self.step_seconds < float("inf"):
            raise ValueError(
                f"config.doctor.step_seconds={self.step_seconds} must be above 0; None: not known."
            )
        if not self.lost_minutes > 0:
            raise ValueError(f"config.doctor.lost_minutes={self.lost_minutes} must be above 0.")


@dataclasses.dataclass(frozen=True)
class Command:
    """The command that was given, as far as it is no key of a config."""

    recipe: str  # --config
    distributed: bool  # --distributed
    coordinator: str | None  # --coordinator
    process_id: int | None  # --process_id
    num_processes: int | None  # --num_processes


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """A look at another job's config, before that is run."""

    job: Literal["doctor"]  # what to do with this config
    doctor: DoctorOptions
    command: Command
    # what is looked at: a whole config
    run: (
        TrainConfig
        | EmbedConfig
        | MineConfig
        | JudgeConfig
        | EvaluateConfig
        | MergeConfig
        | RoundsConfig
    )
