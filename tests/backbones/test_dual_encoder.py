"""CLIP, SigLIP and SigLIP 2 against transformers: vectors of texts, images and both, and back."""

import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    get_image_size_for_max_num_patches,
)

from tests.backbones.checkpoints import DTYPES, assert_same, tensors
from tests.backbones.test_peft_targets import write_adapter
from tests.backbones.tiny_dual_encoders import LENGTH, write_clip, write_siglip, write_siglip2
from tests.models.oracle import EXACT, load, picture
from tests.tables import for_each
from unime_jax import Embedder, paths, sharding
from unime_jax.backbones import Processing, open_backbone
from unime_jax.backbones.dual_encoder.tiles import grid_of
from unime_jax.batch import Item, Media
from unime_jax.data.bucket_filling import fill_buckets
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.export import folder as hf_folder
from unime_jax.export import transformers_check

CLOSE = 1e-4  # largest absolute difference between unit vectors, float32
TEXTS = ["", "a", "A red circle, left of a BLUE square!", "red circle " * 20, "\u00fc \u4e2d  's"]
SIZES = [(28, 28), (61, 37), (30, 95), (200, 28)]
WRITERS = {
    "clip": write_clip,
    "clip, pooled at the largest id": lambda folder: write_clip(folder, eos_token_id=2),
    "siglip": write_siglip,
    "siglip2": write_siglip2,
    "siglip, padded on the left": lambda folder: write_siglip(folder, side="left"),
}


