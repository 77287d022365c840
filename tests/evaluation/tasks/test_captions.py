"""Caption retrieval from rows to recalls, as the published code counts it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.tables import for_each
from unime_jax.evaluation import results, scores, tasks
from unime_jax.evaluation.caption_scores import of_set
from unime_jax.evaluation.tasks import captions

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics"
WAYS = {"t2i": "image_retrieval", "i2t": "text_retrieval"}  # what is retrieved


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(images: int, each: int) -> list[dict]:
    return [
        {"image": f"{n}.png", "captions": [f"caption {n * each + i}" for i in range(each)]}
        for n in range(images)
    ]


def run(rows, vectors, **prompts):
    task = captions.Task("tiny", rows, **{"image_text": "<|image_1|> in one word:"} | prompts)

    def encode(items):
        return np.array([vectors[item.media[0].path if item.media else item.text] for item in items])

    return tasks.run(task, lambda path: png(), encode)


@for_each("case", ["recall_five_captions", "recall_one_to_one"])
def test_recalls_are_the_originals(case):
    golden = json.loads((GOLDEN / case / "case.json").read_text())
    tensors = load_file(GOLDEN / case / "io.safetensors")
    each = golden["captions_per_image"]
    index = np.repeat(np.arange(golden["images"]), each)
    np.testing.assert_array_equal(tensors["text_to_image_index"], index)
    vectors = {f"{n}.png": vector for n, vector in enumerate(tensors["image_embeddings"])}
    texts = enumerate(tensors["text_embeddings"])
    vectors |= {f"caption {n} in one word:": vector for n, vector in texts}
    result = run(rows_of(golden["images"], each), vectors, caption_text="{caption} in one word:")
    found = of_set(result)
    for way, name in WAYS.items():
        for k in (1, 5, 10):
            expected = np.float32(golden["metrics"][f"{name}_recall@{k}"])
            assert np.float32(found[way][f"R@{k}"] / 100) == pytest.approx(expected, abs=1e-7)
            low, high = found[way]["intervals"][f"R@{k}"]
            assert low <= found[way][f"R@{k}"] <= high
