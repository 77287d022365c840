"""Every key of a run: the dataclasses that a ConfigDict is read into. Imports plain settings only.

The comment beside a key, or above it, is its text in --help and --print_config.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from unime_jax.data.settings import (
    Bucket,
    Instructions,
    MinedUse,
    Processing,
    Side,
    check_keys,
)
from unime_jax.models.settings import LoraConfig
from unime_jax.training.settings import (
    CheckpointConfig,
    Contrastive,
    Distillation,
    ExecutionConfig,
    JudgeDistillation,
    OptimizerConfig,
    ProfileConfig,
    contrastive_part,
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one may be -1: the devices that the other two leave."""

    data: int  # replicas of the weights; the batch is spread over them
    fsdp: int  # parts of the weights; the batch is spread over them, too
    tensor: int  # parts of each layer, whose activations are spread over them


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
class PrepareConfig:
    """Data that is generated before the run, where it is missing."""

    module: str  # with `prepare(folder, seed=, train_rows=, eval_rows=)`; "": none
    seed: int  # of what is generated
    train_rows: int  # of each training source
    eval_rows: int  # of each evaluation dataset


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Training data and its batches."""

    folder: str  # that all paths of `data` and `evaluation` are relative to
    prepare: PrepareConfig
    train: str  # pairs below `folder`: a folder, a file, or a glob of files; see docs/data.md
    # which column is the query, query_image, positive, positive_image, negatives,
    # negatives_image, scores, score or id; empty: told by their names
    columns: Mapping[str, str]
    # retrieval sets, below `folder`: pairs as of `train`, or folders in BEIR's layout; "": none
    eval: str
    weights: Mapping[str, float]  # sources, and how often each is drawn; empty: all, equally
    # T: in place of `weights`, sources are drawn in proportion to rows^(1 / T), 1: as often as they
    # have rows, the higher, the more alike; None: by `weights`
    size_temperature: float | None
    first_rows: int  # of each source that are used, from its head; 0: all
    first_rows_by_source: Mapping[str, int]  # of single sources, in place of `first_rows`
    source_run: int  # examples in a row from one source; 0: mixed freely
    # batches of queries with images and batches of queries without, never both in one, as LLaVE's
    # sampler makes them; the queries of a source must be alike
    split_modalities: bool
    negatives: int  # explicit negatives a pair, at most
    # work directory of --config=experiments/mine.py, whose negatives are joined; "": none
    mined: str
    mined_use: MinedUse  # "beside" the negatives that rows have of their own, or "instead" of them
    suffix: str  # an instruction after every text, never cut off; distillation only
    # a teacher's embeddings of the items, below `folder`, as job embed writes them; "": none
    teacher: str
    # shapes of rows, from small to large: Bucket(tokens=128, tiles=0, share=1.0); (): chosen by the
    # lengths of a sample of the rows
    buckets: tuple[Bucket, ...]
    workers: int  # processes that read and preprocess; 0: threads of this one
    max_bad_share: float  # of the examples read that may be unusable before the run stops

    def __post_init__(self) -> None:
        check_keys(self.columns, "config.data.columns")
        if self.size_temperature is not None and not self.size_temperature > 0:
            raise ValueError(
                f"config.data.size_temperature={self.size_temperature} must be above 0; None: "
                "sources are drawn by config.data.weights"
            )
        if self.size_temperature is not None and self.weights:
            raise ValueError(
                f"config.data.size_temperature={self.size_temperature} and config.data.weights="
                f"{dict(self.weights)} both say how often sources are drawn: leave one of them out"
            )
        _check_first_rows(self.first_rows, self.first_rows_by_source)
        if self.mined and self.negatives < 1:
            raise ValueError(
                f"config.data.mined={self.mined!r} with config.data.negatives={self.negatives}: "
                "none of the mined negatives would be read; set it to how many a pair has at most."
            )


def _check_first_rows(first_rows: int, by_source: Mapping[str, int]) -> None:
    counts = {"": first_rows, **by_source}
    for name, rows in counts.items():
        if rows < 0:
            key = f"first_rows_by_source[{name!r}]" if name else "first_rows"
            raise ValueError(
                f"config.data.{key}={rows}: it is the rows of a source that are used; 0: all"
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation data below `data.folder`; "" leaves a part out."""

    every: int  # steps from one evaluation to the next during training; 0: only at the ends
    mmeb: str  # datasets in MMEB-eval's columns, in any format of docs/data.md
    # whose words go around MMEB's rows: "data", as the files have them; "vlm2vec"; "qwen3_vl"
    instructions: Instructions
    composition: str  # SugarCrepe-style captions, in any format
    # pairs (see `data.columns`), whose source "test" is compared with the teacher's view
    texts: str
    images: str  # of the two first: a TFDS folder with the columns path and image, or plain files
    image_prompt: str  # goes with the images of the composition sets; captions are taken as is
    rows: int  # encoded a call
    limit: int  # the first rows of each dataset; 0: all


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
        distils = isinstance(self.loss, Distillation)
        key, contrast = contrastive_part(self.loss)
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
        if distils and not self.data.buckets:
            raise ValueError(
                "config.data.buckets is empty: lengths are measured for pairs only. Distillation "
                "needs its buckets named, such as (Bucket(tokens=64, tiles=0),)."
            )


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """The items that are embedded: each distinct one once, in order."""

    folder: str  # that the paths below are relative to
    datasets: tuple[str, ...]  # pairs, each as `data.train` of a training run
    columns: Mapping[str, str]  # as in a training run
    splits: tuple[str, ...]  # sources of the datasets; empty: all
    sides: tuple[Side, ...]  # of every row
    texts: tuple[str, ...]  # files with a text a line
    max_bad_share: float  # of the items that may be unusable before the job stops

    def __post_init__(self) -> None:
        check_keys(self.columns, "config.data.columns")


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """Files of vectors. A run that is killed loses one of them at most."""

    block: int  # vectors of a file
    dtype: Literal["float16", "float32"]  # of the vectors


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """Embeddings of a corpus by a model, on disk."""

    job: Literal["embed"]  # what to do with this config
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


