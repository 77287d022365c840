"""Settings of training: loss, optimizer, execution, checkpoints, profile. Plain data, without JAX.

The comment beside a key, or above it, is its text in --help.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from unime_jax.data.settings import check_dims
from unime_jax.models.settings import AttentionChoice, RematChoice


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """The options of `losses.contrastive`, by the same names."""

    objective: Literal["contrastive"]  # InfoNCE, UniME's and LLaVE's losses
    temperature: float  # similarities are divided by it
    hard_negatives: int | None  # keep so many hardest negatives (UniME: 8); None: all
    # drop candidates that are more similar than the positive by this (UniME: 0.1); None: none
    false_negative_margin: float | None
    hardness: float  # weight of a negative by its similarity (LLaVE: 9); 0: none
    symmetric: bool  # also candidates to queries (LLaVE)
    # columns of the score matrix at a time, round a ring of devices; None: all at once
    column_block: int | None
    mask_same_target: bool  # equal targets are never each other's negatives
    # what `hardness` weighs: all negatives, or explicit ones only (EmbeddingGemma)
    hardness_on: Literal["all", "explicit"] = "all"
    query_query: bool = False  # other queries are negatives of a query, too (Qwen3-Embedding)
    query_query_margin: float | None = None  # as `false_negative_margin`, of these; None: none
    # all candidates but its own target are negatives of a query's target, too (Qwen3-Embedding)
    document_document: bool = False
    document_document_margin: float | None = None  # as `false_negative_margin`, of these
    # drop targets of queries that are more similar than this to the query (WeMM); None: none
    duplicate_queries: float | None = None
    # drop candidates that are more similar than this to the query's target (WeMM); None: none
    duplicate_targets: float | None = None
    # margins and duplicate masks spare the explicit negatives of a query
    trust_explicit: bool = True
    # contrast only within so many pairs in a row of the batch (LLaVE's script: 32); None: all
    pool: int | None = None
    spread_out_weight: float = 0.0  # of the spread-out regulariser (EmbeddingGemma); 0: none
    # targets of the same query are never its negatives: several positives a query
    mask_same_query: bool = False
    # sources whose queries see their own explicit negatives only: classification, multiple choice
    closed_sources: tuple[str, ...] = ()
    # (source, temperature) of those that have another than `temperature`
    source_temperatures: Sequence[tuple[str, float]] = ()
    # of ln(1 / temperature), by an Adam of its own, without schedule and decay; 0: it is fixed
    temperature_learning_rate: float = 0.0
    lowest_temperature: float = 0.01  # of a learned one (CLIP); it is at most 1
    # sources of graded pairs, whose rows have a `score`: CoSENT among those of a source, and no
    # part in the contrast of others (Qwen3-VL-Embedding, WeMM)
    graded_sources: tuple[str, ...] = ()
    # each comparison weighted by the gap of the grades (WeMM), or only by their order
    graded_form: Literal["gap_weighted_cosent", "cosent"] = "gap_weighted_cosent"
    graded_temperature: float = 0.05  # differences of cosines are divided by it; never learned
    graded_smallest_gap: float = 1e-3  # least weight of a comparison, in units of the grades
    graded_weight: float = 1.0  # of a graded pair, beside another's 1
    # of the two-way KL to the vectors of `data.teacher`, which is added (WeMM); 0: none
    teacher_weight: float = 0.0
    teacher_temperature: float = 0.02  # there, the teacher's cosines are divided by it
    student_temperature: float = 0.02  # there, the model's own are; never learned
    # of the squared distance from the vectors of `data.teacher`, which is added (EmbeddingGemma)
    teacher_matching_weight: float = 0.0

    @property
    def uses_teacher(self) -> bool:
        """Whether items need a teacher's vectors."""
        return bool(self.teacher_weight or self.teacher_matching_weight)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"loss.temperature is {self.temperature}; it must be above 0.")
        if self.temperature_learning_rate < 0:
            raise ValueError(
                f"loss.temperature_learning_rate is {self.temperature_learning_rate}; it must be "
                "0, for a fixed temperature, or more."
            )
        if self.temperature_learning_rate:
            if not 0 < self.lowest_temperature <= self.temperature <= 1:
                raise ValueError(
                    f"loss.temperature={self.temperature}, where a learned one starts, must be "
                    f"between loss.lowest_temperature={self.lowest_temperature}, above 0, and 1."
                )
            if self.source_temperatures:
                raise ValueError(
                    "loss.source_temperatures and loss.temperature_learning_rate: the temperature "
                    "that is learned is that of all sources; use one of the two."
                )
        for source, temperature in self.source_temperatures:
            if not temperature > 0:
                raise ValueError(
                    f"loss.source_temperatures has {temperature} for {source!r}; a temperature "
                    "must be above 0."
                )
        for name in (
            "graded_temperature",
            "graded_smallest_gap",
            "graded_weight",
            "teacher_temperature",
            "student_temperature",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"loss.{name} is {getattr(self, name)}; it must be above 0.")
        for name in ("teacher_weight", "teacher_matching_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"loss.{name} is {getattr(self, name)}; it must be above 0, or 0 to leave the "
                    "teacher out."
                )
        if twice := sorted({*self.closed_sources} & {*self.graded_sources}):
            raise ValueError(
                f"loss.closed_sources and loss.graded_sources both have {', '.join(twice)}: pairs "
                "of a source are graded, or are told from negatives of their own."
            )
        if self.pool is not None and self.pool < 2:
            raise ValueError(
                f"loss.pool={self.pool}: pairs of a pool are each other's negatives, so it must be "
                "2 or more; None contrasts the whole batch."
            )


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The options of `losses.relational_distillation`, and the texts that are compared."""

    objective: Literal["distillation"]  # KL divergence of rows of the similarity matrices
    # "all" texts of the batch with each other, only those that are "queries" (sent0 of the NLI
    # triples), or "pairs": the queries with their positives
    texts: Literal["all", "queries", "pairs"]
    temperature: float  # the student's similarities are divided by it
    teacher_temperature: float | None  # the teacher's are divided by it; None: the same
    # the distribution that the divergence is taken under
    direction: Literal["teacher_student", "student_teacher", "symmetric"]
    mask_diagonal: bool  # leave out the similarity of a text with itself
    reduction: Literal["mean", "sum"]  # of the rows' divergences


@dataclasses.dataclass(frozen=True)
class JudgeDistillation:
    """The options of `losses.judge_distillation`, and the contrastive loss beside it."""

    objective: Literal["judge_distillation"]  # divergence from the rows' `scores`
    temperature: float  # similarities are divided by it
    judge_temperature: float | None  # scores are divided by it; None: the same
    # of `contrastive`, which is added; 0: none, as in UniME-V2
    contrastive_weight: float
    contrastive: Contrastive  # among all pairs of the batch; `infonce_steps` begin with it, too
    # KL divergences both ways (UniME-V2), that of the scores' softmax alone (Qwen3-VL-Embedding's
    # eq. 3, CORE's Rank-KL), or the order of the candidates (WeMM)
    form: Literal["symmetric_kl", "rank_kl", "gap_weighted_cosent"] = "symmetric_kl"
    smallest_gap: float = 1e-3  # least weight of a comparison, of "gap_weighted_cosent"

    def __post_init__(self) -> None:
        if not self.contrastive_weight >= 0:
            raise ValueError(
                f"config.loss.contrastive_weight={self.contrastive_weight} must be 0 or more; 0"
                " leaves the contrastive loss out."
            )
        if not self.smallest_gap > 0:
            raise ValueError(f"config.loss.smallest_gap={self.smallest_gap} must be above 0.")
        contrastive = self.contrastive
        if contrastive.temperature_learning_rate and not self.contrastive_weight:
            raise ValueError(
                "config.loss.contrastive.temperature_learning_rate="
                f"{contrastive.temperature_learning_rate} is of the contrastive loss, which "
                "config.loss.contrastive_weight=0 leaves out; that of config.loss.temperature is "
                "fixed. Set it to 0."
            )
        if contrastive.graded_sources:
            raise ValueError(
                f"config.loss.contrastive.graded_sources={contrastive.graded_sources}: graded "
                "pairs have no scores of candidates, which config.loss.objective="
                f"{self.objective!r} needs of every row. Train them with the objective "
                "'contrastive'."
            )
        if contrastive.uses_teacher and not self.contrastive_weight:
            raise ValueError(
                "config.loss.contrastive has a teacher's weight, but config.loss."
                "contrastive_weight=0 leaves it out: raise that, or set the teacher's to 0."
            )


@dataclasses.dataclass(frozen=True)
class Matryoshka:
    """Prefixes of embeddings that the loss is taken of as well (Matryoshka learning)."""

    # numbers of an embedding that are kept, ascending, all below the model's own; (): no prefixes
    dims: tuple[int, ...] = ()
    # of the losses of `dims`; that of whole embeddings, which is always there, has 1; (): all 1
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        dims, weights = self.dims, self.weights
        check_dims(dims, "config.matryoshka.dims")
        if weights and len(weights) != len(dims):
            raise ValueError(
                f"config.matryoshka.weights={weights} must have one for each of "
                f"config.matryoshka.dims={dims}, or be empty; whole embeddings have 1 in any case."
            )
        if any(not 0 < weight < float("inf") for weight in weights):
            raise ValueError(f"config.matryoshka.weights={weights} must be above 0, and finite.")


def contrastive_part(
    loss: Contrastive | Distillation | JudgeDistillation,
) -> tuple[str, Contrastive | None]:
    """The contrastive loss in a run's loss, and the config key that has it; None: there is none."""
    if isinstance(loss, JudgeDistillation):
        return "loss.contrastive", loss.contrastive
    return "loss", loss if isinstance(loss, Contrastive) else None


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule, and rules by path."""

    # at the end of the warm-up, the highest; None: 1e-4 of adapters, else by the model's size
    learning_rate: float | None
    # of a linear ramp, before the first step at the full rate; None: a tenth of all steps
    warmup_steps: int | None
    schedule: Literal["linear", "cosine", "constant"]  # of the rate after the warm-up
    final_learning_rate: float  # where "linear" and "cosine" end
    beta1: float  # decay of the first moment
    beta2: float  # decay of the second moment
    epsilon: float  # added to the root of the second moment
    clip_norm: float  # of the whole gradient; inf: no clipping
    # (path regex, multiplier of the rate); 0 still spends memory on moments: rather freeze
    learning_rates: Sequence[tuple[str, float]]
    weight_decays: Sequence[tuple[str, float]]  # (path regex, decoupled weight decay)
    # the step where "linear" and "cosine" end; 0: at the last. Set it to the steps of the whole
    # plan in a run that is to be extended
    schedule_steps: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine", "constant"):
            raise ValueError(
                f'optimizer.schedule is "{self.schedule}"; use "linear", "cosine" or "constant".'
            )
        peak = float("inf") if self.learning_rate is None else self.learning_rate
        if not 0 <= self.final_learning_rate <= peak:
            raise ValueError(
                "optimizer.final_learning_rate must lie between 0 and optimizer.learning_rate, "
                f"not {self.final_learning_rate} (learning_rate {self.learning_rate})."
            )
        if not self.clip_norm > 0:
            raise ValueError(
                f"optimizer.clip_norm={self.clip_norm} would clip every gradient to zero; it must "
                "be above 0 (float('inf'): no clipping)."
            )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Saves of a run, besides those at its end and on SIGTERM."""

    every: int  # steps from one save to the next
    keep: int  # newest checkpoints that are kept
    # also the one with the highest "All" by `evaluation.every`; distillation: neighbour overlap;
    # without either: R@1 of `data.eval`
    keep_best: bool


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Steps that are traced into <workdir>/profile."""

    first_step: int  # the first that is traced
    steps: int  # how many are traced; 0: none


@dataclasses.dataclass(frozen=True)
class ExecutionConfig:
    """Dtypes, and memory against time."""

    # of activations; None: bfloat16 for a backbone of 1e9 parameters and more, else float32
    dtype: Literal["float32", "bfloat16"] | None
    # of weights that are not trained; "int8": codes with a scale per output channel for the
    # kernels of linear layers, and bfloat16 for the rest. None: as `dtype` chooses
    frozen_dtype: Literal["float32", "bfloat16", "int8"] | None
    # activations that a layer keeps for gradients, from most to least; it computes the others
    # again. "none": all. "dots": outputs of linear layers. "attention_up": those but the gate's,
    # half of a gated MLP. "attention": those but the MLP's wide ones. "full": its input. "offload":
    # its input, in the host's memory. "auto": by the memory of a device, with the size of chunks
    remat: RematChoice
    # "auto": a kernel that writes no scores to memory, "splash" on TPUs and "cudnn" on GPUs, "xla"
    # elsewhere and for what the kernel does not take; or one of the three
    attention: AttentionChoice
    recompute: bool  # encode chunks twice (GradCache) instead of keeping activations
    # of images, where chunks are encoded twice: compute what a frozen tower makes of them once a
    # step, and keep it for both times; None: where that takes 2 GiB of a device at most
    keep_features: bool | None
    # by bucket, chunks whose activations are kept nevertheless, so that they are encoded once;
    # empty: none. None: as many of the largest bucket as should fit
    kept_chunks: Sequence[int] | None = ()
    # chunks that the pass without gradient encodes at once, which gathers weights less often. None:
    # up to four where weights lie over several devices
    merged_chunks: int | None = 1

    def __post_init__(self) -> None:
        merged = 1 if self.merged_chunks is None else self.merged_chunks
        if merged < 1 or any(count < 0 for count in self.kept_chunks or ()):
            raise ValueError(
                f"execution.merged_chunks={self.merged_chunks} must be 1 or more, and every number "
                f"of execution.kept_chunks={self.kept_chunks} 0 or more."
            )
        if self.kept_chunks and not self.recompute:
            raise ValueError(
                f"execution.kept_chunks={tuple(self.kept_chunks)} names chunks that are not encoded"
                " twice, and execution.recompute=False keeps all: set one of them to () or True."
            )
        if self.remat == "offload" and (self.kept_chunks or not self.recompute):
            raise ValueError(
                'execution.remat="offload" holds one chunk in the host\'s memory, and the room of '
                "chunks that are not encoded twice is on the device: set execution.recompute=True "
                'and execution.kept_chunks=(), or another execution.remat, such as "full".'
            )
