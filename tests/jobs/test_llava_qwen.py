"""LLaVE's checkpoints leave in the form that other libraries open."""

import functools
import io
import json
import pathlib

import jax
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoImageProcessor, AutoProcessor, LlavaOnevisionForConditionalGeneration

from tests.backbones.tiny_llava_qwen import write_llava_qwen
from tests.jobs import tiny_run
from tests.models.oracle import picture
from unime_jax import Embedder, backbones, sharding
from unime_jax.batch import Item, Media
from unime_jax.data.clips import archive
from unime_jax.data.inference_shapes import Ladder
from unime_jax.data.settings import Bucket
from unime_jax.inference.encode import make_encoder
from unime_jax.jobs import export, train

FRAME = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n\n<|im_end|>\n"
)
TEXTS = ["a red circle", " Represent the given image.\n"]
ITEMS = [
    Item(TEXTS[0]),
    Item(TEXTS[1]),  # white space is not stripped
    Item("<|image_1|>\n", (Media("a.png", picture(40, 31, 1)),)),
    Item(f"<|image_1|>\n{TEXTS[1]}", (Media("b.png", picture(30, 64, 2)),)),
]
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), np.uint8)
CLIP = Item(f"<image>\n{TEXTS[1]}", (Media("c.zip", archive([*FRAMES], fps=None), kind="clip"),))


def run_config(data: pathlib.Path, folder: pathlib.Path) -> ConfigDict:
    config = tiny_run.make_config(data)
    config.backbone = str(folder)
    config.init = "pretrained"
    config.processing.prompt = "verbatim"
    config.data.buckets = (Bucket(tokens=448, tiles=5),)  # one: half as much to compile
    return config


