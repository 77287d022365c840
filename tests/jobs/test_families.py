"""Every family from a Hugging Face folder through training and back, into three libraries."""

import functools
import io
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from peft import PeftModel
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForImageTextToText

from tests.backbones.checkpoints import tensors
from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_qwen import write_qwen2_5_vl, write_qwen2_vl
from tests.backbones.tiny_qwen3 import write_qwen3_vl_embedding
from tests.jobs import plain_steps, tiny_run
from tests.models.oracle import TEXT, VISION, Pair, pair_of, picture, torch_hidden
from unime_jax import Embedder, backbones, sharding
from unime_jax.batch import Item, Media
from unime_jax.data.settings import Bucket
from unime_jax.jobs import export, train

FAMILIES = {  # and the most tiles of an image
    "llava_onevision": (lambda f: write_folder(f, vision=VISION, text=TEXT), 5),
    "llava_next": (lambda f: write_llava_next(f, decoder="mistral"), 5),
    "qwen2_vl": (write_qwen2_vl, 1),
    "qwen3_vl_embedding": (lambda f: write_qwen3_vl_embedding(f, pixels=(256, 4096)), 1),
    "qwen2_5_vl": (write_qwen2_5_vl, 1),
}
# The suite has one of Qwen's kind, after steps without the model; at night all take real ones. What
# a family has of its own, its names and rows, all families are tested for in backbones/.
BY_DAY = [pytest.param(("qwen3_vl_embedding", True), id="qwen3_vl_embedding-plain_steps")]
TIERS = BY_DAY + [pytest.param((n, False), id=n, marks=pytest.mark.slow) for n in FAMILIES]
ADAPTED = r"(language_model|vision_tower|visual)\..*_proj|.*\.qkv"
PROMPT = "Represent the image: "
TEXTS = ["a red circle", "Represent the given image for classification"]
ITEMS = [
    Item(TEXTS[0]),
    Item("<|image_1|>", (Media("a.png", picture(40, 31, 1)),)),
    Item(f"<|image_1|>\n{TEXTS[1]}", (Media("b.png", picture(30, 64, 2)),)),
    Item(TEXTS[1], (Media("b.png", picture(30, 64, 2)),), prefix=PROMPT),
]


