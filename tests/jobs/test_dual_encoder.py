"""CLIP from a folder through a fine-tune and its evaluation into three libraries."""

import io

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from tests.backbones.checkpoints import tensors
from tests.backbones.tiny_dual_encoders import write_clip
from tests.jobs import tiny_run
from tests.jobs.test_own import make_config
from tests.models.oracle import picture
from unime_jax import Embedder
from unime_jax.evaluation import scores
from unime_jax.jobs import train
from unime_jax.training import automatic

PIXELS = picture(40, 31, 1)
TEXTS = ["a red circle", "Represent the given image for classification, please."]


@pytest.mark.slow
def test_a_fine_tune_of_texts_images_and_both(data, workdir, tmp_path):
    before = write_clip(tmp_path / "folder")
    config = make_config(tmp_path / "folder", **{"data.folder": str(data), "log_every": 1})
    config.batch_size = config.chunk_size = 16
    config.evaluation.composition = "mini_mmeb/composition"
    config.evaluation.images = "mini_mmeb/images"
    config.evaluation.rows, config.evaluation.limit = 32, 1
    config.export.prompts = {"classify": "Represent: "}
    train.run(config, workdir)
    assert set(scores.read_scores(workdir)) == {"before", "after"}
    assert len(tiny_run.metrics(workdir)) == 3
    assert [bucket.tiles for bucket in automatic.read(workdir)["data.buckets"]] == [0, 1]
    assert tiny_run.metrics(workdir)[-1]["truncated_rows"] > 0  # of 16 tokens

    hf = workdir / "hf"
    embedder = Embedder.from_pretrained(hf, dtype="float32")
    items = [*TEXTS, {"image": PIXELS}]
    vectors = embedder.encode(items)
    assert embedder.prompts == {"classify": "Represent: "}
    given, written = tensors(tmp_path / "folder"), tensors(hf)
    kept = {name for name in given if np.array_equal(given[name], written[name])}
    assert "logit_scale" in kept and not any(name.endswith("_proj.weight") for name in kept)
    theirs = SentenceTransformer(str(hf), device="cpu")
    found = np.concatenate([theirs.encode(TEXTS), theirs.encode([Image.open(io.BytesIO(PIXELS))])])
    np.testing.assert_allclose(found, vectors, atol=1e-4, rtol=0)
    assert type(theirs[0].model) is type(before)