def unit(x):
    x = np.asarray(x, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def theirs(folder, model, texts, images):
    """transformers' vectors of texts and of images, of length one."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    padding = "max_length" if model.config.model_type.startswith("siglip") else True
    ids = tokenizer(texts, padding=padding, truncation=True, max_length=LENGTH, return_tensors="pt")
    pixels = processor(images=images, return_tensors="pt")
    with torch.no_grad():
        of_texts = model.get_text_features(**ids).pooler_output
        of_images = model.get_image_features(**pixels).pooler_output
    return unit(of_texts), unit(of_images)


def opened(folder, devices=1):
    mesh = sharding.make_mesh(1, devices, 1, jax.devices()[:devices])
    return Embedder.from_pretrained(folder, dtype="float32", mesh=mesh)


# SigLIP's texts and images are compared below, and what items have of several is all towers' own.
@for_each("kind", WRITERS, quick=WRITERS.keys() - {"siglip"})
def test_vectors_are_transformers(tmp_path, kind):
    """Texts of all lengths, images of all shapes, items with both, and of one with several."""
    model = WRITERS[kind](tmp_path)
    pictures = [Image.open(io.BytesIO(picture(*size, i))) for i, size in enumerate(SIZES)]
    texts, images = theirs(tmp_path, model, TEXTS, pictures)
    embedder = opened(tmp_path)
    assert embedder.max_length == LENGTH
    items, expected = list(TEXTS), list(texts)
    if "," not in kind:
        items += [
            *({"image": image} for image in pictures),
            {"text": TEXTS[2], "image": pictures[1]},
            {"text": f"<|image_1|>\n{TEXTS[2]}", "image": pictures[2]},
            {"text": "<|image_1|> \n", "image": pictures[0]},
        ]
        expected += [
            *images,
            texts[2] + images[1],
            texts[2] + images[2],
            images[0],
        ]
    if kind == "siglip2":
        items += [{"image": pictures[:2]}, {"text": TEXTS[1], "image": pictures[2:]}]
        expected += [images[:2].sum(axis=0), texts[1] + unit(images[2:].sum(axis=0))]
    found = embedder.encode(items)
    np.testing.assert_allclose(found, unit(np.stack(expected)), atol=CLOSE, rtol=0)


IMAGE = Media("a.png", picture(40, 31, 1))
ITEMS = [
    Item("a red circle"),
    Item("<|image_1|>", (IMAGE,)),
    Item("a blue square", (IMAGE,)),
    Item("", (Media("b.png", picture(30, 50, 2)), IMAGE)),
    Item("red <|image_1|>circle"),
    Item(" ", (Media("c.png", picture(60, 30, 3)),)),
]


def test_a_bucket_has_the_tower_that_its_rows_need(tmp_path):
    """Texts, images and both give the same vectors in buckets of their own as in one for all."""
    write_siglip2(tmp_path)
    backbone = open_backbone(str(tmp_path), max_length=4096)
    rows = [backbone.preprocess(item) for item in ITEMS]
    lengths = [len(row.tokens) for row in rows]
    assert [lengths[i] for i in (1, 3, 5)] == [0, 0, 0] and min(lengths[0], lengths[2]) > 2
    assert [row.unmatched_markers for row in rows] == [0, 0, 0, 0, 1, 0]
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    parameters = load(backbone)

    def embed(parameters, inputs):
        return paths.merge(graph, parameters)(inputs, EXACT)

    direction = np.random.default_rng(1).normal(size=backbone.dimension).astype(np.float32)

    def objective(parameters, inputs):
        embeddings = embed(parameters, inputs)
        return jnp.sum(embeddings @ direction), embeddings

    def filled(buckets):
        shapes = BatchShapes(buckets, backbone.layout, len(rows), len(rows))
        groups, places = fill_buckets(rows, shapes)
        return jax.tree.map(lambda x: x[0], groups), places

    own, places = filled((Bucket(0, 1), Bucket(LENGTH, 0), Bucket(LENGTH, 2)))
    assert [int(group.live.sum()) for group in own] == [2, 2, 2]
    apart = [jax.jit(embed)(parameters, group) for group in own]
    apart = np.stack([apart[group][place] for group, _, place in places])
    (group,), places = filled((Bucket(LENGTH, 2),))
    gradient, together = jax.jit(jax.grad(objective, has_aux=True))(parameters, group)
    together = np.asarray(together)[[place for *_, place in places]]
    np.testing.assert_allclose(apart, together, atol=1e-6, rtol=0)
    # Every parameter learns from rows of all kinds, and padding gives no NaN.
    for path, x in gradient.items():
        assert np.isfinite(x).all(), path
        assert np.abs(x).max() > 0 or path.endswith("k_proj.bias"), path  # cancels in the softmax


MODULE = {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}


@for_each("kind", ["siglip", "siglip2"])
def test_a_siglip_comes_back(tmp_path, caplog, kind):
    """Exported: bit by bit, with the scale of its loss, and as three libraries embed it."""
    caplog.clear()
    given, exported = tmp_path / "given", tmp_path / "exported"
    model = WRITERS[kind](given)
    tokenizer = json.loads((given / "tokenizer_config.json").read_text())
    del tokenizer["model_input_names"]  # transformers then masks padding
    (given / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (given / "modules.json").write_text(json.dumps([MODULE]))
    backbone = open_backbone(str(given), max_length=4096)
    for warning in ("tokenizer masks padding", "pads texts to the longest of a batch"):
        assert caplog.text.count(warning) == 1, warning
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    hf_folder.write(
        exported, backbone, graph, load(backbone), dtype=DTYPES["float32"], prompts={"q": "find: "}
    )
    assert {"logit_scale", "logit_bias"} < tensors(given).keys()
    assert_same(tensors(exported), tensors(given))
    transformers_check.check(exported, open_backbone(str(exported), max_length=4096), ITEMS)
    for warning in ("tokenizer masks padding", "pads texts to the longest of a batch"):
        assert caplog.text.count(warning) == 1, warning  # put right
    images = [Image.open(io.BytesIO(picture(*size, i))) for i, size in enumerate(SIZES)]
    expected = theirs(exported, AutoModel.from_pretrained(exported), TEXTS, images)
    embedder, library = opened(exported), SentenceTransformer(str(exported), device="cpu")
    assert type(library[0].model) is type(model) and embedder.prompts == {"q": "find: "}
    found = embedder.encode([*TEXTS, *images])
    np.testing.assert_allclose(found, np.concatenate(expected), atol=CLOSE, rtol=0)
    for items, vectors in zip((TEXTS, images), expected, strict=True):
        np.testing.assert_allclose(library.encode(items), vectors, atol=CLOSE, rtol=0)


def test_adapters_on_both_towers_are_merged(tmp_path):
    write_clip(tmp_path / "base")
    adapter = tmp_path / "adapter"
    targets = ["q_proj", "fc2", "out_proj", "visual_projection"]
    write_adapter(tmp_path / "base", adapter, AutoModel, target_modules=targets, r=3)
    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), adapter)
    images = [Image.open(io.BytesIO(picture(40, 31, 1)))]
    texts, pictures = theirs(tmp_path / "base", model.merge_and_unload(), TEXTS, images)
    found = opened(adapter).encode([*TEXTS, *images])
    np.testing.assert_allclose(found, [*texts, *pictures], atol=CLOSE, rtol=0)


# config.json of published checkpoints, as far as it decides shapes, and their parameters without
# scale and bias of the loss.
PUBLISHED = {
    "clip": (
        {
            "projection_dim": 768,
            "text_config": {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_attention_heads": 12,
                "num_hidden_layers": 12,
                "eos_token_id": 2,
            },
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "image_size": 336,
                "patch_size": 14,
            },
        },
        427_944_192,
    ),
    "siglip": (
        {
            "text_config": {
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_attention_heads": 16,
                "num_hidden_layers": 27,
                "projection_size": 1152,
                "vocab_size": 256000,
            },
            "vision_config": {
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_attention_heads": 16,
                "num_hidden_layers": 27,
                "image_size": 384,
                "patch_size": 14,
            },
        },
        1_136_008_496,
    ),
}


@for_each("kind", PUBLISHED)
def test_published_sizes_are_traced_and_sharded(tmp_path, kind):
    config, parameters = PUBLISHED[kind]
    WRITERS[kind](tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    side = config["vision_config"]["image_size"]
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    square = {"height": side, "width": side}
    changed = {"size": side if kind == "clip" else square, "crop_size": side}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | changed))
    backbone = open_backbone(str(tmp_path), max_length=4096, weights=False)
    graph, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    assert sum(math.prod(x.shape) for x in shapes.values()) == parameters
    mesh = sharding.make_mesh(2, 2, 2)
    placed = sharding.parameter_shardings(mesh, {path: x.shape for path, x in shapes.items()})
    whole = {path for path in shapes if not any(placed[path].spec)}
    assert not [path for path in whole if path.endswith((".kernel", "in_proj_weight"))]
    assert any(placed["text_model.embeddings.token_embedding.embedding"].spec)
    text = backbone.preprocess.prompt.max_length
    for bucket in (Bucket(0, 1), Bucket(text, 0), Bucket(text, 1)):
        groups, _ = fill_buckets([], BatchShapes((bucket,), backbone.layout, 2, 2))
        chunk = jax.tree.map(lambda x: x[0], groups[0])
        embed = lambda p, i: paths.merge(graph, p)(i, EXACT)  # noqa: E731
        assert jax.eval_shape(embed, shapes, chunk).shape == (2, backbone.dimension)


def test_what_is_refused_and_what_is_not(tmp_path):
    siglip, clip = tmp_path / "siglip", tmp_path / "clip"
    write_siglip(siglip)
    write_clip(clip, eos_token_id=7)
    with pytest.raises(ValueError, match=f"always padded to {LENGTH} tokens, and max_length.* 8"):
        open_backbone(str(siglip), max_length=8)
    with pytest.raises(ValueError, match="only image_size can be chosen"):
        open_backbone(str(siglip), max_length=None, processing=Processing(prompt="chat"))
    with pytest.raises(ValueError, match="eos_token_id, 7, but tokenizer.json ends texts other"):
        open_backbone(str(clip), max_length=None)
    # transformers' own tokenizer of SigLIP needs SentencePiece; its tokenizer.json does as well.
    expected = open_backbone(str(siglip), max_length=None).preprocess(ITEMS[0]).tokens
    tokenizer = json.loads((siglip / "tokenizer_config.json").read_text())
    changed = {"tokenizer_class": "SiglipTokenizer", "pad_token": {"content": "<pad>"}}
    (siglip / "tokenizer_config.json").write_text(json.dumps(tokenizer | changed))
    found = open_backbone(str(siglip), max_length=None).preprocess(ITEMS[0]).tokens
    np.testing.assert_array_equal(found, expected)
    naflex = tmp_path / "naflex"
    write_siglip2(naflex)
    settings = json.loads((naflex / "preprocessor_config.json").read_text()) | {"patch_size": 8}
    (naflex / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="patch_size is 8, and vision_config.patch_size .* 7"):
        open_backbone(str(naflex), max_length=None)


@for_each("most", [1, 20, 256, 1024])
def test_grids_of_any_aspect_are_transformers(most):
    random = np.random.default_rng(most)
    for height, width in np.exp(random.uniform(0, 8, (50, 2))).astype(int).tolist():
        expected = get_image_size_for_max_num_patches(height, width, 16, most)
        rows, columns = grid_of(height, width, patch=16, most=most)
        assert (16 * rows, 16 * columns) == expected and rows * columns <= max(most, 1)
