"""Every key of a run, and what it means: the dataclasses that a ConfigDict is read into.

The comment beside a key, or above it, is what --help and --print_config say of it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.data.items import Side
from unime_jax.models import attention, scan
from unime_jax.models.lora import LoraConfig
from unime_jax.paths import Rules
from unime_jax.training.objectives import Contrastive, Distillation
from unime_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one may be -1: the devices that the other two leave."""

    data: int  # replicas of the weights; the batch is spread over them
    fsdp: int  # parts of the weights; the batch is spread over them, too
    tensor: int  # parts of each layer, whose activations are spread over them


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved, besides at its end and on SIGTERM."""

    every: int  # steps from one save to the next
    keep: int  # newest checkpoints that are kept
    # also the one with the highest "All" by `evaluation.every`; distillation: neighbour overlap
    keep_best: bool


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Steps that are traced into <workdir>/profile."""

    first_step: int  # the first that is traced
    steps: int  # how many are traced; 0: none


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """What happens when nothing goes on for so many seconds (0: it may for ever).

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
class PrepareConfig:
    """Data that is generated before the run, where it is missing."""

    module: str  # with `prepare(folder, seed=, train_rows=, eval_rows=)`; "": none
    seed: int  # of what is generated
    train_rows: int  # of each training source
    eval_rows: int  # of each evaluation dataset


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how it is cut into batches."""

    folder: str  # that all paths of `data` and `evaluation` are relative to
    prepare: PrepareConfig
    train: str  # a TFDS folder in MMEB-train's columns, below `folder`
    weights: Mapping[str, float]  # sources, and how often each is drawn; empty: all, equally
    homogeneous: int  # examples in a row from one source; 0: mixed freely
    negatives: int  # explicit negatives a pair, at most
    suffix: str  # an instruction after every text, never cut off; distillation only
    teacher: str  # a teacher's embeddings of the items, below `folder`; "": none
    # (tokens, tiles, share of all rows that it has room for) from small to large
    buckets: tuple[tuple[int, int, float], ...]
    workers: int  # processes that read and preprocess; 0: threads of this one
    max_bad_share: float  # of the examples read that may be unusable before the run stops


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation data below `data.folder`; "" leaves a part out."""

    every: int  # steps from one evaluation to the next during training; 0: only at the ends
    mmeb: str  # a TFDS folder in MMEB-eval's columns
    composition: str  # a TFDS folder of SugarCrepe-style captions
    # a TFDS folder in MMEB-train's columns, whose split "test" is compared with the teacher's view
    texts: str
    images: str  # of the two first: a TFDS folder with the columns path and image, or plain files
    image_prompt: str  # goes with the images of the composition sets; captions are taken as is
    rows: int  # encoded a call
    limit: int  # the first rows of each dataset; 0: all


@dataclasses.dataclass(frozen=True)
class ExecutionConfig:
    """How the model is computed: dtypes, memory against time."""

    dtype: Literal["float32", "bfloat16"]  # of activations
    # of weights that are not trained; "int8": codes with a scale per output channel for the
    # kernels of linear layers, and bfloat16 for the rest
    frozen_dtype: Literal["float32", "bfloat16", "int8"]
    remat: scan.Remat  # what a layer computes again when gradients are taken: memory against time
    attention: attention.Implementation  # "cudnn" on GPUs only
    recompute: bool  # encode chunks twice (GradCache) instead of keeping activations


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What <workdir>/hf is like."""

    checkpoint: Literal["newest", "best"]  # which one; the best needs `checkpoint.keep_best`
    dtype: Literal["float32", "bfloat16"]  # of the weights
    adapter: bool  # also write <workdir>/hf_adapter in PEFT's format
    verify: bool  # repeat the self-check in a new process, on the CPU in float32
    # instructions by name for sentence-transformers, "query" and "document" if they differ
    prompts: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What job "plan" compiles for, and what it takes batches to hold."""

    topologies: tuple[str, ...]  # slices, such as "v5e:4x4"; "2*v5e:4x4" are two of them
    rows: tuple[float, ...]  # share of the live rows by bucket; empty: all in the largest
    tokens: tuple[int, ...]  # real tokens of a row, by bucket; empty: as many as it holds
    # a folder with the config.json and tokenizer that stand in for the backbone's; "": its own
    model: str
    teacher: int  # width of a teacher's embeddings, for distillation
    suggest: bool  # look for changes that fit, or that fill a slice; each try compiles


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run, or the export of one."""

    job: Literal["train", "export", "plan"]  # what to do with this config
    seed: int  # of initial weights and of the order of the data
    steps: int  # of the whole run; an export of 0 steps is the backbone itself
    batch_size: int  # pairs in one softmax, over all devices
    chunk_size: int  # rows of the longest bucket that are encoded at once: memory, not results
    log_every: int  # steps from one line of metrics.jsonl to the next
    max_skipped: int  # non-finite steps in a row before the run gives up
    infonce_steps: int  # steps of plain InfoNCE before `loss` applies, for models that start random
    backbone: str  # a folder or a hub id, of a model or of a PEFT adapter
    revision: str | None  # of a hub id: branch, tag or commit; None: its main branch as it is now
    init_from: str  # work directory of a run whose export takes the backbone's place; "": none
    processing: Processing
    init: Literal["pretrained", "random"]  # the backbone's weights, or its configuration only
    trainable: Rules[bool]  # (path regex, whether it is trained); the first that matches decides
    lora: LoraConfig
    mesh: MeshConfig
    loss: Contrastive | Distillation
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
    plan: PlanConfig
    wandb_project: str | None  # metrics go to this Weights & Biases project, too; None: they don't

    def __post_init__(self) -> None:
        distils = isinstance(self.loss, Distillation)
        if distils != bool(self.data.teacher):
            raise ValueError(
                f"config.loss.objective={self.loss.objective!r} and config.data.teacher="
                f"{self.data.teacher!r}: distillation needs a teacher's embeddings, and nothing "
                "else uses them."
            )
        ignored = {"data.suffix": self.data.suffix, "evaluation.texts": self.evaluation.texts}
        for key, value in ignored.items():
            if value and not distils:
                raise ValueError(f"config.{key}={value!r}: only distillation has a use for it.")
        if distils and self.infonce_steps:
            raise ValueError(
                f"config.infonce_steps={self.infonce_steps}: distillation has no InfoNCE to begin "
                "with; set it to 0."
            )


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """What is embedded: each distinct item once, in order."""

    folder: str  # that the paths below are relative to
    datasets: tuple[str, ...]  # TFDS folders in MMEB-train's columns
    splits: tuple[str, ...]  # of the datasets; empty: all
    sides: tuple[Side, ...]  # of every row
    texts: tuple[str, ...]  # files with a text a line
    max_bad_share: float  # of the items that may be unusable before the job stops


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """Files of vectors: what a run that is killed may lose is one of them."""

    block: int  # vectors of a file
    dtype: Literal["float16", "float32"]  # of the vectors


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """Embeddings of a corpus by a model, on disk."""

    job: Literal["embed", "plan"]  # what to do with this config
    backbone: str  # a folder or a hub id
    revision: str | None  # as in a training run
    processing: Processing | None  # None: as the backbone was exported or published
    # an instruction before every text; None: the folder's default for sentence-transformers
    prefix: str | None
    suffix: str  # an instruction after every text
    # tokens of an item, image tokens and instructions included; None: the folder's own
    max_length: int | None
    truncate_dim: int | None  # how many numbers of an embedding are kept; None: the folder's own
    batch_size: int  # items encoded at once: memory, not results
    dtype: Literal["float32", "bfloat16", "int8"]  # as of `Embedder.from_pretrained`
    compilation_cache: str  # as in a training run
    mesh: MeshConfig  # of each process's own devices
    data: CorpusConfig
    output: OutputConfig
    plan: PlanConfig


@dataclasses.dataclass(frozen=True)
class PlansConfig:
    """Plans of many runs at once."""

    job: Literal["plan"]  # what to do with this config
    recipes: Mapping[str, Any]  # whole configs by name, of training and of embedding


Settings = TrainConfig | EmbedConfig | PlansConfig


def kind_of(values: Mapping[str, Any]) -> type[Settings]:
    """The dataclass that a whole config is read into."""
    if "recipes" in values:
        return PlansConfig
    return TrainConfig if "loss" in values else EmbedConfig
