"""Running top-k of dot products on a mesh: queries on every device, the corpus spread by rows.

The corpus comes block by block. Every device keeps the best of its own rows, so that nothing is
exchanged before the host merges them. A block's scores are searched in two levels: the k groups of
columns with the largest maxima hold all of the k largest scores, and only those are sorted.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32, Int32, Num

from unime_jax import sharding

Method = Literal["exact", "approximate"]

RECALL = 0.95  # of `approx_max_k`, expected
NOBODY = -1  # number of a candidate that there is not


class Best(NamedTuple):
    """The largest scores of each device's part of the corpus so far, with the numbers of rows."""

    score: Float32[jax.Array, "devices queries k"]
    number: Int32[jax.Array, "devices queries k"]


def spread(mesh: Mesh) -> NamedSharding:
    """Sharding of a block of the corpus, and of `Best`: the first axis over all devices."""
    return NamedSharding(mesh, P(sharding.AXES))


def nothing_yet(mesh: Mesh, queries: int, k: int) -> Best:
    """`Best` before the first block."""
    shape = mesh.size, queries, k
    place = spread(mesh)
    score = jax.device_put(np.full(shape, -np.inf, np.float32), place)
    return Best(score, jax.device_put(np.full(shape, NOBODY, np.int32), place))


@functools.lru_cache(maxsize=4)
def updater(mesh: Mesh, method: Method):
    """A jitted function: (best, queries, limit, block, number) to `Best` with a block's rows.

    queries: float32 [queries, D]; limit: float32 [queries], scores above it do not count; block:
    float32 [columns, D] and number: int32 [columns], spread over the devices; NOBODY: padding.
    """
    part, whole = P(sharding.AXES), P()
    state: Any = Best(part, part)  # type: ignore[arg-type]

    @functools.partial(jax.jit, donate_argnums=0)
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(state, whole, whole, part, part),
        out_specs=state,
    )
    def update(best: Best, queries, limit, block, number) -> Best:
        scores = jax.lax.dot_general(
            queries,
            block,
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        counts = (number >= 0)[None] & (scores <= limit[:, None])
        scores = jnp.where(counts, scores, -jnp.inf)
        k = best.score.shape[-1]
        score, column = largest(scores, min(k, scores.shape[1]), method)
        found = jnp.where(score > -jnp.inf, number[column], NOBODY)
        score = jnp.concatenate([best.score[0], score], axis=1)
        found = jnp.concatenate([best.number[0], found], axis=1)
        score, place = jax.lax.top_k(score, k)
        return Best(score[None], jnp.take_along_axis(found, place, axis=1)[None])

    return update


def largest(
    scores: Num[jax.Array, "queries columns"], k: int, method: Method
) -> tuple[Num[jax.Array, "queries k"], Int32[jax.Array, "queries k"]]:
    """The k largest scores of each row, and their columns."""
    if method == "approximate":
        score, column = jax.lax.approx_max_k(scores, k, recall_target=RECALL)
        return score, column
    columns = scores.shape[1]
    width = group_width(columns, k)
    if width == 1:
        score, column = jax.lax.top_k(scores, k)
        return score, column
    # Group g holds columns g, g + groups, g + 2 * groups, ...: maxima are of whole vectors.
    grouped = scores.reshape(scores.shape[0], width, columns // width)
    _, group = jax.lax.top_k(grouped.max(axis=1), k)
    inside = jnp.take_along_axis(grouped, group[:, None, :], axis=2)
    column = jnp.arange(width)[:, None] * (columns // width) + group[:, None, :]
    score, place = jax.lax.top_k(inside.reshape(len(scores), -1), k)
    return score, jnp.take_along_axis(column.reshape(len(scores), -1), place, axis=1)


def group_width(columns: int, k: int) -> int:
    """Columns of a group: the power of two that leaves the fewest scores to sort; 1: no groups."""
    width = 1
    while columns % (2 * width) == 0 and columns // (2 * width) >= k:
        if columns // (2 * width) + 2 * width * k > columns // width + width * k:
            break
        width *= 2
    return width if columns // width + width * k < columns else 1


def columns_of(mesh: Mesh, columns: int) -> int:
    """Rows of a block of the corpus: a multiple of the devices, in powers of two for each."""
    return mesh.size * 2 ** max(0, math.ceil(math.log2(max(1, columns / mesh.size))))
