"""Buckets of a training run by the lengths of a sample of its rows, with the padding expected."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
from absl import logging

from unime_jax import config
from unime_jax.backbones import Backbone
from unime_jax.batch import Item, Row
from unime_jax.data import bucket_choice, bucket_padding, bucket_work, length_sample, sampling
from unime_jax.data.formats import Source
from unime_jax.data.length_sample import Sample
from unime_jax.data.packing import Preprocess
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes


def chosen(
    settings: config.TrainConfig,
    backbone: Backbone,
    rows: Mapping[str, Source],
    shards: int,
    chunk_rows: Callable[[Bucket], int],
) -> tuple[Bucket, ...]:
    """The buckets of the least padding for a sample of the rows.

    Args:
      shards: `sharding.row_shards` of the mesh.
      chunk_rows: rows of a chunk of the largest bucket, where the settings leave them open.

    Raises:
      ValueError: no row can be measured.
    """
    if not rows:  # no batch is made
        return (Bucket(backbone.preprocess.prompt.max_length, 0),)
    data = settings.data
    suffixed = functools.partial(_suffixed, backbone.preprocess, data.suffix)
    sample = length_sample.measured(
        rows,
        sampling.weights_of(
            {name: len(source) for name, source in rows.items()},
            data.weights,
            data.size_temperature,
        ),
        suffixed if data.suffix else backbone.preprocess,
        negatives=data.negatives,
        seed=settings.seed,
    )
    platform = jax.default_backend()
    return of_sample(settings, backbone, sample, shards, chunk_rows, platform)


def of_sample(
    settings: config.TrainConfig,
    backbone: Backbone,
    sample: Sample,
    shards: int,
    chunk_rows: Callable[[Bucket], int],
    platform: str,
) -> tuple[Bucket, ...]:
    """The buckets of the least padding for rows of such sizes; arguments are those of `chosen`.

    Args:
      platform: of the devices, as JAX calls it.
    """
    sizes, example = sample
    data, patches = settings.data, backbone.layout.patches
    limit = backbone.preprocess.prompt.max_length
    last = bucket_choice.largest(sizes, limit=limit)
    chunk_size = settings.chunk_size or chunk_rows(last)
    alike = settings.batch_size if data.split_modalities else data.cluster_size or data.source_run
    expected = bucket_work.Expected(
        pairs=settings.batch_size,
        rows=settings.batch_size * (2 + data.negatives),
        chunk_size=chunk_size,
        shards=math.lcm(shards, jax.process_count()),
        draws=max(1, settings.batch_size // max(1, alike)),
        least_tokens=bucket_work.least_tokens(platform, shards),
    )
    buckets = bucket_choice.chosen(
        sizes,
        patches=patches * _patch_work(backbone),
        limit=limit,
        expected=expected,
        example=example,
        pack=_pack(backbone) if data.packing == "auto" else None,
    )
    shapes = BatchShapes(
        buckets, backbone.layout, chunk_size, expected.rows, shards=expected.shards
    )
    of_tokens, of_tiles = bucket_padding.padding(sizes, example, shapes, pairs=expected.pairs)
    tokens, tiles = sizes.max(axis=0).tolist()
    logging.info(
        "the longest of %d items: %d tokens, %d tiles; in %d buckets padding is %.1f %% of their "
        "tokens and %.1f %% of their tiles, as expected of batches of %d pairs",
        len(sizes),
        tokens,
        tiles,
        len(buckets),
        100 * of_tokens,
        100 * of_tiles,
        expected.pairs,
    )
    return buckets


def _pack(backbone: Backbone) -> bucket_work.Pack | None:
    """What the model allows of rows of several texts; None: nothing."""
    model = jax.eval_shape(backbone.make_model, jax.random.key(0))
    return bucket_work.Pack(model.pack_tokens, backbone.dimension) if model.pack_tokens else None


def _patch_work(backbone: Backbone) -> float:
    """The work of a patch in that of a token: its parameters by those of the language component."""
    if backbone.text_only is None:
        return 1.0
    whole, text = (
        sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(make, jax.random.key(0))))
        for make in (backbone.make_model, backbone.text_only.make_model)
    )
    return min(1.0, (whole - text) / text)


def _suffixed(preprocess: Preprocess, suffix: str, item: Item) -> Row:
    """The row of an item with the suffix that distillation puts after every text."""
    return preprocess(dataclasses.replace(item, suffix=suffix))
