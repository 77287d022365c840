"""The objective of a run, of whole embeddings and of their prefixes."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import Array, Bool, Float

from unime_jax import losses
from unime_jax.batch import Batch
from unime_jax.training import objectives, text_distillation
from unime_jax.training.loss_settings import Contrastive, JudgeDistillation, Matryoshka
from unime_jax.training.objective_terms import Result

WHOLE = Matryoshka()  # embeddings without prefixes


def objective_loss(
    embeddings: Sequence[Float[Array, "_ _ D"]],
    batch: Batch,
    objective: objectives.Objective,
    prefixes: Matryoshka = WHOLE,
    *,
    plain: Bool[Array, ""] | None = None,
    temperature: Float[Array, ""] | None = None,
    sources: Sequence[str] = (),
) -> Result:
    """The loss of a batch's embeddings, and of their prefixes, see `losses.matryoshka`.

    A prefix has the whole objective to itself: masks, hardest negatives and weights by its own
    similarities, the learned temperature, and a teacher's vectors, which are never cut. So
    `teacher_matching_weight`, which compares numbers with a teacher's, is of whole embeddings
    alone. `plain`, `temperature` and `sources` as in `objectives.contrastive`.
    """

    def of(parts: Sequence[Array], objective: objectives.Objective) -> Result:
        if isinstance(objective, objectives.Distillation):
            return text_distillation.distillation(parts, batch, objective, sources=sources)
        if isinstance(objective, JudgeDistillation):
            return objectives.judge_distillation(
                parts, batch, objective, plain=plain, temperature=temperature, sources=sources
            )
        return objectives.contrastive(
            parts, batch, objective, plain=plain, temperature=temperature, sources=sources
        )

    if not prefixes.dims:
        return of(embeddings, objective)
    of_prefixes = _without_matching(objective)
    return losses.matryoshka(
        lambda parts: of(parts, objective),
        embeddings,
        dims=prefixes.dims,
        weights=prefixes.weights,
        of_prefixes=lambda parts: of(parts, of_prefixes),
    )


def _without_matching(objective: objectives.Objective) -> objectives.Objective:
    if isinstance(objective, JudgeDistillation):
        contrastive = dataclasses.replace(objective.contrastive, teacher_matching_weight=0.0)
        return dataclasses.replace(objective, contrastive=contrastive)
    if isinstance(objective, Contrastive):
        return dataclasses.replace(objective, teacher_matching_weight=0.0)
    return objective
