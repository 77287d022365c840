"""From a batch's embeddings to its loss: who is compared with whom, and by which function."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from unime_jax import losses
from unime_jax.batch import Batch
from unime_jax.losses import Metrics

Result = tuple[Float[Array, ""], Metrics]


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """The options of `losses.contrastive`, by the same names."""

    objective: Literal["contrastive"]
    temperature: float
    hard_negatives: int | None
    false_negative_margin: float | None
    hardness: float
    symmetric: bool
    mask_same_target: bool


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The options of `losses.relational_distillation`, and which texts it is about.

    `texts`: "all" compares all texts of the batch with each other, "queries" only those that are
    queries (sent0 of the NLI triples), "pairs" the queries with their positives.
    """

    objective: Literal["distillation"]
    texts: Literal["all", "queries", "pairs"]
    temperature: float
    teacher_temperature: float | None
    direction: losses.Direction
    mask_diagonal: bool
    reduction: losses.Reduction


Objective = Contrastive | Distillation


def contrastive(
    embeddings: Float[Array, "G D"],
    batch: Batch,
    config: Contrastive,
    *,
    plain: Bool[Array, ""] | None = None,
) -> Result:
    """Queries against all candidates; rows are the candidates, one column a distinct target.

    Where `plain` holds, the loss is InfoNCE over all negatives, whatever `config` says of them.
    """
    target_id = jnp.concatenate([part.reshape(-1) for part in batch.target_id])
    candidate, negative = target_id != 0, batch.negative
    if config.mask_same_target:
        representative = representatives(target_id)
        candidate &= representative == jnp.arange(representative.size)
        negative = jnp.where(negative < 0, -1, representative[negative])

    def contrast(config: Contrastive) -> Result:
        return losses.contrastive(
            embeddings[batch.query],
            embeddings,
            batch.positive,
            temperature=config.temperature,
            hard_negatives=config.hard_negatives,
            false_negative_margin=config.false_negative_margin,
            hardness=config.hardness,
            symmetric=config.symmetric,
            target_id=target_id if config.mask_same_target else None,
            explicit_negatives=negative if negative.shape[1] else None,
            candidate_mask=candidate,
        )

    if plain is None:
        return contrast(config)
    infonce = dataclasses.replace(
        config, hard_negatives=None, false_negative_margin=None, hardness=0.0
    )
    return jax.lax.cond(plain, lambda: contrast(infonce), lambda: contrast(config))


def representatives(target_id: UInt32[Array, " G"]) -> Int[Array, " G"]:
    """For every row the one row that stands for its target, so that a target is one candidate.

    Sorting keeps this O(G log G) and independent of how rows were dealt to processes.
    """
    order = jnp.argsort(target_id, stable=True)
    ordered = target_id[order]
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    start = jax.lax.cummax(jnp.where(starts, jnp.arange(order.size), 0))
    return jnp.zeros_like(order).at[order].set(order[start])


def distillation(embeddings: Float[Array, "G D"], batch: Batch, config: Distillation) -> Result:
    """The batch's texts against each other, by the student and by the teacher of its rows.

    With "queries" and "pairs" a text that several pairs have in common counts several times.

    Raises:
      ValueError: the rows have no teacher; while tracing.
    """
    given = [group.teacher for group in batch.groups if group.teacher is not None]
    if len(given) < len(batch.groups):
        raise ValueError("distillation: the rows of the batch have no teacher embeddings")
    teacher = jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in given])
    live = jnp.concatenate([group.length.reshape(-1) for group in batch.groups]) > 0
    every = jnp.arange(live.size)
    rows, columns = {
        "all": (every, every),
        "queries": (batch.query, batch.query),
        "pairs": (batch.query, batch.positive),
    }[config.texts]
    return losses.relational_distillation(
        embeddings[rows],
        teacher[rows],
        embeddings[columns],
        teacher[columns],
        temperature=config.temperature,
        teacher_temperature=config.teacher_temperature,
        direction=config.direction,
        mask_diagonal=config.mask_diagonal,
        reduction=config.reduction,
        row_mask=live[rows],
        column_mask=live[columns],
    )