@pytest.fixture(scope="module")
def exported(data, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """An original folder, its embeddings tied, and what config.job=export writes of it."""
    base = tmp_path_factory.mktemp("llave")
    folder = write_llava_qwen(base / "original", tie_word_embeddings=True)
    config = run_config(data, folder)
    config.update({"job": "export", "steps": 0})
    export.run(config, base / "run")
    return folder, base / "run" / "hf"


@functools.cache
def embedded(folder: pathlib.Path) -> np.ndarray:
    """Of all items, the clip last."""
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    opened = Embedder.from_pretrained(str(folder), dtype="float32", max_length=512, mesh=mesh)
    model, backbone = opened.model, opened.backbone
    shapes = Ladder(backbone.layout, 1, 8, 512)
    encode = make_encoder(model.encode, model.parameters, backbone.preprocess, shapes, mesh)
    return encode([*ITEMS, CLIP])


def by_transformers(folder: pathlib.Path, items=(*ITEMS, CLIP)) -> np.ndarray:
    """By its own template, tokenizer, processors and model; nothing of ours."""
    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    vectors = []
    for item in items:
        content = [{"type": "image"}] if item.media else []
        images = [Image.open(io.BytesIO(x.data)) for x in item.media if item is not CLIP] or None
        videos, words = None, item.text.removeprefix("<|image_1|>\n")
        if item is CLIP:
            content, videos, words = [{"type": "video"}], [FRAMES], TEXTS[1]
        content.append({"type": "text", "text": words})
        text = processor.apply_chat_template([{"role": "user", "content": content}])
        inputs = processor(text=text, images=images, videos=videos, return_tensors="pt")
        with torch.no_grad():
            last = model.eval().model(**inputs).last_hidden_state[0, -1].numpy()
        vectors.append(last / np.linalg.norm(last))
    return np.stack(vectors)


def assert_equal(found, expected):
    assert np.all(np.sum(found * expected, axis=1) >= 0.99999)
    apart = expected @ expected.T - 2 * np.eye(len(expected))
    assert apart.max() < 0.999, "otherwise a wrong row could not be seen"


def test_our_embedder_and_others_give_the_embeddings(exported):
    folder, written = exported
    np.testing.assert_allclose(embedded(written), embedded(folder), atol=1e-6)

    # The template renders llaves prompt
    folder, written = exported
    processor = AutoProcessor.from_pretrained(written)
    ours = [backbones.open_backbone(str(f), max_length=512) for f in exported]
    for item in ITEMS:
        text = item.text.replace("<|image_1|>", "<image>")
        assert [x.preprocess.prompt.rendered(item) for x in ours] == [FRAME.format(text)] * 2
        content = [{"type": "image"}] if item.media else []
        content.append({"type": "text", "text": item.text.removeprefix("<|image_1|>\n")})
        for generation in (False, True):
            messages = [{"role": "user", "content": content}]
            found = processor.apply_chat_template(messages, add_generation_prompt=generation)
            assert found == FRAME.format(text)

    # Files are llava onevisions
    folder, written = exported
    config = json.loads((written / "config.json").read_text())
    assert config["model_type"] == "llava_onevision"
    assert config["image_token_index"] == 259 and config["text_config"]["rope_theta"] == 1e6
    assert config["vision_config"]["num_hidden_layers"] == 2
    tokenizer = json.loads((written / "tokenizer_config.json").read_text())
    keys = ("lstrip", "normalized", "rstrip", "single_word")
    for token_id, content in (("259", "<image>"), ("260", "<video>")):
        token = {"content": content, "special": True} | dict.fromkeys(keys, False)
        assert tokenizer["added_tokens_decoder"][token_id] == token
    assert config["video_token_index"] == 260
    assert "chat_template" not in tokenizer and tokenizer["eos_token"] == "<|im_end|>"
    before, after = (load_file(f / "model.safetensors") for f in exported)
    assert len(before) == len(after) and not set(before) & set(after)
    np.testing.assert_array_equal(
        after["multi_modal_projector.linear_2.weight"], before["model.mm_projector.2.weight"]
    )
    assert not (written / "siglip_vision_config.json").exists()

    # Transformers gives the embeddings
    folder, written = exported
    assert_equal(by_transformers(written), embedded(folder))

    # Sentence transformers gives the embeddings
    folder, written = exported
    model = SentenceTransformer(str(written), device="cpu")
    images = [Image.open(io.BytesIO(i.media[0].data)) if i.media else None for i in ITEMS]
    inputs = [TEXTS[0], TEXTS[1], images[2], {"text": TEXTS[1], "image": images[3]}]
    inputs.append({"video": FRAMES, "text": TEXTS[1]})
    with torch.no_grad():
        assert_equal(model.encode(inputs), embedded(folder))


@pytest.fixture(scope="module")
def zeros(data, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """As `exported`: embeddings are not tied, and an image that is not there is one of zeros."""
    base = tmp_path_factory.mktemp("llave_zeros")
    folder = write_llava_qwen(base / "original", mm_newline_position="grid")
    config = run_config(data, folder)
    config.processing.missing_images = "image"
    config.update({"job": "export", "steps": 0})
    export.run(config, base / "run")
    return folder, base / "run" / "hf"


@pytest.mark.slow
def test_training_exports_the_same_form(zeros, data, tmp_path):
    """Two steps of all parameters."""
    folder, _ = zeros
    config = run_config(data, folder)
    config.data.buckets = (Bucket(tokens=256, tiles=5),)  # a third of the work; texts are cut
    config.steps = 2
    config.batch_size = config.chunk_size = 8
    config.loss.hard_negatives = 4
    config.optimizer.learning_rate = 1e-3
    config.processing.missing_images = "image"
    train.run(config, tmp_path)
    written = tmp_path / "hf"
    assert json.loads((written / "config.json").read_text())["model_type"] == "llava_onevision"
    after = embedded(written)
    assert np.all(np.sum(after * embedded(folder), axis=1) < 0.9999)
    assert_equal(by_transformers(written, ITEMS), after[: len(ITEMS)])


def test_embeddings_that_are_not_tied_are_exported_alike(zeros):
    folder, written = zeros
    assert_equal(by_transformers(written, ITEMS), embedded(folder)[: len(ITEMS)])


def test_newlines_of_clips_are_remembered(zeros):
    """Where transformers has another number of them, users are told."""
    rows = [backbones.open_backbone(str(f), max_length=512).preprocess(CLIP) for f in zeros]
    for row in rows:
        np.testing.assert_array_equal(row.slot, rows[0].slot)
        assert (row.slot[:, 0] >= 0).sum() == 5 * 2 * 3 and (row.slot[:, 0] == 0).sum() == 5 * 2
    record = json.loads((zeros[1] / "embedder.json").read_text())
    assert (record["fps"], record["clip_newlines"]) == (3.0, "grid")
    readme = (zeros[1] / "README.md").read_text().replace("\n", " ")
    assert "transformers has one newline at its end" in readme


def test_images_of_zeros_are_remembered(zeros):
    """Other libraries cannot be told, so sentence-transformers is not offered."""
    _, written = zeros
    orphan = {"text": "<|image_1|>\nFind a Wikipedia image."}
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    model = Embedder.from_pretrained(str(written), dtype="float32", max_length=512, mesh=mesh)
    assert model.rendered(orphan) == FRAME.format("<image>\nFind a Wikipedia image.")
    row = backbones.open_backbone(str(written), max_length=512).preprocess(Item(orphan["text"]))
    assert (row.slot[:, 0] >= 0).sum() == 17 and (row.patch_position == -1).all()
    assert np.isfinite(model.encode([orphan, TEXTS[0]])).all()
    assert not (written / "modules.json").exists()
    assert "normalised pixels are zero" in (written / "README.md").read_text().replace("\n", " ")


def test_an_adapter_on_the_original_form_is_refused(data, tmp_path):
    config = run_config(data, write_llava_qwen(tmp_path / "original"))
    config.trainable = ((r".*\.lora_(a|b|magnitude)", True), (".*", False))
    config.lora.rank = 4
    config.export.adapter = True
    with pytest.raises(ValueError, match="cannot open the adapter's base"):
        train.run(config, tmp_path / "run")
