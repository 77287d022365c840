"""Keys of a training run, and of the export of one."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from unime_jax.config.common import MeshConfig
from unime_jax.config.train_data import DataConfig, EvaluationConfig
from unime_jax.data.settings import Processing
from unime_jax.models.settings import LoraConfig
from unime_jax.training.loss_settings import (
    Contrastive,
    Distillation,
    JudgeDistillation,
    Matryoshka,
    contrastive_part,
)
from unime_jax.training.settings import (
    CheckpointConfig,
    ExecutionConfig,
    OptimizerConfig,
    ProfileConfig,
)


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """The end of a run that hangs: seconds without a sign of life (0: no limit).

    Preparing data is not watched.
    """

    seconds: float  # no step has finished, or no batch came
    # opening data and backbone, each tensor that is read, restoring, the last checkpoint
    setup_seconds: float
    compile_seconds: float  # the training step
    evaluation_seconds: float  # `evaluation.rows` items, with the compilation before them
    export_seconds: float  # each tensor that is written, each part of the self-check
    exit: bool  # end the process with status 75; all stacks are left in <workdir> either way


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """The model in <workdir>/hf."""

    checkpoint: Literal["newest", "best"]  # which one; the best needs `checkpoint.keep_best`
    # of the weights; None: as `execution.dtype` chooses
    dtype: Literal["float32", "bfloat16"] | None
    adapter: bool  # also write <workdir>/hf_adapter in PEFT's format
    verify: bool  # repeat the self-check in a new process, on the CPU in float32
    # instructions by name for sentence-transformers, "query" and "document" if they differ
    prompts: Mapping[str, str]
    # numbers of an embedding that users of the folder get if they ask for no other; None: all, or
    # as the backbone's own folder says
    truncate_dim: int | None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run, or the export of one."""

    job: Literal["train", "export"]  # what to do with this config
    seed: int  # of initial weights and of the order of the data
    # of the whole run; 0: as `epochs` says; without either, an export is of the backbone itself
    steps: int
    epochs: float  # passes over the rows of `data.train`, in the place of `steps`; 0: none
    batch_size: int  # pairs in one softmax, over all devices
    # rows of the longest bucket that are encoded at once: memory, not results; 0: by their size
    chunk_size: int
    log_every: int  # steps from one line of metrics.jsonl to the next
    max_skipped: int  # non-finite steps in a row before the run gives up
    infonce_steps: int  # steps of plain InfoNCE before `loss` applies, for models that start random
    backbone: str  # a folder or a hub id, of a model or of a PEFT adapter
    revision: str | None  # of a hub id: branch, tag or commit; None: its main branch as it is now
    init_from: str  # work directory of a run whose export takes the backbone's place; "": none
    processing: Processing | None  # None: as the backbone was exported or published
    init: Literal["pretrained", "random"]  # the backbone's weights, or its configuration only
    # (path regex, whether it is trained); the first that matches decides. None: the adapters, or
    # all parameters of a model without
    trainable: Sequence[tuple[str, bool]] | None
    lora: LoraConfig
    mesh: MeshConfig
    loss: Contrastive | Distillation | JudgeDistillation
    matryoshka: Matryoshka
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    # where compiled programs are kept for later starts: a folder; "auto": as
    # `compilation_cache.folder_for` says; "": what JAX itself is told by its environment
    compilation_cache: str
    profile: ProfileConfig
    watchdog: WatchdogConfig
    data: DataConfig
    evaluation: EvaluationConfig
    execution: ExecutionConfig
    export: ExportConfig
    wandb_project: str | None  # metrics go to this Weights & Biases project, too; None: they don't

    def __post_init__(self) -> None:
        if not 0 <= self.epochs < float("inf"):
            raise ValueError(f"config.epochs={self.epochs} must be a number, and not negative.")
        if self.steps and self.epochs:
            raise ValueError(
                f"config.steps={self.steps} and config.epochs={self.epochs:g}: a run has one "
                "length; set one of them to 0."
            )
        kept, buckets = self.execution.kept_chunks, self.data.buckets
        if kept and len(kept) != len(buckets):
            raise ValueError(
                f"config.execution.kept_chunks={tuple(kept)} must have one number for each of the "
                f"{len(buckets)} buckets of config.data.buckets, or be empty."
            )
        distils = isinstance(self.loss, Distillation)
        contrast = contrastive_part(self.loss)[1]
        uses_teacher = distils or (contrast is not None and contrast.uses_teacher)
        if uses_teacher != bool(self.data.teacher):
            raise ValueError(
                f"config.loss.objective={self.loss.objective!r} and config.data.teacher="
                f"{self.data.teacher!r}: distillation needs a teacher's embeddings, and so does a "
                "contrastive loss with teacher_weight or teacher_matching_weight above 0; nothing "
                "else uses them."
            )
        ignored = {"data.suffix": self.data.suffix, "evaluation.texts": self.evaluation.texts}
        for key, value in ignored.items():
            if value and not distils:
                raise ValueError(f"config.{key}={value!r}: only distillation has a use for it.")
        if isinstance(self.loss, Contrastive) and not self.data.negatives:
            explicit = {
                "loss.closed_sources": bool(self.loss.closed_sources),
                "loss.hardness_on": self.loss.hardness_on == "explicit" and self.loss.hardness > 0,
            }
            for key, asked in explicit.items():
                if asked:
                    raise ValueError(
                        f"config.{key} is about explicit negatives, but config.data.negatives=0 "
                        "reads none: set it to how many a pair has."
                    )
        if distils and self.infonce_steps:
            raise ValueError(
                f"config.infonce_steps={self.infonce_steps}: distillation has no InfoNCE to begin "
                "with; set it to 0."
            )
        if isinstance(self.loss, JudgeDistillation) and self.data.negatives < 1:
            raise ValueError(
                f"config.data.negatives={self.data.negatives}: config.loss.objective="
                f"{self.loss.objective!r} compares a query's own candidates; set it to 1 or more "
                "(UniME-V2: 8)."
            )
