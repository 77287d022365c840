"""A trained model as a Hugging Face folder, checked by reading it back from disk."""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from unime_jax import paths, sharding
from unime_jax.backbones import Backbone, open_backbone, processing
from unime_jax.batch import Item
from unime_jax.data.pack import Plan
from unime_jax.encode import Encoder, make_encoder
from unime_jax.models import lora
from unime_jax.models.vlm import Execution
from unime_jax.step import make_encode

CARRIED = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
SELF_CHECK = "self_check.json"


def export(
    folder: pathlib.Path,
    backbone: Backbone,
    graph: nnx.GraphDef,
    parameters: paths.Parameters,
    *,
    dtype: np.dtype,
) -> None:
    """Writes config, merged weights, tokenizer and processor; `folder` appears when all is there.

    Adapters are folded into their kernels. Tensors that only generation uses come from the
    backbone's own files. An earlier export in `folder` is replaced.
    """
    partial = folder.with_name(folder.name + ".partial")
    merged = merged_parameters(graph, parameters, dtype)
    if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    backbone.save_weights(partial, merged, dtype)
    if jax.process_index() != 0:
        return
    for pattern in CARRIED:
        for source in backbone.folder.glob(pattern):
            if not source.name.endswith(".index.json") and source.name != SELF_CHECK:
                shutil.copyfile(source, partial / source.name)
    changes = {"dtype": np.dtype(dtype).name} | dict(backbone.config_changes)
    _update_json(partial / "config.json", changes)
    _update_json(partial / "preprocessor_config.json", backbone.image_processor_changes)
    processing.write(partial, backbone.processing)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _update_json(path: pathlib.Path, changes: Mapping[str, Any]) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content, indent=2) + "\n")


def merged_parameters(
    graph: nnx.GraphDef, parameters: paths.Parameters, dtype: np.dtype
) -> paths.Parameters:
    """Parameters without adapters; kernels that had one, folded, are of `dtype`."""

    @jax.jit
    def fold(parameters: paths.Parameters) -> paths.Parameters:
        model = paths.merge(graph, parameters)
        lora.merge(model, dtype)
        return paths.split(model)[1]

    return fold(parameters)


def self_check(
    folder: pathlib.Path,
    items: Sequence[Item],
    trained: Encoder,
    *,
    plan: Plan,
    mesh: Mesh,
    execution: Execution,
    max_length: int,
    dtype: np.dtype,
) -> float:
    """Reads an export back, compares its embeddings with the trained model's, and records them.

    Writes <folder>/self_check.json with the inputs as the model gets them, images beside it.

    Returns:
      the lowest cosine between exported and trained embeddings of the items.

    Raises:
      RuntimeError: they differ by more than the rounding of `dtype` explains.
    """
    backbone = open_backbone(str(folder), max_length=max_length)
    graph, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    placed = sharding.parameter_shardings(mesh, {path: s.shape for path, s in shapes.items()})
    targets = {
        path: jax.ShapeDtypeStruct(shape.shape, jnp.float32, sharding=placed[path])
        for path, shape in shapes.items()
    }
    encoder = make_encoder(
        make_encode(graph, execution), ({}, backbone.load(targets)), backbone.preprocess, plan, mesh
    )
    expected, found = trained(items), encoder(items)
    cosine = float(np.min(np.sum(expected * found, axis=1)))
    rough = jnp.dtype("bfloat16") in (np.dtype(dtype), execution.dtype)
    bound = 0.999 if rough else 0.99999
    if not cosine >= bound:
        raise RuntimeError(
            f"{folder} does not reproduce the trained model: lowest cosine {cosine:.6f} over "
            f"{len(items)} inputs, at least {bound} was expected. The export is kept for study."
        )
    if jax.process_index() == 0:
        _write_self_check(folder, items, found, backbone.preprocess.rendered, dtype)
    logging.info("export %s reproduces the trained model: lowest cosine %.7f", folder, cosine)
    return cosine


def _write_self_check(
    folder: pathlib.Path,
    items: Sequence[Item],
    embeddings: np.ndarray,
    rendered: Callable[[Item], str],
    dtype: np.dtype,
) -> None:
    inputs = []
    for i, item in enumerate(items):
        image = None
        if item.image:
            image = f"self_check_{i}{pathlib.PurePath(item.image_path).suffix or '.png'}"
            (folder / image).write_bytes(item.image)
        inputs.append({"text": rendered(item), "image": image})
    record = {
        "dtype": np.dtype(dtype).name,
        "inputs": inputs,
        "embeddings": [[float(x) for x in row] for row in embeddings],
    }
    (folder / SELF_CHECK).write_text(json.dumps(record) + "\n")
