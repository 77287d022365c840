"""A folder whose files contradict each other is exported as one that every library reads alike."""

import io
import json
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.backbones.checkpoints import tensors
from tests.backbones.tiny_families import MISTRAL_LM_TEMPLATE, MISTRAL_TEMPLATE, write_llava_next
from tests.jobs import tiny_run
from tests.models.oracle import pair_of, picture
from unime_jax import Embedder
from unime_jax.backbones.io import tensor_files
from unime_jax.data.settings import Bucket
from unime_jax.export import self_check
from unime_jax.jobs import export

TEXTS = ["a red circle", "Represent the given image"]
PICTURE = picture(40, 31, 1)
OTHER_MEAN = [0.1, 0.2, 0.3]


def edit(file: pathlib.Path, **changes) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def in_shards(folder: pathlib.Path) -> None:
    """Parts a folder's weights into two files with an index, as those of large models are."""
    given = tensors(folder)
    weight_map = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(given)}
    for file in set(weight_map.values()):
        part = {name: x for name, x in given.items() if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(x.nbytes for x in given.values())
    edit(folder / tensor_files.INDEX, metadata={"total_size": size}, weight_map=weight_map)
    (folder / tensor_files.SINGLE).unlink()


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """A LLaVA-NeXT that attends in both directions, its files at odds, and its export."""
    folder = write_llava_next(tmp_path_factory.mktemp("odds") / "folder", decoder="mistral")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    nested = settings | {
        "image_mean": OTHER_MEAN,
        "image_processor_type": "LlavaNextImageProcessorPil",
    }
    template = MISTRAL_TEMPLATE.replace("[INST] ", "[INST] first: ")
    edit(
        folder / "processor_config.json",
        image_processor=nested,
        chat_template={"default": template, "other": MISTRAL_LM_TEMPLATE},
        num_additional_image_tokens=0,
    )
    (folder / "chat_template.jinja").write_text(MISTRAL_LM_TEMPLATE)
    edit(folder / "config.json", is_causal=False)
    pair_of(folder)
    in_shards(folder)
    config = tiny_run.make_config(data)
    config.update({"job": "export", "steps": 0, "backbone": str(folder), "init": "pretrained"})
    config.processing.prompt = "chat"
    config.data.buckets = (Bucket(tokens=64, tiles=0), Bucket(tokens=192, tiles=5))
    workdir = tmp_path_factory.mktemp("odds_run")
    export.run(config, workdir)
    return folder, workdir / "hf"


@pytest.fixture(scope="module")
def expected(folders) -> np.ndarray:
    """By transformers from the folder as it was, but for the count that it refuses."""
    folder, _ = folders
    processor = AutoProcessor.from_pretrained(folder, backend="pil", num_additional_image_tokens=1)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return by_transformers(model, processor)


def by_transformers(model, processor) -> np.ndarray:
    vectors = []
    for text, images in ((TEXTS[0], []), (TEXTS[1], [Image.open(io.BytesIO(PICTURE))])):
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(images=images or None, text=[prompt], return_tensors="pt")
        with torch.no_grad():
            vectors.append(model.model(**inputs).last_hidden_state[0, -1].numpy())
    return np.stack([x / np.linalg.norm(x) for x in vectors])


def embedded(folder: pathlib.Path) -> np.ndarray:
    model = Embedder.from_pretrained(folder, dtype="float32", max_length=192)
    return model.encode([TEXTS[0], {"text": TEXTS[1], "image": PICTURE}])


def assert_equal(found, expected):
    assert np.all(np.sum(found * expected, axis=1) >= 0.99999)


def test_the_export_is_the_folder_as_every_library_reads_it(folders, expected):
    _, exported = folders
    assert_equal(embedded(exported), expected)
    assert [x.name for x in exported.glob("*.safetensors*")] == [tensor_files.SINGLE]  # no index

    # The card says which versions attend in both directions
    _, exported = folders
    assert "which transformers reads from version 5 on" in (exported / "README.md").read_text()

    # Other libraries read the export alike
    _, exported = folders
    processor = AutoProcessor.from_pretrained(exported, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(exported).eval()
    assert_equal(by_transformers(model, processor), expected)
    older = json.loads((exported / "preprocessor_config.json").read_text())
    assert older["image_mean"] == OTHER_MEAN
    assert older["image_processor_type"] == "LlavaNextImageProcessor"

    # Sentence transformers reads the export alike
    _, exported = folders
    model = SentenceTransformer(str(exported), device="cpu")
    inputs = [TEXTS[0], {"text": TEXTS[1], "image": Image.open(io.BytesIO(PICTURE))}]
    assert_equal(model.encode(inputs), expected)


@pytest.mark.slow
def test_the_self_check_sees_a_file_that_older_versions_read(folders):
    """Ours and transformers 5 give the recorded embeddings, but transformers 4 would not."""
    _, exported = folders
    assert self_check.repeat(exported) >= 0.99999
    file = exported / "preprocessor_config.json"
    before = file.read_text()
    edit(file, image_mean=[0.4, 0.5, 0.6])
    try:
        with pytest.raises(RuntimeError, match="image_mean .*, which transformers 4 reads"):
            self_check.repeat(exported)
    finally:
        file.write_text(before)