@dataclasses.dataclass(frozen=True)
class MineDataConfig:
    """The rows that are mined for, and the candidates."""

    folder: str  # that all paths of `data` are relative to
    train: str  # pairs, as in a training run
    columns: Mapping[str, str]  # as in a training run
    sources: tuple[str, ...]  # that are mined for; (): all
    first_rows: int  # of each source that are used, from its head; 0: all
    first_rows_by_source: Mapping[str, int]  # of single sources, in place of `first_rows`
    # candidates, below `folder`: items or pairs in any format, or a .txt with a text a line;
    # "": the positives and negatives of the rows themselves
    corpus: str
    max_bad_share: float  # of the items that may be unusable before the job stops

    def __post_init__(self) -> None:
        check_keys(self.columns, "config.data.columns")
        _check_first_rows(self.first_rows, self.first_rows_by_source)


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Which candidates become negatives.

    Positives of an equal query, and the query itself, never do.
    """

    negatives: int  # of a row, at most
    # the first and the last rank that negatives are taken from; 1 is the best candidate that the
    # limits below leave
    ranks: tuple[int, int]
    # scores are cosines; above any of these limits a candidate counts as a false negative
    margin: float | None  # score <= score of the positive - margin; None: no limit
    ratio: float | None  # score <= ratio * score of the positive; None: no limit
    max_score: float | None  # score <= max_score; None: no limit
    # work directory of job mine by another model on the same rows; of the ranks, candidates are
    # left out whose score there is above the positive's - guide_margin; "": none
    guide: str
    guide_margin: float
    pool: Literal["all", "source"]  # candidates: of all sources, or of the row's own
    own_negatives: bool  # whether negatives that a row has already may be mined for it
    # of the ranks, in order: the first; every `interval`-th and then those between, as UniME-V2; or
    # a draw by `seed`
    choice: Literal["first", "cyclic", "random"]
    interval: int  # of "cyclic"
    fill: bool  # repeat negatives in turn where a row has fewer than `negatives`, as UniME-V2
    seed: int  # of "random"
    method: Literal["exact", "approximate"]  # "approximate": faster on TPU, by approx_max_k
    rows: int  # of a block of the table, which are searched at once: memory, not results
    columns: int  # candidates that they are compared with at once: memory, not results

    def __post_init__(self) -> None:
        first, last = self.ranks
        if not 1 <= first <= last:
            raise ValueError(
                f"config.search.ranks={self.ranks}: the first rank is 1 or more, and the last not "
                "before it"
            )
        for key in ("negatives", "interval", "rows", "columns"):
            if getattr(self, key) < 1:
                raise ValueError(f"config.search.{key}={getattr(self, key)} must be at least 1")
        if last - first + 1 < self.negatives and not self.fill:
            raise ValueError(
                f"config.search.ranks={self.ranks} hold {last - first + 1} candidates, fewer than "
                f"config.search.negatives={self.negatives}; widen them, or set config.search.fill"
            )


@dataclasses.dataclass(frozen=True)
class MineConfig:
    """Negatives for the rows of a training run, by a model's similarities."""

    job: Literal["mine"]  # what to do with this config
    backbone: str  # a folder or a hub id
    revision: str | None  # as in a training run
    processing: Processing | None  # None: as the backbone was exported or published
    # instructions before every text; None: the folder's prompt "query" or "document" for
    # sentence-transformers, or its default
    query_prefix: str | None
    candidate_prefix: str | None
    suffix: str  # an instruction after every text
    # tokens of an item, image tokens and instructions included; None: the folder's own
    max_length: int | None
    truncate_dim: int | None  # how many numbers of an embedding are kept; None: the folder's own
    batch_size: int  # items encoded at once: memory, not results
    dtype: Literal["float32", "bfloat16", "int8"]  # as of `Embedder.from_pretrained`
    compilation_cache: str  # as in a training run
    mesh: MeshConfig  # of each process's own devices
    data: MineDataConfig
    search: SearchConfig
    output: OutputConfig  # vectors of queries and candidates

    def __post_init__(self) -> None:
        if self.data.corpus and self.search.pool == "source":
            raise ValueError(
                f"config.data.corpus={self.data.corpus!r} with config.search.pool='source': a "
                "corpus named apart is one pool for all rows; use pool='all'."
            )


