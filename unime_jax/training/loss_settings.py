"""Settings of losses: contrastive, from teachers, and over prefixes. Plain data, without JAX.

The comment beside a key, or above it, is its text in --help.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from unime_jax.data.settings import check_dims


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
