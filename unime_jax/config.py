"""Every key of a run, and what it means: the dataclasses that a ConfigDict is read into."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from unime_jax.backbones.processing import Processing
from unime_jax.data.items import Side
from unime_jax.models import attention, scan
from unime_jax.models.lora import LoraConfig
from unime_jax.objectives import Contrastive, Distillation
from unime_jax.optimizer import OptimizerConfig
from unime_jax.paths import Rules


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one may be -1: the devices that the other two leave."""

    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Save every `every` steps (and at the end, and on SIGTERM); keep the newest `keep`."""

    every: int
    keep: int


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Trace so many `steps` from step `first_step` on into <workdir>/profile; 0 steps: none."""

    first_step: int
    steps: int


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """When nothing is done for so many seconds (0: for ever), leave all stacks in <workdir>.

    `seconds`: no step has finished, or no batch came. `setup_seconds`: opening data and backbone,
    each tensor that is read, restoring, the last checkpoint. `compile_seconds`: the step.
    `evaluation_seconds`: `evaluation.rows` items, with the compilation before them.
    `export_seconds`: each tensor that is written, each part of the self-check. Preparing data is
    not watched. `exit`: and end the process, with status 75.
    """

    seconds: float
    setup_seconds: float
    compile_seconds: float
    evaluation_seconds: float
    export_seconds: float
    exit: bool


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """A module with `prepare(folder, seed=, train_rows=, eval_rows=)` to run first; "": none."""

    module: str
    seed: int
    train_rows: int
    eval_rows: int


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how it is cut into batches.

    `train` is a TFDS folder in MMEB-train's columns, below `folder`. `weights`: its sources and
    how often each is drawn (empty: all, equally). `homogeneous`: examples in a row from one source.
    `negatives`: explicit negatives a pair, at most. `suffix`: an instruction after every text,
    never cut off. `teacher`: a folder of embeddings of the items by a teacher, below `folder`; "":
    none. `buckets`: (tokens, tiles, share of the rows) from small to large.
    """

    folder: str
    prepare: PrepareConfig
    train: str
    weights: Mapping[str, float]
    homogeneous: int
    negatives: int
    suffix: str
    teacher: str
    buckets: tuple[tuple[int, int, float], ...]
    workers: int
    max_bad_share: float


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """TFDS folders of evaluation data ("" leaves a part out) and rows encoded per call.

    `limit`: the first rows of each dataset, 0 for all. `image_prompt` goes with the images of the
    composition sets; their captions are taken as they are. `texts`: its split "test", in
    MMEB-train's columns, holds the texts that are compared with `data.teacher`'s view of them.
    """

    mmeb: str
    composition: str
    texts: str
    images: str
    image_prompt: str
    rows: int
    limit: int


@dataclasses.dataclass(frozen=True)
class ExecutionConfig:
    """`dtype`: of activations. `recompute`: encode chunks twice instead of keeping activations.

    `frozen_dtype`: of weights that are not trained; with "int8" the kernels of linear layers are
    codes with a scale per output channel, and the rest is bfloat16.
    """

    dtype: Literal["float32", "bfloat16"]
    frozen_dtype: Literal["float32", "bfloat16", "int8"]
    remat: scan.Remat
    attention: attention.Implementation
    recompute: bool


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What <workdir>/hf is like.

    `dtype`: of the weights. `adapter`: also write <workdir>/hf_adapter in PEFT's format. `verify`:
    repeat the self-check in a new process, on the CPU in float32. `prompts`: instructions by name
    for sentence-transformers, "query" and "document" among them if they differ.
    """

    dtype: Literal["float32", "bfloat16"]
    adapter: bool
    verify: bool
    prompts: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What job "plan" compiles for, and what it takes batches to hold.

    `topologies`: slices, for example "v5e:4x4"; "2*v5e:4x4" are two of them. `rows`: the share of
    the live rows in each bucket; empty: all in the largest, the most there can be. `tokens`: real
    tokens of a row, by bucket; empty: as many as it holds. `model`: a folder with the config.json
    and the tokenizer that stand in for the backbone's; "": the backbone's own, without weights.
    `teacher`: width of a teacher's embeddings, for distillation. `suggest`: look for changes that
    make it fit where it does not, and faster where it leaves room; each try compiles.
    """

    topologies: tuple[str, ...]
    rows: tuple[float, ...]
    tokens: tuple[int, ...]
    model: str
    teacher: int
    suggest: bool


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run, or the export of one.

    Paths in `data` and `evaluation` are relative to `data.folder`.

    `init`: "pretrained" reads the backbone's weights, "random" takes its configuration only.
    `init_from`: the work directory of an earlier run whose exported model takes the backbone's
    place (UniME: stage 2 starts from stage 1); "": none.
    `infonce_steps`: steps of plain InfoNCE before `loss` applies, for models that start at random.
    `max_skipped`: give up after so many non-finite steps in a row.
    `compilation_cache`: a folder of compiled programs that later starts use again; "auto":
    <workdir>/compilation_cache, except on CPUs, whose programs may not run on the next machine;
    "": what JAX itself is told by its environment.
    """

    job: Literal["train", "export", "plan"]
    seed: int
    steps: int
    batch_size: int
    chunk_size: int
    log_every: int
    max_skipped: int
    infonce_steps: int
    backbone: str
    init_from: str
    processing: Processing
    init: Literal["pretrained", "random"]
    trainable: Rules[bool]
    lora: LoraConfig
    mesh: MeshConfig
    loss: Contrastive | Distillation
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    compilation_cache: str
    profile: ProfileConfig
    watchdog: WatchdogConfig
    data: DataConfig
    evaluation: EvaluationConfig
    execution: ExecutionConfig
    export: ExportConfig
    plan: PlanConfig
    wandb_project: str | None

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
    """What is embedded: each distinct item once, in order.

    Paths are relative to `folder`. `datasets`: TFDS folders in MMEB-train's columns, `splits` of
    them (empty: all), `sides` of every row. `texts`: files with a text a line.
    """

    folder: str
    datasets: tuple[str, ...]
    splits: tuple[str, ...]
    sides: tuple[Side, ...]
    texts: tuple[str, ...]
    max_bad_share: float


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """Files of `block` vectors: what a run that is killed may lose is one of them."""

    block: int
    dtype: Literal["float16", "float32"]


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """Embeddings of a corpus by a model, on disk.

    `processing`: None as `Embedder` has it. `prefix`, `suffix`: instructions around every text.
    `dtype`: as of `Embedder.from_pretrained`. `mesh`: of each process's own devices.
    """

    job: Literal["embed", "plan"]
    backbone: str
    processing: Processing | None
    prefix: str
    suffix: str
    max_length: int
    batch_size: int
    dtype: Literal["float32", "bfloat16", "int8"]
    mesh: MeshConfig
    data: CorpusConfig
    output: OutputConfig
    plan: PlanConfig


@dataclasses.dataclass(frozen=True)
class PlansConfig:
    """Plans of many runs at once: whole configs by name, of training and of embedding."""

    job: Literal["plan"]
    recipes: Mapping[str, Any]
