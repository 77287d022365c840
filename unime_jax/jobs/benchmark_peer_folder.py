"""Weights, rows and embeddings of a benchmark case on disk, for other libraries to do the same."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from unime_jax import paths
from unime_jax.backbones import Backbone
from unime_jax.batch import Row
from unime_jax.export import folder as export_folder

WEIGHTS, ROWS, EMBEDDINGS = "hf", "rows.npz", "embeddings.npy"


def write(
    folder: str,
    backbone: Backbone,
    graph: nnx.GraphDef,
    parameters: paths.Parameters,
    rows: Sequence[Row],
    dtype: np.dtype,
) -> None:
    """Writes the model as a Hugging Face folder, its adapters merged, and the rows as arrays.

    rows.npz has int32 `tokens` [sum of t] with `lengths` [n], bool `of_image` and int32 `positions`
    [sum of t, A] as the tokens, and uint8 `patches` [sum of tiles, P, F] with `tiles` [n]; int32
    `patch_position` [sum of tiles, P, 3] as the patches, or nothing where the family has none.
    """
    parent = pathlib.Path(folder)
    export_folder.write(parent / WEIGHTS, backbone, graph, parameters, dtype=dtype, prompts={})
    tiles = [0 if row.patches is None else len(row.patches) for row in rows]
    places = [np.asarray(row.patch_position) for row in rows if row.patch_position is not None]
    pixels = [np.asarray(row.patches) for row in rows if row.patches is not None]
    np.savez(
        parent / ROWS,
        tokens=np.concatenate([row.tokens for row in rows]),
        lengths=np.array([len(row.tokens) for row in rows], np.int32),
        positions=np.concatenate([row.positions for row in rows]),
        of_image=np.concatenate([(row.slot >= 0).any(axis=1) for row in rows]),
        patches=np.concatenate(pixels) if pixels else np.zeros((0, 0, 0), np.uint8),
        patch_position=np.concatenate(places) if places else np.zeros((0, 0, 3), np.int32),
        tiles=np.array(tiles, np.int32),
    )


def write_embeddings(folder: str, groups: Sequence[jax.Array], rows: int) -> None:
    """Writes the embeddings of the rows, float32 [n, D], of a program with a single bucket."""
    (vectors,) = groups
    embeddings: Any = np.asarray(vectors, np.float32)[:rows]
    np.save(pathlib.Path(folder) / EMBEDDINGS, embeddings)
