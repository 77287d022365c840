"""Bytes of activations that wait for the backward pass, as traced."""

import dataclasses
from typing import Any

import jax

from unime_jax.batch import Inputs
from unime_jax.data.bucket_filling import bucket_shapes
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes, Layout
from unime_jax.models.forward import Encode


def bytes_of_a_row(
    encode: Encode, trainable: Any, frozen: Any, bucket: Bucket, layout: Layout
) -> float:
    """Bytes that the backward pass needs of one more row of a bucket; parameters are abstract."""
    if not trainable:
        return 0.0
    kept = [_kept(encode, trainable, frozen, chunk(rows, bucket, layout)) for rows in (1, 2)]
    return kept[1] - kept[0]


def chunk(rows: int, bucket: Bucket, layout: Layout) -> Inputs:
    """A chunk of so many rows by shapes and dtypes."""
    # Whatever its part of a whole batch is, and its chunks there.
    alone = dataclasses.replace(bucket, share=1.0, rows=0)
    # Rows of several texts have a bucket of single rows after them.
    buckets = (alone, Bucket(bucket.tokens, 0)) if bucket.texts > 1 else (alone,)
    shapes = BatchShapes(buckets, layout, rows, rows)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), bucket_shapes(shapes, alone)
    )


def _kept(encode: Encode, trainable: Any, frozen: Any, inputs: Inputs) -> float:
    """Bytes of what the pullback of a chunk holds, parameters included."""

    def pullback(trainable: Any, frozen: Any, inputs: Inputs) -> Any:
        return jax.vjp(lambda p: encode(p, frozen, inputs), trainable)[1]

    kept = jax.eval_shape(pullback, trainable, frozen, inputs)
    return float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)))
