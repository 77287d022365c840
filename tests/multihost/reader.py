"""One process of two that read a model's weights, note what of them, and write them again.

Each leaves <folder>/<process>.json: by parameter its spec and how many of its values it has read.
"""

import collections
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from unime_jax import backbones, paths, sharding
from unime_jax.backbones.io import weights
from unime_jax.operations import processes


def read(coordinator: str, process: int, model: str, folder: pathlib.Path) -> None:
    processes.join(coordinator=coordinator, process_id=process, num_processes=2)
    backbone = backbones.open_backbone(model, max_length=64)
    mesh = sharding.make_mesh(1, 4, 2)
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    placed = sharding.parameter_shardings(mesh, {path: x.shape for path, x in shapes.items()})
    targets = {
        path: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=placed[path])
        for path, x in shapes.items()
    }
    read: collections.Counter[str] = collections.Counter()
    read_shard = weights._read_shard

    def read_and_note(checkpoint, entry, *others):
        shard = read_shard(checkpoint, entry, *others)
        read[entry.path] += shard.size
        return shard

    weights._read_shard = read_and_note
    parameters = backbone.load(targets)
    backbone.save_weights(folder, parameters, np.dtype(np.float32))
    found = {path: (str(placed[path].spec), read[path], shapes[path].size) for path in shapes}
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(found))
    processes.leave()
