"""Matryoshka representation learning: a loss of embeddings, and the same of their prefixes.

The first numbers of an embedding, scaled to length one, are then an embedding themselves.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unime_jax.losses.rows import Metrics

Loss = Callable[[Sequence[Float[Array, "... _"]]], tuple[Float[Array, ""], Metrics]]

BY_DIM = "loss/"  # and the numbers of an embedding: the loss of these alone
SUMMED = ("chance_loss", "source_loss")  # metrics that go with the loss


def matryoshka(
    loss: Loss,
    embeddings: Sequence[Float[Array, "... D"]],
    *,
    dims: Sequence[int],
    weights: Sequence[float] = (),
    of_prefixes: Loss | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """A loss, and the weighted sum of it over prefixes of all embeddings (arXiv 2205.13147).

    With e the embeddings, it is loss(e) + sum over m of weights[m] * loss(unit(e[:, :dims[m]])).
    All that the loss finds out by similarities, such as which candidates are masked or hardest, it
    finds out by those of each prefix alone. Prefixes come one after another in a loop, forward and
    backward, so that they take the memory of one, and compile once: each is filled with zeros up to
    the longest, which changes no similarity.

    Args:
      loss: of unit vectors in as many arrays as `embeddings`; other arguments are closed over, and
        have their gradients. `chance_loss`, and `source_loss` where it is, are among its metrics.
      embeddings: unit vectors, float32; a row of zeros stays one.
      dims: numbers of the prefixes, ascending, below D.
      weights: of the prefixes' losses, beside 1 of the whole; none: all 1.
      of_prefixes: the loss of prefixes, where it is another.

    Returns:
      The sum, and the metrics of the whole embeddings, but for the sums `chance_loss` and
      `source_loss`; and the loss of each prefix and of the whole, `loss/<numbers>`.

    Raises:
      ValueError: on dims and weights that cannot be meant; under jit, while tracing.
    """
    width = embeddings[0].shape[-1]
    _check(dims, weights, width)
    whole, metrics = loss(embeddings)
    longest = [part[..., : dims[-1]] for part in embeddings]
    inner = of_prefixes or loss

    def of_prefix(_: None, dim: Int[Array, ""]) -> tuple[None, Metrics]:
        value, own = inner([prefix(part, dim) for part in longest])
        return None, {"loss": value} | {name: own[name] for name in SUMMED if name in own}

    # Computed again for the gradient, so that no two prefixes' [B, M] arrays are there at once.
    _, by_dim = jax.lax.scan(jax.checkpoint(of_prefix, prevent_cse=False), None, jnp.array(dims))
    weight = jnp.array(weights or [1.0] * len(dims), jnp.float32)
    total = whole + weight @ by_dim["loss"]
    fixed = jax.lax.stop_gradient(by_dim)
    said = {f"{BY_DIM}{dim}": value for dim, value in zip(dims, fixed["loss"], strict=True)}
    said[f"{BY_DIM}{width}"] = jax.lax.stop_gradient(whole)
    sums = {
        name: metrics[name] + jnp.tensordot(weight, fixed[name], 1)
        for name in SUMMED
        if name in metrics
    }
    return total, metrics | sums | said


def prefix(embeddings: Float[Array, "... D"], dim: Int[Array, ""]) -> Float[Array, "... D"]:
    """The first `dim` numbers scaled to length one, and zeros after them."""
    kept = jnp.where(jnp.arange(embeddings.shape[-1]) < dim, embeddings.astype(jnp.float32), 0)
    square = jnp.sum(kept * kept, axis=-1, keepdims=True)
    # Inside, so that a row of zeros has a gradient of zeros and not NaN.
    return kept * jax.lax.rsqrt(jnp.where(square > 0, square, 1))


def _check(dims: Sequence[int], weights: Sequence[float], width: int) -> None:
    ends = [0, *dims, width]
    if not dims or any(a >= b for a, b in zip(ends, ends[1:])):
        raise ValueError(
            f"matryoshka: dims are {tuple(dims)}; they must be at least one, above 0, ascend, and "
            f"end below the {width} numbers of an embedding"
        )
    if weights and len(weights) != len(dims):
        raise ValueError(
            f"matryoshka: weights are {tuple(weights)}; they must be as many as dims, "
            f"{tuple(dims)}, or none"
        )
    if any(not 0 < weight < float("inf") for weight in weights):
        raise ValueError(
            f"matryoshka: weights are {tuple(weights)}; they must be above 0, and finite"
        )
