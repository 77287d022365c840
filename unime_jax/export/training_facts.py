"""How a model was trained, in words: loss, optimizer and data of a run, for its model card."""

from collections.abc import Sequence

from unime_jax.config import (
    Contrastive,
    Distillation,
    JudgeDistillation,
    Matryoshka,
    TrainConfig,
)
from unime_jax.data.strange_texts import markdown

BASE = (
    "frozen linear layers were rounded to int8, one scale per output channel; the weights here are "
    "what was trained, rounding included. Adapters exported alone are close to that on the "
    "original base, not equal"
)


def table(settings: TrainConfig, steps: int, sources: Sequence[str]) -> dict[str, str]:
    """Rows of the card's table on a run of so many steps, by name; `sources`: of its pairs."""
    lora, dtype = settings.lora, settings.export.dtype
    assert dtype  # None is resolved in set-up
    adapters = f"{'DoRA' if lora.dora else 'LoRA'}, rank {lora.rank}, alpha {lora.alpha}, merged"
    rows = {
        "steps": f"{steps} of {settings.batch_size} pairs",
        "loss": _loss(settings.loss) + _of_prefixes(settings.matryoshka),
        "trained": adapters if lora.rank else "parameters chosen by the rules in `trainable`",
        "optimizer": f"AdamW, learning rate {settings.optimizer.learning_rate}, "
        f"{settings.optimizer.schedule} after {settings.optimizer.warmup_steps} warmup steps",
        "data": markdown(f"{settings.data.train}: {', '.join(sources)}") if sources else "none",
        "weights": dtype,
    }
    if settings.execution.frozen_dtype == "int8":
        rows["base"] = BASE
    return rows


def _of_prefixes(prefixes: Matryoshka) -> str:
    if not prefixes.dims:
        return ""
    dims = ", ".join(map(str, prefixes.dims))
    weights = ", ".join(f"{weight:g}" for weight in prefixes.weights) or "1 each"
    return f"; also of the first {dims} numbers, weights {weights} beside 1 of all"


def _loss(loss: Contrastive | Distillation | JudgeDistillation) -> str:
    if isinstance(loss, JudgeDistillation):
        name = {"symmetric_kl": "symmetric KL", "rank_kl": "KL"}.get(loss.form, "order by CoSENT")
        judged = f"{name} to a judge's scores, temperature {loss.temperature}"
        if not loss.contrastive_weight:
            return judged
        return f"{judged}; {loss.contrastive_weight:g} x {_loss(loss.contrastive)}"
    parts = [f"temperature {loss.temperature}"]
    if isinstance(loss, Contrastive) and loss.temperature_learning_rate:
        parts = [f"a learned temperature from {loss.temperature}"]
    if isinstance(loss, Distillation):
        towards = loss.direction.replace("_", " and ")
        parts.append(f"KL between the batch similarities of {towards}, texts: {loss.texts}")
        return "relational distillation: " + ", ".join(parts)
    if loss.hard_negatives is not None:
        parts.append(f"the {loss.hard_negatives} hardest in-batch negatives")
    if loss.false_negative_margin is not None:
        parts.append(f"false negatives above the positive + {loss.false_negative_margin} left out")
    if loss.hardness:
        which = "explicit negatives" if loss.hardness_on == "explicit" else "negatives"
        parts.append(f"{which} weighted by hardness {loss.hardness}")
    if loss.symmetric:
        parts.append("both directions")
    if loss.query_query:
        parts.append("queries against queries")
    if loss.document_document:
        parts.append("targets against candidates")
    thresholds = {"queries": loss.duplicate_queries, "targets": loss.duplicate_targets}
    for side, threshold in thresholds.items():
        if threshold is not None:
            parts.append(f"candidates of {side} more similar than {threshold} left out")
    if loss.spread_out_weight:
        parts.append(f"spread-out regulariser times {loss.spread_out_weight}")
    if loss.pool is not None:
        parts.append(f"in pools of {loss.pool} pairs")
    if loss.closed_sources:
        parts.append(f"own negatives only: {', '.join(loss.closed_sources)}")
    if loss.graded_sources:
        form = loss.graded_form.replace("_", " ").replace("cosent", "CoSENT")
        parts.append(f"{form} of graded pairs: {', '.join(loss.graded_sources)}")
    if loss.teacher_weight:
        heats = f"temperatures {loss.teacher_temperature} and {loss.student_temperature}"
        parts.append(f"two-way KL to a teacher's vectors times {loss.teacher_weight}, {heats}")
    if loss.teacher_matching_weight:
        parts.append(f"distance from a teacher's vectors times {loss.teacher_matching_weight}")
    return "contrastive: " + ", ".join(parts)
