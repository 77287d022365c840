"""Whether a step keeps the features of a frozen vision tower, by `execution.keep_features`."""

import functools

import jax
from absl import logging
from jax.sharding import Mesh

from unime_jax import sharding
from unime_jax.data.bucket_filling import bucket_shapes
from unime_jax.data.shapes import BatchShapes
from unime_jax.models import frozen_vision
from unime_jax.models.vlm import Execution
from unime_jax.training.settings import ExecutionConfig
from unime_jax.training.state import AbstractModel

LIMIT = 2**31  # bytes of a device that are taken without being asked: an eighth of 16 GB


def choose(
    settings: ExecutionConfig,
    model: AbstractModel,
    execution: Execution,
    shapes: BatchShapes,
    mesh: Mesh,
) -> frozen_vision.FrozenVision | None:
    """The part of the forward whose results are kept for both passes over a batch; None: none.

    Results are those without it, but for rounding, and there is nothing to be gained where
    activations are kept, as each chunk is encoded once then.

    Raises:
      ValueError: features are to be kept, but parameters of the tower are trained.
    """
    keep = settings.keep_features
    groups = tuple(bucket_shapes(shapes, bucket) for bucket in shapes.buckets if bucket.tiles)
    if keep is False or not settings.recompute or not groups:
        return None
    chunk = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), groups[-1])
    kept, trained = frozen_vision.frozen_vision(
        model.graph, execution, model.parameters, model.trainable, chunk
    )
    if kept is None:
        if keep:
            why = (
                f"config.trainable trains {len(trained)} parameters that a tower makes features"
                f" with, for example {trained[0]}"
                if trained
                else "this model's images have no features apart from its embeddings"
            )
            raise ValueError(
                f"config.execution.keep_features=True: {why}. There is nothing that is the same in"
                " both passes; leave it at None."
            )
        return None
    size = frozen_vision.bytes_of(kept, model.parameters, groups) // sharding.row_shards(mesh)
    if keep is None and size > LIMIT:
        _log_once(
            f"features of the frozen tower are computed twice a step: to keep them takes"
            f" {size / 1e9:.2f} GB of a device (config.execution.keep_features=True)"
        )
        return None
    _log_once(
        "features of the frozen tower are computed once a step, and kept in"
        f" {size / 1e9:.2f} GB of a device"
    )
    return kept


@functools.cache
def _log_once(message: str) -> None:  # a plan traces many programs
    logging.info(message)
