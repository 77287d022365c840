"""Items to embeddings in bulk: packed like training rows, encoded by training's own function."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from unime_jax import paths, sharding, watchdog
from unime_jax.batch import Inputs, Item, Row
from unime_jax.chunks import Encode, encode_in_chunks
from unime_jax.data.pack import fill_buckets, row_numbers
from unime_jax.data.plan import Plan

Encoder = Callable[[Sequence[Item]], Float32[np.ndarray, "n D"]]
RowEncoder = Callable[[Sequence[Row], Plan], Float32[np.ndarray, "n D"]]


def make_encoder(
    encode: Encode,
    parameters: tuple[paths.Parameters, paths.Parameters],
    preprocess: Callable[[Item], Row],
    plan: Plan,
    mesh: Mesh,
) -> Encoder:
    """A function from items to unit-norm float32 embeddings, in the items' order.

    `parameters`: trainable and frozen. `plan.rows` items are preprocessed and encoded at a time.
    Every process gets all embeddings.
    """
    encode_rows = make_row_encoder(encode, parameters, mesh)

    def encoder(items: Sequence[Item]) -> np.ndarray:
        starts = range(0, len(items), plan.rows) or [0]  # no items: one empty window, [0, D]
        windows = (items[start : start + plan.rows] for start in starts)
        return np.concatenate(
            [encode_rows([preprocess(item) for item in window], plan) for window in windows]
        )

    return encoder


def make_row_encoder(
    encode: Encode, parameters: tuple[paths.Parameters, paths.Parameters], mesh: Mesh
) -> RowEncoder:
    """A function from up to `plan.rows` rows to embeddings, in order; it compiles once a plan."""
    run = _program(encode, mesh)
    spread = sharding.chunked_rows(mesh)

    def encode_rows(rows: Sequence[Row], plan: Plan) -> np.ndarray:
        groups, places = fill_buckets(rows, plan)
        # Every process packs all rows and hands over its own part.
        on_device = jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, spread, lambda index: x[index]), groups
        )
        with jax.set_mesh(mesh):
            parts = [np.asarray(part) for part in run(*parameters, on_device)]
        watchdog.progress()
        return np.concatenate(parts)[row_numbers(places, plan)]

    return encode_rows


@functools.lru_cache(maxsize=2)
def _program(encode: Encode, mesh: Mesh) -> Callable[..., list[jax.Array]]:
    """One program for all parameters of a model, so that "before" and "after" compile once."""
    everywhere = sharding.replicated(mesh)

    @jax.jit
    def run(
        trainable: paths.Parameters, frozen: paths.Parameters, groups: tuple[Inputs, ...]
    ) -> list[jax.Array]:
        parts = [
            encode_in_chunks(encode, trainable, frozen, group, recompute=True) for group in groups
        ]
        parts = [part.reshape(-1, part.shape[-1]) for part in parts]
        return [jax.lax.with_sharding_constraint(part, everywhere) for part in parts]

    return run
