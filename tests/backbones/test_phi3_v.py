"""Phi-3.5-Vision folders: their settings, and embeddings of what is in them."""

import io
import shutil

import jax
import numpy as np
import pytest

from tests.backbones.images import noise
from tests.backbones.tiny_phi3_v import ROPE, TEXT, write_phi3_v
from tests.tables import for_each
from unime_jax import Embedder, paths
from unime_jax.backbones import Processing, open_backbone

CHAT = Processing(prompt="chat", crops=4)


def opened(folder, processing=None, max_length=4096):
    return open_backbone(str(folder), max_length=max_length, processing=processing)


# Settings


@for_each(
    "changes, message",
    [
        (dict(embd_layer={"hd_transform_order": "glb_sub"}), "embd_layer.embedding_cls"),
        (dict(img_processor={"name": "siglip"}), "img_processor.name"),
        (dict(rope_scaling={"type": "yarn"}), "rope_scaling.type is 'yarn'"),
        (dict(ROPE, rope_scaling=ROPE["rope_scaling"] | {"long_factor": [1.0]}), "long factors"),
        (dict(sliding_window=100), "sliding_window is 100"),
        (dict(hidden_act="relu"), "hidden_act"),
    ],
)
def test_what_is_not_done_is_said(tmp_path, changes, message):
    write_phi3_v(tmp_path, text=TEXT | ROPE | changes)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)


def test_a_folder_needs_no_tower_and_runs_no_code(tmp_path, phi3_v_folder, monkeypatch):
    # The published tower needs no file. CLIP ViT-L/14-336, which config.json only names.
    write_phi3_v(tmp_path, vision=None)
    backbone = opened(tmp_path)
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    layers = "vision_tower.encoder.layers"
    assert shapes[f"{layers}.mlp.fc1.kernel"].shape == (23, 1024, 4096)
    assert shapes["vision_tower.embeddings.position_embedding.embedding"].shape == (577, 1024)
    assert backbone.layout.patches == 576 and backbone.layout.patch_bytes == 588
    assert backbone.names.is_unused(
        "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.23.mlp.fc1.bias"
    )

    # No code of a folder runs and nobody is asked.
    (tmp_path := tmp_path / "next").mkdir()
    shutil.copytree(phi3_v_folder, tmp_path / "folder")
    for name in ("configuration_phi3_v.py", "processing_phi3_v.py", "modeling_phi3_v.py"):
        (tmp_path / "folder" / name).write_text("raise RuntimeError('this must not run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    assert opened(tmp_path / "folder").dimension == 16


# Embeddings

ELEMENTS = [
    "a red circle left of a blue square",
    {"image": noise(40, 31, seed=1)},
    {"text": "<|image_1|>\nRepresent the given image", "image": noise(20, 61, seed=2)},
    {
        "text": "what is <|image_2|> beside <|image_1|>?",
        "image": [noise(9, 30), noise(30, 30, seed=3)],
    },
    "word " * 40,  # more than the 64 positions of short factors
    {"text": "<|image_1|> or <|image_1|>", "image": noise(33, 12, seed=4)},
]


@pytest.fixture(scope="module")
def embedder(phi3_v_folder):
    return Embedder.from_pretrained(phi3_v_folder, dtype="float32", max_length=300)


def test_embeddings_do_not_depend_on_their_neighbours(embedder):
    together = embedder.encode(ELEMENTS)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    alone = np.concatenate([embedder.encode([element]) for element in ELEMENTS])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    again = embedder.encode(ELEMENTS[::-1], batch_size=2)[::-1]
    np.testing.assert_allclose(together, again, atol=2e-6)
    assert np.max(together @ together.T - np.eye(len(ELEMENTS))) < 0.999


def test_images_go_by_their_number_be_they_bytes_or_files(embedder, tmp_path):
    # Images go by their number.
    a, b = noise(9, 30), noise(30, 30, seed=3)
    one, other, renamed = embedder.encode(
        [
            {"text": "<|image_1|> beside <|image_2|>", "image": [a, b]},
            {"text": "<|image_2|> beside <|image_1|>", "image": [a, b]},
            {"text": "<|image_2|> beside <|image_1|>", "image": [b, a]},
        ]
    )
    np.testing.assert_allclose(one, renamed, atol=2e-6)
    assert one @ other < 0.9999

    # Encoded bytes and files are the same.
    stream = io.BytesIO()
    noise(30, 20).save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    found = embedder.encode([{"image": stream.getvalue()}, {"image": tmp_path / "a.png"}])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_chat_and_half_precision(phi3_v_folder):
    chat = Embedder.from_pretrained(phi3_v_folder, dtype="float32", max_length=300, processing=CHAT)
    half = Embedder.from_pretrained(
        phi3_v_folder, dtype="bfloat16", max_length=300, processing=CHAT
    )
    exact, rounded = chat.encode(ELEMENTS[1:4]), half.encode(ELEMENTS[1:4])  # one program
    assert np.all(np.sum(exact * rounded, axis=1) > 0.99)