@dataclasses.dataclass(frozen=True)
class JudgeDataConfig:
    """The pairs whose candidates are judged, and the files of the rows that are written."""

    folder: str  # that `train` is relative to
    train: str  # pairs, as `data.train` of a training run
    columns: Mapping[str, str]  # as in a training run
    mined: str  # as in a training run: negatives of job mine are judged, too; "": none
    mined_use: MinedUse  # as in a training run
    block: int  # rows of a file; a run that is killed loses one of them at most
    max_bad_share: float  # of the rows that may be unusable before the job stops

    def __post_init__(self) -> None:
        check_keys(self.columns, "config.data.columns")
        if self.block < 1:
            raise ValueError(f"config.data.block={self.block}: a file has at least one row")


@dataclasses.dataclass(frozen=True)
class JudgingConfig:
    """The question to the judge, and what is made of its scores."""

    instruction: str  # before the query and the candidate
    yes: str  # the answer of a candidate that meets the query; its first token counts
    no: str  # the other answer
    # divides the logit of an answer that the prompt has in it, as transformers' `generate` does
    # (Qwen2.5-VL: 1.05, which UniME-V2's published scores have); 1: none
    repetition_penalty: float
    # drop negatives whose score is above the positive's less this (UniME-V2: 0.01); None: none
    margin: float | None
    keep: int  # negatives of a row at the end, spread over their ranks (UniME-V2: 10); 0: all

    def __post_init__(self) -> None:
        if not self.repetition_penalty > 0 or self.keep < 0:
            raise ValueError(
                f"config.judging.repetition_penalty={self.repetition_penalty} must be above 0"
                f" (1: none), and config.judging.keep={self.keep} not below 0 (0: all)."
            )


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Scores of the candidates of training pairs, by a multimodal model with a head."""

    job: Literal["judge"]  # what to do with this config
    backbone: str  # a folder or a hub id
    revision: str | None  # as in a training run
    processing: Processing | None  # of images; the words are `judging`'s and the chat template's
    # tokens of a query and a candidate with their images; None: the folder's own
    max_length: int | None
    batch_size: int  # pairs judged at once: memory, not results
    dtype: Literal["float32", "bfloat16"]  # of weights and activations; logits are float32
    compilation_cache: str  # as in a training run
    mesh: MeshConfig  # of each process's own devices
    judging: JudgingConfig
    data: JudgeDataConfig


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """The plan of a run on slices of TPUs, and the batches that it assumes."""

    job: Literal["plan"]  # what to do with this config
    name: str  # of the plan's lines in the table
    topologies: tuple[str, ...]  # slices, such as "v5e:4x4"; "2*v5e:4x4" are two of them
    rows: tuple[float, ...]  # share of the live rows by bucket; empty: all in the largest
    tokens: tuple[int, ...]  # real tokens of a row, by bucket; empty: as many as it holds
    # a folder with the config.json and tokenizer that stand in for the backbone's; "": its own
    model: str
    teacher: int  # width of a teacher's embeddings, for distillation
    suggest: bool  # look for changes that fit, or that fill a slice; each try compiles
    run: TrainConfig | EmbedConfig  # what is planned: a whole config


@dataclasses.dataclass(frozen=True)
class EvaluateWatchdogConfig:
    """What happens when nothing goes on for so many seconds (0: it may for ever)."""

    setup_seconds: float  # opening data and backbone, each tensor that is read
    evaluation_seconds: float  # a batch of items, with the compilation before it
    exit: bool  # end the process with status 75; all stacks are left in <workdir> either way


@dataclasses.dataclass(frozen=True)
class EvaluateDataConfig:
    """Where evaluation data are, and how they are made if they are absent."""

    folder: str  # that all paths of `data` and `evaluation` are relative to
    prepare: PrepareConfig
    # retrieval sets, below `folder`: pairs, or folders in BEIR's layout; "": none
    eval: str
    columns: Mapping[str, str]  # of pairs here and in `evaluation.texts`, as in a training run
    teacher: str  # a teacher's embeddings of `evaluation.texts`, below `folder`; "": none
    suffix: str  # an instruction after every one of these texts, never cut off

    def __post_init__(self) -> None:
        check_keys(self.columns, "config.data.columns")


@dataclasses.dataclass(frozen=True)
class AgreementConfig:
    """The divergence of held-out texts' similarities from a teacher's, as `loss` of a training."""

    temperature: float  # the model's similarities are divided by it
    teacher_temperature: float | None  # the teacher's are divided by it; None: the same
    # the distribution that the divergence is taken under
    direction: Literal["teacher_student", "student_teacher", "symmetric"]
    mask_diagonal: bool  # leave out the similarity of a text with itself


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """Evaluation data below `data.folder`, as in a training run; "" leaves a part out."""

    mmeb: str  # datasets in MMEB-eval's columns, in any format of docs/data.md
    # whose words go around MMEB's rows: "data", as the files have them; "vlm2vec"; "qwen3_vl"
    instructions: Instructions
    composition: str  # SugarCrepe-style captions, in any format
    # a folder of benchmark sets that data_pipelines.benchmarks has prepared
    benchmarks: str
    sets: tuple[str, ...]  # names of these sets; (): all that are prepared
    # pairs (see `data.columns`), whose source "test" is compared with the teacher's view
    texts: str
    agreement: AgreementConfig
    # of the two first: a TFDS folder with the columns path and image, or plain files
    images: str
    image_prompt: str  # goes with the images of composition and caption sets
    caption_prompt: str  # of their captions; {caption} stands for the caption
    limit: int  # the first rows of each dataset, but for the texts; 0: all
    # a local folder (not below `data.folder`) that vectors of items are kept in, for other runs;
    # "auto": below $XDG_CACHE_HOME (~/.cache), of 16 GiB at most; "": none
    cache: str

    def __post_init__(self) -> None:
        if "://" in self.cache:
            raise ValueError(
                f"config.evaluation.cache={self.cache!r} must be a local folder, as vectors are "
                'written and read often; "auto" is one below ~/.cache, and "" is none.'
            )
        if self.sets and not self.benchmarks:
            raise ValueError(
                f"config.evaluation.sets={list(self.sets)} are names of prepared sets, but "
                "config.evaluation.benchmarks names no folder of them."
            )
        if "{caption}" not in self.caption_prompt:
            raise ValueError(
                f"config.evaluation.caption_prompt={self.caption_prompt!r} has no {{caption}}, "
                "where the caption goes."
            )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Scores of a model, apart from any training."""

    job: Literal["evaluate"]  # what to do with this config
    # a folder or a hub id, of a model or of a PEFT adapter; or a training run's work directory,
    # whose export is meant
    backbone: str
    # what runs the backbone; "sentence_transformers": any of its folders or hub ids, as a peer
    library: Literal["unime_jax", "sentence_transformers"]
    # of a peer: an item with text and image is the sum of their embeddings
    late_fusion: bool
    revision: str | None  # of a hub id: branch, tag or commit; None: its main branch as it is now
    processing: Processing | None  # None: as the backbone was exported or published
    # tokens of an item, image tokens included; None: the folder's own
    max_length: int | None
    batch_size: int  # items encoded at once: memory, not results
    dtype: Literal["float32", "bfloat16", "int8"]  # as of `Embedder.from_pretrained`
    compilation_cache: str  # as in a training run
    mesh: MeshConfig  # of all devices
    watchdog: EvaluateWatchdogConfig
    data: EvaluateDataConfig
    evaluation: TasksConfig

    def __post_init__(self) -> None:
        chosen = self.evaluation
        named = (chosen.mmeb, chosen.composition, chosen.benchmarks, chosen.texts, self.data.eval)
        if not any(named):
            raise ValueError(
                "config.data.eval, config.evaluation.mmeb, composition, benchmarks and texts name "
                "nothing to evaluate on."
            )
        texts, teacher = chosen.texts, self.data.teacher
        if bool(texts) != bool(teacher):
            raise ValueError(
                f"config.evaluation.texts={texts!r} and config.data.teacher={teacher!r}: held-out "
                "texts are compared with a teacher's embeddings of them; set both, or neither."
            )
        if self.data.suffix and not texts:
            raise ValueError(
                f"config.data.suffix={self.data.suffix!r}: only config.evaluation.texts have a use "
                "for it."
            )
        self._check_library()

    def _check_library(self) -> None:
        if self.library == "unime_jax":
            if self.late_fusion:
                raise ValueError(
                    "config.late_fusion=True is for peers, with config.library="
                    "'sentence_transformers': models of this library embed text and image at once."
                )
            return
        if self.processing is not None:
            raise ValueError(
                f"config.processing is of this library's models; config.library={self.library!r} "
                "makes its inputs itself: leave it None."
            )
        if self.dtype == "int8":
            raise ValueError(
                f"config.dtype='int8': config.library={self.library!r} runs in float32 or bfloat16."
            )


