"""The model of an evaluation: opened, with its provenance and its encoder of all tasks."""

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from unime_jax import config, files
from unime_jax.backbones import Backbone, open_backbone
from unime_jax.backbones.preprocessing.prompts import name_of
from unime_jax.batch import Item
from unime_jax.embedder import Embedder
from unime_jax.evaluation.encoding import vector_cache
from unime_jax.evaluation.encoding.cached_encoder import CachedEncoder, EncodeBlocks
from unime_jax.evaluation.encoding.shared_encoder import SharedEncoder
from unime_jax.evaluation.peer import Peer
from unime_jax.inference.encode import NonFiniteError, encode_blocks
from unime_jax.models.inference import default_execution
from unime_jax.training import resume
from unime_jax.training.setup import say_what_is_not_used


def model_source(backbone: str) -> str:
    """The folder or hub id of a model: of a training run's work directory that of its export.

    Raises:
      ValueError: a work directory without an export.
    """
    folder = files.as_path(backbone)
    if (folder / "hf" / "self_check.json").exists():
        return str(folder / "hf")
    if (folder / "checkpoints").is_dir():
        raise ValueError(
            f"config.backbone={backbone}: this work directory has no exported model in hf/. Let "
            "the run finish, or export its newest checkpoint with --config.job=export."
        )
    return backbone


def check_peer(settings: config.EvaluateConfig) -> None:
    """Raises ValueError for a folder, or an installation, without sentence-transformers."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ValueError(
            f"config.library={settings.library!r}, but the package sentence-transformers is not "
            "installed: pip install 'unime_jax[eval]'"
        )
    from unime_jax.integrations import sentence_transformers

    sentence_transformers.check_folder(model_source(settings.backbone), settings.revision)


def open_model(settings: config.EvaluateConfig) -> Backbone | Peer:
    """The model of `config.library`; weights of a `Backbone` are not read yet."""
    source = model_source(settings.backbone)
    if settings.library != "unime_jax":
        from unime_jax.integrations import sentence_transformers  # torch is not for everybody

        assert settings.dtype != "int8"  # see EvaluateConfig
        return sentence_transformers.open_peer(
            source,
            revision=settings.revision,
            max_length=settings.max_length,
            dtype=settings.dtype,
            batch_size=settings.batch_size,
            late_fusion=settings.late_fusion,
        )
    backbone = open_backbone(
        source,
        max_length=settings.max_length,
        revision=settings.revision if source == settings.backbone else None,
        processing=settings.processing,
    )
    defaults = backbone.defaults
    say_what_is_not_used(source, defaults, defaults.max_length)
    return backbone


def provenance_of(settings: config.EvaluateConfig, model: Backbone | Peer) -> dict[str, Any]:
    """All that the embeddings of a model depend on."""
    if isinstance(model, Peer):
        return dict(model.provenance)
    return {
        "model": resume.fingerprints(model)["backbone"],
        "processing": dataclasses.asdict(model.processing),
        "max_length": model.preprocess.prompt.max_length,
        "dtype": settings.dtype,
    }


def make_encoder(
    settings: config.EvaluateConfig,
    model: Backbone | Peer,
    provenance: Mapping[str, Any],
    mesh: Mesh,
) -> SharedEncoder:
    """Encoder of all tasks, which has its memory on disk, or where there is none in the process."""
    if isinstance(model, Peer):
        return SharedEncoder(model.encode)
    embedder = Embedder(
        model,
        mesh=mesh,
        dtype=jnp.dtype(settings.dtype),
        execution=default_execution(jnp.dtype(settings.dtype)),
        truncate_dim=model.dimension,
    )
    encode = _encode_blocks(model, embedder, settings.batch_size)
    setting = settings.evaluation.cache
    if not setting:
        return SharedEncoder(lambda items: np.concatenate(list(encode(items, len(items)))))
    cache = None
    if jax.process_index() == 0:
        cache = vector_cache.open_cache(setting, provenance, embedder.dimension)
    return SharedEncoder(CachedEncoder(encode, cache, embedder.dimension), limit=0)


def _encode_blocks(backbone: Backbone, embedder: Embedder, batch_size: int) -> EncodeBlocks:
    """Whole embeddings of items as they are, in batches of a few shapes."""

    def encode(items: Sequence[Item], block: int) -> Iterator[Float32[np.ndarray, "m D"]]:
        blocks = encode_blocks(
            embedder.model,
            items,
            backbone.preprocess,
            embedder.shapes(batch_size),
            window=batch_size,
            block=block,
        )
        try:
            for encoded in blocks:
                yield encoded.vectors
        except NonFiniteError as error:
            raise ValueError(error.of(name_of(items[error.rows[0]]))) from error

    return encode
