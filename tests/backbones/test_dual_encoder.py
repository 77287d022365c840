"""CLIP and SigLIP against transformers: vectors of texts, images and both, and back."""

import io

import jax
import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from tests.backbones.tiny_dual_encoders import LENGTH, write_clip, write_siglip
from tests.models.oracle import picture
from tests.tables import for_each
from unime_jax import Embedder, sharding

CLOSE = 1e-4  # largest absolute difference between unit vectors, float32
TEXTS = ["", "a", "A red circle, left of a BLUE square!", "red circle " * 20, "\u00fc \u4e2d  's"]
SIZES = [(28, 28), (61, 37), (30, 95), (200, 28)]
WRITERS = {
    "clip": write_clip,
    "clip of old": lambda folder: write_clip(folder, eos_token_id=2),
    "siglip": write_siglip,
    "siglip, padded on the left": lambda folder: write_siglip(folder, side="left"),
}


def unit(x):
    x = np.asarray(x, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def theirs(folder, model, texts, images):
    """transformers' vectors of texts and of images, of length one."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    padding = "max_length" if model.config.model_type == "siglip" else True
    ids = tokenizer(texts, padding=padding, truncation=True, max_length=LENGTH, return_tensors="pt")
    pixels = processor(images=images, return_tensors="pt")
    with torch.no_grad():
        of_texts = model.get_text_features(**ids).pooler_output
        of_images = model.get_image_features(**pixels).pooler_output
    return unit(of_texts), unit(of_images)


def opened(folder, devices=1):
    mesh = sharding.make_mesh(1, devices, 1, jax.devices()[:devices])
    return Embedder.from_pretrained(folder, dtype="float32", mesh=mesh)


@for_each("kind", WRITERS)
def test_vectors_are_transformers(tmp_path, kind):
    """Texts of all lengths, images of all shapes, and items with both or with several images."""
    model = WRITERS[kind](tmp_path)
    pictures = [Image.open(io.BytesIO(picture(*size, i))) for i, size in enumerate(SIZES)]
    texts, images = theirs(tmp_path, model, TEXTS, pictures)
    embedder = opened(tmp_path)
    assert embedder.max_length == LENGTH
    np.testing.assert_allclose(embedder.encode(TEXTS), texts, atol=CLOSE, rtol=0)
    mixed = [
        *({"image": image} for image in pictures),
        {"text": TEXTS[2], "image": pictures[1]},
        {"text": f"<|image_1|>\n{TEXTS[2]}", "image": pictures[2]},
        {"text": "<|image_1|> \n", "image": pictures[0]},
        {"image": pictures[:3]},
        {"text": TEXTS[1], "image": pictures[:2]},
        TEXTS[2],
    ]
    expected = [
        *images,
        texts[2] + images[1],
        texts[2] + images[2],
        images[0],
        images[:3].sum(axis=0),
        texts[1] + unit(images[:2].sum(axis=0)),
        texts[2],
    ]
    found = embedder.encode(mixed, batch_size=4)
    np.testing.assert_allclose(found, unit(np.stack(expected)), atol=CLOSE, rtol=0)
