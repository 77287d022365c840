"""A tiny random model, as transformers' PyTorch model and as ours, with equal weights."""

import dataclasses
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from tests.backbones.tiny_folders import write_folder
from unime_jax import backbones, paths, sharding
from unime_jax.batch import Inputs, Item
from unime_jax.data.pack import Bucket, Plan, fill_buckets, row_numbers
from unime_jax.models.vlm import Execution, Vlm

EXACT = Execution(jnp.float32, "none", "xla")
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
TEXT = dict(
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    torch_model: PreTrainedModel
    backbone: backbones.Backbone
    parameters: paths.Parameters
    model: Vlm


def make_pair(folder: pathlib.Path, *, grid: int, max_tiles: int = 9, seed: int = 0) -> Pair:
    """A LLaVA-OneVision; see `pair_of`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(folder, grid=grid, max_tiles=max_tiles, vision=VISION, text=TEXT)
    return pair_of(folder, seed=seed)


def pair_of(
    folder: pathlib.Path, *, seed: int = 0, processing: backbones.Processing | None = None
) -> Pair:
    """Writes weights into a folder through transformers and opens it through ours."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms must matter, too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    config = (folder / "config.json").read_bytes()
    model.save_pretrained(folder)
    (folder / "config.json").write_bytes(config)  # in the hub's form, not transformers' newest
    backbone = backbones.open_backbone(str(folder), max_length=4096, processing=processing)
    parameters = load(backbone)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    return Pair(model, backbone, parameters, paths.merge(graph, parameters))


def load(backbone: backbones.Backbone) -> paths.Parameters:
    """All parameters on one device, float32."""
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    place = sharding.replicated(mesh)
    return backbone.load(
        {
            path: jax.ShapeDtypeStruct(shape.shape, jnp.float32, sharding=place)
            for path, shape in shapes.items()
        }
    )


def picture(width: int, height: int, seed: int) -> bytes:
    """A noisy image as PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def torch_hidden(pair: Pair, item: Item) -> np.ndarray:
    """transformers' last hidden states [t, D] of one item, unpadded, on its own pixel pipeline."""
    row = pair.backbone.preprocess(item)
    ids = torch.tensor(np.asarray(row.tokens))[None].long()
    inputs = {"input_ids": ids}
    if item.pictures:
        processor = AutoImageProcessor.from_pretrained(pair.backbone.folder, backend="pil")
        images = [Image.open(io.BytesIO(data)).convert("RGB") for _, data in item.pictures]
        # One sample of several images, as its own processor hands them over.
        inputs |= processor(images=[images], return_tensors="pt")
    if pair.backbone.layout.axes == 3:
        inputs["mm_token_type_ids"] = (ids == pair.torch_model.config.image_token_id).int()
        inputs["position_ids"] = torch.tensor(row.positions.T[:, None]).long()
    with torch.no_grad():
        return pair.torch_model.model(**inputs).last_hidden_state[0].numpy()


def packed(pair: Pair, items: list[Item], tokens: int, tiles: int) -> tuple[Inputs, np.ndarray]:
    """The items as one chunk of one bucket, and each one's row in it."""
    plan = Plan((Bucket(tokens, tiles),), pair.backbone.layout, len(items), len(items))
    groups, places = fill_buckets([pair.backbone.preprocess(item) for item in items], plan)
    chunk = jax.tree.map(lambda x: jnp.asarray(x[0]), groups[0])
    return chunk, row_numbers(places, plan)
