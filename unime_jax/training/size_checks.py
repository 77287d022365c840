"""Checks of sizes: batches against the mesh and the loss, before anything is built."""

from jax.sharding import AbstractMesh, Mesh

from unime_jax import config, sharding
from unime_jax.training.loss_settings import Contrastive, contrastive_part


def check_sizes(settings: config.TrainConfig, mesh: Mesh | AbstractMesh) -> None:
    """Raises ValueError if the sizes of batches do not fit the mesh, or each other."""
    shards = sharding.row_shards(mesh)
    problems = [
        f"config.{key}={size} must be a multiple of {shards}, the number of row shards (mesh.data "
        "x mesh.fsdp)."
        for key, size in (("batch_size", settings.batch_size), ("chunk_size", settings.chunk_size))
        if size % shards
    ]
    key, loss = contrastive_part(settings.loss)
    if loss is not None:
        problems += _contrastive_problems(f"config.{key}", loss, settings.batch_size)
    if problems:
        raise ValueError("\n".join(problems))


def _contrastive_problems(key: str, loss: Contrastive, batch_size: int) -> list[str]:
    problems = []
    k, pool = loss.hard_negatives, loss.pool
    if k is not None and k >= batch_size:
        problems.append(
            f"{key}.hard_negatives={k} must be below config.batch_size={batch_size}: a batch "
            "offers at most batch_size - 1 in-batch negatives."
        )
    if pool is not None and batch_size % pool:
        problems.append(
            f"{key}.pool={pool} must divide config.batch_size={batch_size}: the batch is cut into "
            "pools."
        )
    problems += [
        f"{key}.{term}_margin={margin}, but {key}.{term} is False: set it to True, or the margin "
        "to None."
        for term, on, margin in (
            ("query_query", loss.query_query, loss.query_query_margin),
            ("document_document", loss.document_document, loss.document_document_margin),
        )
        if margin is not None and not on
    ]
    return problems
