"""A tiny random model, as transformers' PyTorch model and as ours, with equal weights."""

import dataclasses
import functools
import io
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from unime_jax import backbones, paths, sharding
from unime_jax.batch import Inputs, Item
from unime_jax.data.bucket_filling import fill_buckets, row_numbers
from unime_jax.data.shapes import BatchShapes, Bucket
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
ROPE_THETA = 5e4  # no family's, as the epsilons of the pairs below: what is read must be used


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    torch_model: PreTrainedModel
    backbone: backbones.Backbone
    parameters: paths.Parameters
    model: Vlm


@functools.partial(jax.jit, static_argnums=2)
def embedded_by(model, inputs, names):
    """Embeddings, and what the model's methods of these names return on the way to them.

    One program, in which what they have in common is computed once.
    """
    seen = dict.fromkeys(names)

    def keeping(name, method):
        def keep(*arguments):
            seen[name] = method(*arguments)
            return seen[name]

        return keep

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(type(model), name, keeping(name, getattr(type(model), name)))
        embeddings = model(inputs, EXACT)
    return embeddings, *(seen[name] for name in names)


class FindsPositions:
    """A torch model that ignores the positions it is given."""

    def __init__(self, model):
        self.config, self._model = model.config, model.model

    def model(self, position_ids, **inputs):
        return self._model(**inputs)


def make_pair(folder: pathlib.Path, *, grid: int, max_tiles: int = 9, seed: int = 0) -> Pair:
    """A LLaVA-OneVision; see `pair_of`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA}}
    vision, text = VISION | {"layer_norm_eps": 0.02}, text | {"rms_norm_eps": 0.03}
    write_folder(folder, grid=grid, max_tiles=max_tiles, vision=vision, text=text)
    return pair_of(folder, seed=seed)


def make_next_pair(
    folder: pathlib.Path, decoder: Literal["llama", "mistral"], *, seed: int = 0
) -> Pair:
    """A LLaVA-NeXT, whose tower's last but one layer is read; see `pair_of`."""
    vision = VISION | {"num_hidden_layers": 3, "layer_norm_eps": 0.02}
    text = TEXT | {"vocab_size": 448, "rms_norm_eps": 0.03, "rope_theta": ROPE_THETA}
    write_llava_next(folder, decoder=decoder, vision=vision, text=text)
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
    with torch.no_grad():
        return pair.torch_model.model(**_torch_inputs(pair, item)).last_hidden_state[0].numpy()


def torch_logits(pair: Pair, item: Item) -> np.ndarray:
    """transformers' logits [vocabulary] of the token after one item, as `torch_hidden`."""
    with torch.no_grad():
        return pair.torch_model(**_torch_inputs(pair, item)).logits[0, -1].numpy()


def _torch_inputs(pair: Pair, item: Item) -> dict[str, torch.Tensor]:
    row = pair.backbone.preprocess(item)
    ids = torch.tensor(np.asarray(row.tokens))[None].long()
    inputs = {"input_ids": ids} | _torch_pixels(pair, [item])
    if pair.backbone.layout.axes == 3:
        inputs["mm_token_type_ids"] = (ids == pair.torch_model.config.image_token_id).int()
        inputs["position_ids"] = torch.tensor(row.positions.T[:, None]).long()
    return inputs


def torch_left_padded(pair: Pair, items: list[Item]) -> np.ndarray:
    """transformers' states [n, D] of the last tokens of a batch that is padded on the left.

    Positions are transformers' default for such a batch.
    """
    tokens = [pair.backbone.preprocess(item).tokens for item in items]
    longest = max(map(len, tokens))
    ids = np.stack([np.pad(row, (longest - len(row), 0)) for row in tokens])
    mask = np.stack([np.arange(longest) >= longest - len(row) for row in tokens])
    inputs = {
        "input_ids": torch.tensor(ids).long(),
        "attention_mask": torch.tensor(mask).long(),
    } | _torch_pixels(pair, items)
    with torch.no_grad():
        return pair.torch_model.model(**inputs).last_hidden_state[:, -1].numpy()


def _torch_pixels(pair: Pair, items: list[Item]) -> dict[str, torch.Tensor]:
    """What transformers' image processor makes of all images, handed over item by item."""
    images = [
        [Image.open(io.BytesIO(image.data)).convert("RGB") for image in item.media]
        for item in items
        if item.media
    ]
    if not images:
        return {}
    processor = AutoImageProcessor.from_pretrained(pair.backbone.folder, backend="pil")
    return dict(processor(images=images, return_tensors="pt"))


def packed(pair: Pair, items: list[Item], tokens: int, tiles: int) -> tuple[Inputs, np.ndarray]:
    """The items as one chunk of one bucket, and each one's row in it."""
    shapes = BatchShapes((Bucket(tokens, tiles),), pair.backbone.layout, len(items), len(items))
    groups, places = fill_buckets([pair.backbone.preprocess(item) for item in items], shapes)
    chunk = jax.tree.map(lambda x: jax.device_put(x[0]), groups[0])
    return chunk, row_numbers(places, shapes)