@pytest.fixture(scope="module", params=TIERS)
def trained(request, data, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """A pretrained folder, and the work directory of three steps with DoRA on it."""
    family, plain = request.param
    folder = tmp_path_factory.mktemp(family) / "folder"
    folder.mkdir()
    write, tiles = FAMILIES[family]
    write(folder)
    pair_of(folder)
    config = tiny_run.make_config(data)
    config.steps = config.checkpoint.every = 3
    config.batch_size = config.chunk_size = 8
    config.loss.hard_negatives = 4
    config.backbone = str(folder)
    config.init = "pretrained"
    config.trainable = ((r".*\.lora_(a|b|magnitude)", True), (".*", False))
    config.lora.rank = 4
    config.lora.alpha = 8.0
    config.lora.targets = (
        (ADAPTED, True),
        (".*", False),
    )
    config.optimizer.learning_rate = 1e-2
    config.data.buckets = (Bucket(tokens=192, tiles=tiles),)  # one: half as much to compile
    if family == "qwen3_vl_embedding":
        config.processing.prompt = "system"
        config.data.buckets = (Bucket(tokens=320, tiles=tiles),)
    config.export.adapter = True
    config.export.prompts = {"classify": PROMPT}
    workdir = tmp_path_factory.mktemp(f"{family}_run")
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            plain_steps.replace(patch, 2.0**-5)
        train.run(config, workdir)
    return folder, workdir


@functools.cache
def embedded(folder: pathlib.Path) -> np.ndarray:
    """Of a folder that does not change."""
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    model = Embedder.from_pretrained(str(folder), dtype="float32", max_length=256, mesh=mesh)
    inputs = [{"text": x.text, "image": [image.data for image in x.media]} for x in ITEMS]
    prompted = model.encode(inputs[3:] * 3, prompt=PROMPT)  # as many as above, by their program
    return np.concatenate([model.encode(inputs[:3]), prompted[:1]])


def by_torch(model, folder: pathlib.Path) -> np.ndarray:
    """The last token's state of each item alone, with our prompts and transformers' own pixels."""
    backbone = backbones.open_backbone(str(folder), max_length=256)
    pair = Pair(model, backbone, {}, None)
    last = [torch_hidden(pair, item)[-1] for item in ITEMS]
    return np.stack([x / np.linalg.norm(x) for x in last])


def assert_equal(found, expected, cosine=0.99999):
    assert np.all(np.sum(found * expected, axis=1) >= cosine)


def test_training_moved_the_model_and_the_export_is_it(trained):
    folder, workdir = trained
    after = embedded(workdir / "hf")
    assert np.all(np.sum(after * embedded(folder), axis=1) < 0.9999)
    record = json.loads((workdir / "hf" / "self_check.json").read_text())
    assert len(record["embeddings"]) > 3
    arrays = tiny_run.saved(workdir, 3)
    assert any("lora_b" in path for path in arrays)
    assert any("lora_magnitude" in path for path in arrays)
    assert not any("kernel" in path for path in arrays)  # frozen weights are not saved
    given, written = tensors(folder), tensors(workdir / "hf")
    assert written.keys() == given.keys()
    for name in given:
        adapted = re.search(r"(_proj|\.qkv)\.weight$", name) and "projector" not in name
        changed = given[name].tobytes() != written[name].tobytes()
        assert changed <= bool(adapted), name
        assert changed or "vision" in name or "visual" in name or not adapted, name

    # The card says what the run did
    folder, workdir = trained
    card = (workdir / "hf" / "README.md").read_text()
    for fact in (str(folder), "3 of 8 pairs", "DoRA, rank 4", "hardest in-batch negatives"):
        assert fact in card


def test_transformers_peft_and_sentence_transformers_give_the_embeddings(trained):
    _, workdir = trained
    model, info = AutoModelForImageTextToText.from_pretrained(
        workdir / "hf", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_equal(by_torch(model.eval(), workdir / "hf"), embedded(workdir / "hf"))

    # The adapter gives the embeddings by itself and with peft
    folder, workdir = trained
    base = AutoModelForImageTextToText.from_pretrained(folder)
    model = PeftModel.from_pretrained(base, workdir / "hf_adapter").merge_and_unload()
    assert_equal(by_torch(model.eval(), workdir / "hf"), embedded(workdir / "hf"))

    # The adapter alone gives the embeddings
    _, workdir = trained
    assert_equal(embedded(workdir / "hf_adapter"), embedded(workdir / "hf"))

    # Sentence transformers gives the embeddings
    _, workdir = trained
    model = SentenceTransformer(str(workdir / "hf"), device="cpu")
    inputs = [
        TEXTS[0],
        Image.open(io.BytesIO(ITEMS[1].media[0].data)),
        {"text": TEXTS[1], "image": Image.open(io.BytesIO(ITEMS[2].media[0].data))},
    ]
    with torch.no_grad():
        assert_equal(model.encode(inputs), embedded(workdir / "hf")[:3])
        prompted = model.encode([inputs[2]], prompt_name="classify")
    assert_equal(prompted, embedded(workdir / "hf")[3:])


@pytest.mark.parametrize("trained", BY_DAY, indirect=True)
def test_the_export_job_again_in_bfloat16_and_of_an_adapter(trained, tmp_path):
    """From the checkpoint it gives the bytes that the training left."""
    _, workdir = trained
    written = {
        file.name: file.read_bytes() for file in (workdir / "hf").iterdir() if file.is_file()
    }
    for file in (workdir / "hf").rglob("*.safetensors"):
        file.unlink()
    config = json.loads((workdir / "config.json").read_text()) | {"job": "export"}
    export.run(ConfigDict(config), workdir)
    for name, content in written.items():
        assert (workdir / "hf" / name).read_bytes() == content, name

    # A bfloat16 export stays close.
    run = shutil.copytree(workdir, tmp_path / "run")
    config = ConfigDict(json.loads((workdir / "config.json").read_text()) | {"job": "export"})
    config.export.dtype = "bfloat16"
    export.run(config, run)
    model = AutoModelForImageTextToText.from_pretrained(run / "hf", dtype="auto")
    assert model.dtype == torch.bfloat16
    expected = embedded(workdir / "hf")
    assert_equal(by_torch(model.float().eval(), run / "hf"), expected, 0.999)
    assert_equal(embedded(run / "hf"), expected, 0.999)

    # config.steps=0: what is exported is the backbone, here a PEFT adapter and its base, merged.
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    config.update({"job": "export", "steps": 0, "backbone": str(workdir / "hf_adapter")})
    config.update({"trainable": ((".*", True),)})
    config.lora.rank = 0
    config.export.adapter = False
    export.run(config, tmp_path / "merged")
    assert_equal(embedded(tmp_path / "merged" / "hf"), embedded(workdir / "hf"))


@pytest.mark.parametrize("trained", BY_DAY, indirect=True)
def test_what_cannot_be_exported_is_said(trained, tmp_path):
    _, workdir = trained
    config = ConfigDict(json.loads((workdir / "config.json").read_text()) | {"job": "export"})
    with pytest.raises(ValueError, match="no checkpoint to export"):
        export.run(config, tmp_path / "empty")

    # An adapter that cannot hold the model is refused. Norms are trained, too; said before the
    # first step.
    _, workdir = trained
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    config.update(
        {"trainable": ((r".*\.(lora_(a|b|magnitude)|norm\.weight)", True), (".*", False))}
    )
    with pytest.raises(ValueError, match="besides the adapters are trained"):
        train.run(config, tmp_path / "run")
