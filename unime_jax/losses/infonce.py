"""InfoNCE with UniME's and LLaVE's treatment of negatives."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Integer

from unime_jax.losses import ring
from unime_jax.losses.arguments import check_arrays, check_settings
from unime_jax.losses.barred import find_barred
from unime_jax.losses.rows import Metrics, by_source, dense_rows, summarise
from unime_jax.losses.selection import HardnessOn, Settings
from unime_jax.losses.spread import spread_out
from unime_jax.losses.tiled import tiled_rows


def contrastive(
    queries: Float[Array, "B D"],
    candidates: Float[Array, "M D"],
    positive: Integer[Array, " B"] | None = None,
    *,
    temperature: float | Float[Array, ""] | Float[Array, " B"] = 0.02,
    hard_negatives: int | None = None,
    false_negative_margin: float | None = None,
    hardness: float = 0.0,
    hardness_on: HardnessOn = "all",
    symmetric: bool = False,
    query_query: bool = False,
    query_query_margin: float | None = None,
    document_document: bool = False,
    document_document_margin: float | None = None,
    duplicate_queries: float | None = None,
    duplicate_targets: float | None = None,
    trust_explicit: bool = True,
    pool: int | None = None,
    spread_out_weight: float = 0.0,
    target_id: Integer[Array, " M"] | None = None,
    query_id: Integer[Array, " B"] | None = None,
    closed: Bool[Array, " B"] | None = None,
    pair_mask: Bool[Array, " B"] | None = None,
    explicit_negatives: Integer[Array, "B H"] | None = None,
    candidate_mask: Bool[Array, " M"] | None = None,
    column_block: int | None = None,
    source: Integer[Array, " B"] | None = None,
    sources: int = 0,
) -> tuple[Float32[Array, ""], Metrics]:
    """InfoNCE over the candidates, with UniME's and LLaVE's treatment of negatives as options.

    With s the cosine, p the positive column of query i and N(i) its negatives, the loss is the mean
    over queries of

        log(1 + sum over j in N(i) of exp((s_ij - s_ip) / temperature + hardness * sg(s_ij)))

    where sg stops the gradient. The defaults are plain in-batch InfoNCE. UniME stage 2
    (arXiv 2504.17432, section 3.3 and Eq. 4) is `hard_negatives=8, false_negative_margin=0.1`;
    LLaVE (arXiv 2503.04812, Eq. 4-8) is `hardness=9.0`, and `symmetric=True` as its code has it.

    A column is a negative of query i unless it is i's positive, has the positive's target id, is
    masked out, or scores higher than s_ip + margin. All options combine. A query without negatives
    adds no loss and no gradient, and the mean is over the other queries.

    With `query_query` and `document_document`, N(i) has the queries j as well, at s(q_i, q_j), and
    the columns once more, at s(p, j), but for those with i's target (Qwen3-Embedding, eq. 1, whose
    documents are all columns here). `hard_negatives` are the hardest of all these.

    Facts rule columns out: a copy of the positive, `closed`, `pool`, an equal `query_id`. Masks
    guess: margins and duplicates.

    Args:
      queries: unit vectors; computed in float32 whatever their dtype.
      candidates: unit vectors.
      positive: each query's column of `candidates`, in [0, M). None: query i's is column i.
      temperature: divides the cosines; greater than 0. An array, of one number or by query, has a
        gradient.
      hard_negatives: keep only this many negatives a query, the most similar ones. A query with
        fewer repeats them cyclically in descending order, as the paper has it.
      false_negative_margin: drop negatives with s > s_positive + margin as likely positives.
      hardness: LLaVE's alpha, the weight on how similar a negative is.
      hardness_on: "explicit" weighs explicit negatives only (EmbeddingGemma).
      symmetric: average with the opposite direction: query i's positive against the B queries, of
        which those with the same positive (or target id) are no negatives. The same temperature,
        margin, count, masks and hardness hold there.
      query_query: other queries are negatives of a query.
      query_query_margin: `false_negative_margin` of these.
      document_document: candidates are negatives of the query's positive.
      document_document_margin: `false_negative_margin` of these.
      duplicate_queries: drop the pairs j, and columns with their targets, with s(q_i, q_j) above
        this (WeMM).
      duplicate_targets: drop columns, and pairs with a target, of which the similarity to i's
        positive is above this (WeMM).
      trust_explicit: margins and duplicate masks spare the query's own explicit negatives.
      pool: contrast only within so many pairs in a row; it divides B. The columns of a pool are the
        positives and explicit negatives of its pairs (LLaVE's script: 32).
      spread_out_weight: weight of `spread_out` of the queries and of their positives.
      target_id: equal ids are the same target, hence never each other's negative. No id is special.
      query_id: equal ids are the same query, whose targets are never negatives of one another's
        pairs.
      closed: queries that see their own explicit negatives only, in no other term and not in the
        opposite direction.
      pair_mask: False for pairs of another loss, which have none here, and whose queries are no
        negatives; `candidate_mask` says the same of their targets. `spread_out` is of all pairs.
      explicit_negatives: each query's own labelled negatives as columns of `candidates`, -1 for
        none. The margin does not drop them. All candidates are negatives anyhow, labelled or not.
      candidate_mask: False for padding and repeated columns, which are nobody's negatives. They
        must be finite all the same, and labels must name the copy that is not masked.
      column_block: columns that a device compares its rows with at a time, candidates passing round
        the ring of devices: the same values without a [B, M] array, and without all candidates on
        one device. None: all columns at once. Pools, equal queries and duplicate masks are an array
        of bytes all the same, a device's rows on each.
      source: each query's number of where it comes from, in [0, sources); metrics only.
      sources: how many there are; 0: no loss by source.

    Returns:
      The loss, and metrics of the query-to-candidate direction without gradients, all float32 [].
      Means over queries with a negative, 0 if there are none: `hard_negative_similarity`,
      `easy_negative_similarity` (the most and the least similar negative), `batch_accuracy` (share
      of queries whose positive beats every negative; a tie loses). Over all queries:
      `positive_similarity`, `negatives_per_query` (before `hard_negatives` cuts them),
      `rows_without_negatives` (their number). `masked_share`: the share of unlabelled negatives
      that margins dropped; without `trust_explicit`, of all negatives. With a duplicate mask,
      `duplicate_query_share` or `duplicate_target_share`: the same of that mask. `chance_loss`: the
      loss, both directions, if every negative were as similar as the positive, which is ln(1 + k)
      of k negatives without `hardness`. With `spread_out_weight`, `spread_out`. With `sources`,
      float32 [sources]: `source_loss`, the loss of each source's queries, and `source_rows`, how
      many of them have a negative.

    Raises:
      ValueError: on shapes, dtypes or settings that cannot be meant; under jit, while tracing.
    """
    scalar = temperature if isinstance(temperature, int | float) else None
    settings = Settings(
        temperature=scalar,
        hard_negatives=hard_negatives,
        false_negative_margin=false_negative_margin,
        hardness=hardness,
        hardness_on=hardness_on,
        symmetric=symmetric,
        query_query=query_query,
        query_query_margin=query_query_margin,
        document_document=document_document,
        document_document_margin=document_document_margin,
        duplicate_queries=duplicate_queries,
        duplicate_targets=duplicate_targets,
        trust_explicit=trust_explicit,
        pool=pool,
    )
    check_settings(settings, column_block)
    by_row = None if scalar is not None else jnp.asarray(temperature, jnp.float32)
    if by_row is not None and not by_row.ndim and queries.ndim:
        by_row = jnp.broadcast_to(by_row, queries.shape[:1])
    check_arrays(
        queries,
        candidates,
        positive,
        target_id,
        query_id,
        closed,
        pair_mask,
        by_row,
        explicit_negatives,
        candidate_mask,
    )
    pairs, columns = queries.shape[0], candidates.shape[0]
    if pool is not None and pairs % pool:
        raise ValueError(
            f"contrastive: {pairs} queries are no whole number of pools of {pool}; pool must "
            "divide the batch"
        )
    positive = jnp.arange(pairs) if positive is None else positive
    target_id = jnp.arange(columns) if target_id is None else jnp.asarray(target_id)
    mask = jnp.ones(columns, bool) if candidate_mask is None else candidate_mask
    if explicit_negatives is None:
        explicit_negatives = jnp.zeros((pairs, 0), jnp.int32)
    if pair_mask is not None:  # a closed row without labels has no negative anywhere
        closed = ~pair_mask if closed is None else closed | ~pair_mask
        explicit_negatives = jnp.where(pair_mask[:, None], explicit_negatives, -1)
    queries = jnp.asarray(queries, jnp.float32)
    candidates = jnp.asarray(candidates, jnp.float32)
    barred = find_barred(
        queries,
        candidates,
        positive,
        target_id,
        query_id,
        pair_mask,
        explicit_negatives,
        settings,
        column_block,
    )
    arguments = (
        queries,
        candidates,
        positive,
        target_id,
        mask,
        explicit_negatives,
        closed,
        pair_mask,
        by_row,
        barred,
        settings,
    )
    forth, back = (
        dense_rows(*arguments) if column_block is None else tiled_rows(*arguments, column_block)
    )
    loss, metrics = summarise(forth, settings, pair_mask)
    both = [forth]
    if back is not None:
        other, others = summarise(back, settings, pair_mask)
        loss = (loss + other) / 2
        metrics["chance_loss"] = (metrics["chance_loss"] + others["chance_loss"]) / 2
        both.append(back)
    if spread_out_weight:
        own = candidates[positive]
        if column_block is not None:
            own = ring.blockwise(ring.pick, positive, candidates)
        spread = spread_out(queries) + spread_out(own)
        loss += spread_out_weight * spread
        metrics["spread_out"] = jax.lax.stop_gradient(spread)
    if source is not None and sources:
        parts = [by_source(rows.losses, rows.count > 0, source, sources) for rows in both]
        losses = jnp.stack([part["source_loss"] for part in parts])
        metrics |= parts[0] | {"source_loss": losses.mean(axis=0)}
    return loss, metrics