@dataclasses.dataclass(frozen=True)
class PlansConfig:
    """Plans of many runs at once."""

    job: Literal["plan"]  # what to do with this config
    recipes: Mapping[str, PlanConfig]  # plans by name


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """One model of several of one family, by arithmetic on their weights."""

    job: Literal["merge"]  # what to do with this config
    # folders or hub ids, of models or of PEFT adapters; or work directories, whose export is meant
    models: tuple[str, ...]
    method: Literal["linear", "slerp", "ties", "dare_ties"]  # see docs/merging.md
    # of the models, in their order; (): equal. With slerp their ratio is the way between the two
    weights: tuple[float, ...]
    # as one of `models`: what all of them were trained from; ties and dare_ties only; "": none
    base: str
    density: float  # share of each difference from the base that is kept; ties and dare_ties only
    # whether sums of differences are divided by the weights of their terms; ties and dare_ties only
    normalize: bool
    scale: float  # factor of what is added to the base; ties and dare_ties only
    seed: int  # of what is dropped; dare_ties only
    processing: Processing | None  # None: as the models were exported or published
    max_length: int | None  # tokens of an item; None: the models' own, which must agree
    # of the weights; None: as the models have them, float32 if they differ
    dtype: Literal["float32", "bfloat16"] | None
    check_dtype: Literal["float32", "bfloat16"]  # that the merged model is run in to check it
    verify: bool  # repeat the self-check in a new process, on the CPU in float32
    compilation_cache: str  # as in a training run

    def __post_init__(self) -> None:
        if len(self.models) < 2 or (self.method == "slerp" and len(self.models) != 2):
            wanted = "two models" if self.method == "slerp" else "two models or more"
            raise ValueError(
                f"config.models={self.models}: config.method={self.method!r} merges {wanted}"
            )
        weights = self.weights
        if weights and len(weights) != len(self.models):
            raise ValueError(
                f"config.weights={weights} are {len(weights)}, and config.models are "
                f"{len(self.models)}: give one for each model, or () for equal ones"
            )
        if weights and (not all(map(math.isfinite, weights)) or not sum(weights) > 0):
            raise ValueError(f"config.weights={weights}: their sum must be above zero")
        if self.method == "slerp" and weights and min(weights) < 0:
            raise ValueError(f"config.weights={weights}: slerp takes none below zero")
        by_difference = self.method in ("ties", "dare_ties")
        if by_difference and not self.base:
            raise ValueError(
                f"config.base is empty: {self.method} merges differences from the model that all "
                "were trained from. Name its folder or hub id"
            )
        if self.base and not by_difference:
            raise ValueError(
                f"config.base={self.base!r}: config.method={self.method!r} has no use for it, "
                "only ties and dare_ties have"
            )
        if not 0 < self.density <= 1:
            raise ValueError(f"config.density={self.density} must be above 0 and at most 1")


Settings = (
    TrainConfig
    | EmbedConfig
    | MineConfig
    | JudgeConfig
    | EvaluateConfig
    | MergeConfig
    | PlanConfig
    | PlansConfig
)


def kind_of(values: Mapping[str, Any]) -> type[Settings]:
    """The dataclass that a whole config is read into."""
    if "recipes" in values:
        return PlansConfig
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
