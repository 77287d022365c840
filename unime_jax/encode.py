"""Items to embeddings in bulk: packed like training rows, encoded by training's own function.

An embedding that is not finite is never handed out.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from unime_jax import paths, sharding
from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import Inputs, Item, Row
from unime_jax.data.packing import fill_buckets, row_numbers
from unime_jax.data.shapes import BatchShapes, described
from unime_jax.operations import watchdog
from unime_jax.operations.compilation_cache import announced
from unime_jax.training.gradcache import Encode, encode_in_chunks

Encoder = Callable[[Sequence[Item]], Float32[np.ndarray, "n D"]]
RowEncoder = Callable[[Sequence[Row], BatchShapes], Float32[np.ndarray, "n D"]]


class NonFiniteError(ValueError):
    """Embeddings that hold NaN or infinity.

    Attributes:
      rows: numbers of the rows that they are of.
      total: how many rows there were.
      cause: a sentence on where it comes from.
    """

    def __init__(self, rows: Sequence[int], total: int, cause: str):
        self.rows, self.total, self.cause = list(rows), total, cause
        super().__init__(f"the embeddings of rows {self.rows[:10]} are not finite: {cause}")

    def of(self, name: str) -> str:
        """The message, given the name of the first row's item."""
        return (
            f"{name}: its embedding is not finite ({len(self.rows)} of the {self.total} in its"
            f" batch are not): {self.cause}"
        )


def make_encoder(
    encode: Encode,
    parameters: tuple[paths.Parameters, paths.Parameters],
    preprocess: Callable[[Item], Row],
    plan: BatchShapes,
    mesh: Mesh,
) -> Encoder:
    """A function from items to unit-norm float32 embeddings, in the items' order.

    `parameters`: trainable and frozen. `plan.rows` items are preprocessed and encoded at a time.
    Every process gets all embeddings. They raise ValueError that names an item whose embedding is
    not finite.
    """
    encode_rows = make_row_encoder(encode, parameters, mesh)

    def encode_window(items: Sequence[Item]) -> np.ndarray:
        try:
            return encode_rows([preprocess(item) for item in items], plan)
        except NonFiniteError as error:
            raise ValueError(error.of(name_of(items[error.rows[0]]))) from error

    def encoder(items: Sequence[Item]) -> np.ndarray:
        starts = range(0, len(items), plan.rows) or [0]  # no items: one empty window, [0, D]
        windows = (items[start : start + plan.rows] for start in starts)
        return np.concatenate([encode_window(window) for window in windows])

    return encoder


def make_row_encoder(
    encode: Encode, parameters: tuple[paths.Parameters, paths.Parameters], mesh: Mesh
) -> RowEncoder:
    """A function from up to `plan.rows` rows to embeddings, in order; it compiles once a plan.

    It raises NonFiniteError.
    """
    run, compiled = _program(encode, mesh), _compiled(encode, mesh)
    spread = sharding.chunked_rows(mesh)

    def encode_rows(rows: Sequence[Row], plan: BatchShapes) -> np.ndarray:
        groups, places = fill_buckets(rows, plan)
        # Every process packs all rows and hands over its own part.
        on_device = jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, spread, lambda index: x[index]), groups
        )
        with _announced(plan, compiled), jax.set_mesh(mesh):
            parts = [np.asarray(part) for part in run(*parameters, on_device)]
        watchdog.progress()
        vectors = np.concatenate(parts)[row_numbers(places, plan)]
        compiled.add(plan)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise NonFiniteError(bad.tolist(), len(rows), _cause(parameters))
        return vectors

    return encode_rows


def _cause(parameters: Sequence[paths.Parameters]) -> str:
    """Where embeddings that are not finite come from; all processes ask."""
    named = [(path, x) for part in parameters for path, x in part.items()]
    floats = [(path, x) for path, x in named if jnp.issubdtype(x.dtype, jnp.floating)]
    bad = sorted(path for path, x in floats if not jnp.isfinite(x).all())
    if bad:
        return (
            f"{len(bad)} of {len(named)} parameters hold NaN or infinity, such as {bad[0]}; the"
            " checkpoint is damaged, or was written by a run that diverged"
        )
    return (
        "all weights are finite, so numbers overflow on the way, at this item or at most; try"
        ' float32 (dtype="float32", config.execution.dtype), and look at the item'
    )


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


@functools.lru_cache(maxsize=2)
def _compiled(encode: Encode, mesh: Mesh) -> set[BatchShapes]:
    """The plans that `_program` of the same arguments has been called for."""
    return set()


def _announced(
    plan: BatchShapes, compiled: set[BatchShapes]
) -> contextlib.AbstractContextManager[None]:
    """Says that the first call for a plan compiles; it computes its rows as well."""
    if plan in compiled:
        return contextlib.nullcontext()
    return announced(f"the encoder of {plan.rows} rows, {described(plan.buckets)}")
