"""Tiny checkpoints of every family in every spelling, and what tests do with their tensors."""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_llava_qwen import write_llava_qwen
from tests.backbones.tiny_phi3_v import write_phi3_v, write_weights
from tests.backbones.tiny_qwen import write_qwen2_5_vl, write_qwen2_vl
from tests.backbones.tiny_qwen3 import write_qwen3_vl
from tests.backbones.tiny_texts import write_bert, write_nv_embed
from tests.models.oracle import Pair, make_pair, pair_of
from unime_jax import backbones, paths, sharding
from unime_jax.backbones.io import names, tensor_files
from unime_jax.models import lora
from unime_jax.models.vlm import EmbeddingModel

Tensors = dict[str, np.ndarray]

PAIRS: dict[str, Callable[[pathlib.Path], Pair]] = {
    "llava_onevision": lambda folder: make_pair(folder, grid=2),
    "llava_next": lambda folder: pair_of(write_llava_next(folder)),
    "qwen2_vl": lambda folder: pair_of(write_qwen2_vl(folder)),
    "qwen3_vl": lambda folder: pair_of(write_qwen3_vl(folder)),
    "qwen2_5_vl": lambda folder: pair_of(write_qwen2_5_vl(folder)),
}


def _nv_embed(folder: pathlib.Path) -> None:
    backbone = backbones.open_backbone(str(write_nv_embed(folder)), max_length=64)
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    random = np.random.default_rng(0)
    given = {
        name: random.normal(size=entry.shape).astype(np.float32) * 0.1
        for entry in names.table({path: x.shape for path, x in shapes.items()}, backbone.names)
        for name in entry.names
    }
    save_file(given, folder / "model.safetensors", metadata={"format": "pt"})


WRITE: dict[str, Callable[[pathlib.Path], object]] = PAIRS | {
    "bert": lambda folder: write_bert(folder, masked_lm=True),
    "llava_qwen": write_llava_qwen,
    "nvembed": _nv_embed,
    "phi3_v": lambda folder: write_weights(write_phi3_v(folder)),
}
LLAVA_ON_THE_HUB = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.": "",
    "lm_head.": "language_model.lm_head.",
}
ON_THE_HUB = {  # prefixes of transformers 5's modules -> those of the tensors on the hub
    "llava_onevision": LLAVA_ON_THE_HUB,
    "llava_next": LLAVA_ON_THE_HUB,
    "qwen2_vl": {"model.language_model.": "model.", "model.": ""},
    "qwen3_vl": {},
    "qwen2_5_vl": {"model.language_model.": "model.", "model.": ""},
}
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def family(pair: Pair) -> str:
    """The model_type of a pair."""
    return pair.torch_model.config.model_type


def on_the_hub(family: str, module: str) -> str:
    """How published files of a family call a tensor, or a module, of transformers 5."""
    for prefix, published in ON_THE_HUB[family].items():
        if module.startswith(prefix):
            return published + module[len(prefix) :]
    return module


def spellings(pair: Pair) -> dict[str, Tensors]:
    """The same tensors as save_pretrained writes them, as its modules and as the hub call them."""
    modules = {name: x.numpy() for name, x in pair.torch_model.state_dict().items()}
    modules = {name: np.array(x) for name, x in modules.items()}
    hub = {on_the_hub(family(pair), name): x for name, x in modules.items()}
    return {"saved": tensors(pair.backbone.folder), "modules": modules, "hub": hub}


def tensors(folder: pathlib.Path) -> Tensors:
    """All tensors of a folder by name."""
    files = tensor_files.checkpoint_files(folder)
    return {name: x for file in files for name, x in load_file(folder / file).items()}


def write(
    pair: Pair, folder: pathlib.Path, given: Mapping[str, np.ndarray], shards: int = 1
) -> backbones.Backbone:
    """The pair's folder with other tensors, in one file or in several with an index."""
    shutil.copytree(pair.backbone.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if shards == 1:
        save_file(dict(given), folder / tensor_files.SINGLE, metadata={"format": "pt"})
    else:
        weight_map = {name: f"part-{i % shards}.safetensors" for i, name in enumerate(given)}
        for file in set(weight_map.values()):
            part = {name: x for name, x in given.items() if weight_map[name] == file}
            save_file(part, folder / file, metadata={"format": "pt"})
        (folder / tensor_files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return backbones.open_backbone(str(folder), max_length=4096)


def with_adapters(
    model: EmbeddingModel, parameters: paths.Parameters, config: lora.LoraConfig
) -> tuple[nnx.GraphDef, paths.Parameters]:
    """A model with adapters as after some training, of which nothing is compiled."""

    def add(model: EmbeddingModel) -> EmbeddingModel:
        lora.add(model, config, key=jax.random.key(1))
        return model

    graph, shapes = paths.split(jax.eval_shape(add, model))
    rng = np.random.default_rng(2)
    adapted = dict(parameters)
    for path in sorted(shapes.keys() - parameters.keys()):
        layer, _, name = path.rpartition(".")
        values = rng.normal(size=shapes[path].shape).astype(np.float32)
        if name == "lora_magnitude":
            norm = np.linalg.norm(parameters[f"{layer}.kernel"], axis=-2)
            adapted[path] = jax.device_put(norm * (1 + 0.3 * values))
        else:
            adapted[path] = jax.device_put({"lora_a": 1 / 3, "lora_b": 0.2}[name] * values)
    return graph, adapted


def targets(
    backbone: backbones.Backbone, mesh: Mesh | None = None, dtype: np.dtype = DTYPES["float32"]
) -> dict[str, jax.ShapeDtypeStruct]:
    """What to load: sharded as in training, on one device if there is no mesh."""
    mesh = mesh or sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    placed = sharding.parameter_shardings(mesh, {path: x.shape for path, x in shapes.items()})
    return {
        path: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=placed[path])
        for path, x in shapes.items()
    }


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Names, shapes, dtypes and bits."""
    assert found.keys() == expected.keys()
    for name in expected:
        a, b = np.asarray(found[name]), np.asarray(expected[name])
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert a.tobytes() == b.tobytes(), name
