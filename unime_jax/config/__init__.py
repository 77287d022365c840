"""Every key of every job: the dataclasses that a ConfigDict is read into, a file a job.

The comment beside a key, or above it, is its text in --help and --print_config. Nothing but plain
settings is imported here, so that both are quick.
"""

from collections.abc import Mapping
from typing import Any

from unime_jax.config.benchmark import BenchmarkCase, BenchmarkConfig, PeersConfig
from unime_jax.config.common import MeshConfig, OutputConfig, PrepareConfig
from unime_jax.config.doctor import Command, DoctorConfig, DoctorOptions
from unime_jax.config.embed import CorpusConfig, EmbedConfig
from unime_jax.config.evaluate import (
    AgreementConfig,
    EvaluateConfig,
    EvaluateDataConfig,
    EvaluateWatchdogConfig,
    TasksConfig,
)
from unime_jax.config.judge import JudgeConfig, JudgeDataConfig, JudgingConfig
from unime_jax.config.merge import MergeConfig
from unime_jax.config.mine import MineConfig, MineDataConfig, SearchConfig
from unime_jax.config.plan import PlanConfig, PlansConfig
from unime_jax.config.rounds import RoundsConfig, RoundsDataConfig
from unime_jax.config.train import ExportConfig, TrainConfig, WatchdogConfig
from unime_jax.config.train_data import DataConfig, EvaluationConfig
from unime_jax.training.loss_settings import (
    Contrastive,
    Distillation,
    JudgeDistillation,
    Matryoshka,
)

__all__ = [
    "AgreementConfig",
    "BenchmarkCase",
    "BenchmarkConfig",
    "Command",
    "Contrastive",
    "CorpusConfig",
    "DataConfig",
    "Distillation",
    "DoctorConfig",
    "DoctorOptions",
    "EmbedConfig",
    "EvaluateConfig",
    "EvaluateDataConfig",
    "EvaluateWatchdogConfig",
    "EvaluationConfig",
    "ExportConfig",
    "JudgeConfig",
    "JudgeDataConfig",
    "JudgeDistillation",
    "JudgingConfig",
    "Matryoshka",
    "MergeConfig",
    "MeshConfig",
    "MineConfig",
    "MineDataConfig",
    "OutputConfig",
    "PeersConfig",
    "PlanConfig",
    "PlansConfig",
    "PrepareConfig",
    "RoundsConfig",
    "RoundsDataConfig",
    "SearchConfig",
    "Settings",
    "TasksConfig",
    "TrainConfig",
    "WatchdogConfig",
    "kind_of",
]

Settings = (
    TrainConfig
    | EmbedConfig
    | MineConfig
    | JudgeConfig
    | EvaluateConfig
    | MergeConfig
    | RoundsConfig
    | PlanConfig
    | PlansConfig
    | BenchmarkConfig
    | DoctorConfig
)


def kind_of(values: Mapping[str, Any]) -> type[Settings]:
    """The dataclass that a whole config is read into."""
    if "doctor" in values:
        return DoctorConfig
    if "recipes" in values:
        return PlansConfig
    if "cases" in values:
        return BenchmarkConfig
    if "rounds" in values:
        return RoundsConfig
    if "models" in values:
        return MergeConfig
    if "run" in values:
        return PlanConfig
    if "loss" in values:
        return TrainConfig
    if "search" in values:
        return MineConfig
    if "judging" in values:
        return JudgeConfig
    return EvaluateConfig if "evaluation" in values else EmbedConfig
