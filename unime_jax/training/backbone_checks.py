"""Checks of an open backbone against a training config, before anything is computed."""

import jax

from unime_jax import config
from unime_jax.backbones import Backbone
from unime_jax.evaluation.views import check_width
from unime_jax.training.state import AbstractModel


def check_texts(settings: config.TrainConfig, backbone: Backbone) -> None:
    """Raises ValueError for rows of several texts that the model could not keep apart."""
    packed = [bucket for bucket in settings.data.buckets if bucket.texts > 1]
    if not packed:
        return
    most = jax.eval_shape(backbone.make_model, jax.random.key(0)).pack_tokens
    longest = max(bucket.tokens for bucket in packed)
    if longest > most:
        can = f"keeps texts apart in rows of up to {most} tokens" if most else "has a row a text"
        raise ValueError(
            f"config.data.buckets: rows of {longest} tokens have room for several texts, and "
            f"{backbone.base or backbone.folder} {can}: leave out Bucket.texts, or make the rows "
            "shorter"
        )


def check_dims(settings: config.TrainConfig, width: int) -> None:
    """Raises ValueError for prefixes of embeddings that are no shorter than these.

    `width`: numbers of an embedding of the model.
    """
    keys = {
        "matryoshka.dims": settings.matryoshka.dims,
        "evaluation.dims": settings.evaluation.dims or (),
    }
    for key, dims in keys.items():
        check_width(dims, width, f"config.{key}")
    kept = settings.export.truncate_dim
    if kept is not None and not 1 <= kept <= width:
        raise ValueError(
            f"config.export.truncate_dim={kept} must be between 1 and the {width} numbers of an "
            "embedding of this model; None keeps all."
        )


def check_adapter(backbone: Backbone, abstract_model: AbstractModel) -> None:
    """Raises ValueError if an adapter could not hold the trained model, before a long run."""
    if backbone.convert:
        raise ValueError(
            "config.export.adapter=True: other libraries cannot open the adapter's base,"
            f" {backbone.base}. Export that first (config.job=export with config.steps=0), and"
            " train what is written then."
        )
    others = sorted(path for path in abstract_model.trainable if ".lora_" not in path)
    if others or backbone.adapter:
        why = (
            f"the backbone is an adapter itself, {backbone.adapter}; export it merged first"
            if backbone.adapter
            else f"parameters besides the adapters are trained, for example {others[0]}"
        )
        raise ValueError(f"config.export.adapter=True cannot hold the whole model: {why}.")
