"""Every image is decoded where its row is made, and nowhere else."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder as write_onevision
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.tables import for_each
from unime_jax.backbones import open_backbone
from unime_jax.data import images
from unime_jax.data.items import Items, Pairs
from unime_jax.data.loader import _smallest_shared, read_example
from unime_jax.data.mixture import Pick
from unime_jax.data.shapes import Bucket, pair_shapes

FOLDERS = {
    "llava_onevision": write_onevision,
    "llava_next": write_llava_next,
    "qwen2_vl": write_qwen2_vl,
    "phi3_v": write_phi3_v,
}


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


ROWS = [
    {
        "qry": f"<|image_1|> what is {number}?",
        "qry_image_path": f"{number}.png",
        "qry_image": png(number),
        "pos_text": "<|image_1|>",
        "pos_image_path": f"positive{number}.png",
        "pos_image": png(100 + number),
        "neg_text": ["no", "<|image_1|> never"],
        "neg_image_path": ["", f"negative{number}.png"],
        "neg_image": [b"", png(200 + number)],
    }
    for number in range(3)
]
SIDES = ("query", "positive", "negatives")


@pytest.fixture
def decoded(monkeypatch):
    """The sizes of the pictures whose pixels were decoded."""
    sizes = []
    to_rgb = images.to_rgb

    def counted(image):
        sizes.append(image.size)
        return to_rgb(image)

    monkeypatch.setattr(images, "to_rgb", counted)
    return sizes


@pytest.fixture(scope="module")
def preprocessing(tmp_path_factory):
    """What makes rows, by family."""
    opened = {}
    for name, write in FOLDERS.items():
        folder = tmp_path_factory.mktemp(name)
        write(folder)
        opened[name] = open_backbone(str(folder), max_length=2048).preprocess
    return opened


@for_each("family", FOLDERS)
def test_in_training_and_in_bulk_embedding(preprocessing, decoded, family):
    decoded.clear()
    preprocess = preprocessing[family]
    largest = Bucket(2048, 64)
    shapes = pair_shapes([largest], None, batch_size=1, negatives=2, chunk_size=1)
    read = read_example({"s": ROWS}, Pick("s", 1), preprocess=preprocess, shapes=shapes, seed=0)
    assert len(read.rows) == 4 and not read.bad
    assert len(decoded) == 3

    # In bulk embedding
    decoded.clear()
    items = Items([Pairs("s", ROWS, SIDES)])
    assert len(items) == 3 * 3 + 1 and decoded == []
    for number in range(len(items)):
        preprocessing[family](items[number])
    assert len(decoded) == 9


@for_each("family", FOLDERS)
def test_pixels_that_are_damaged_show_where_they_are_decoded(preprocessing, family):
    preprocess = preprocessing[family]
    cut = ROWS[0] | {"pos_image": ROWS[0]["pos_image"][:900]}
    shapes = pair_shapes([Bucket(2048, 64)], None, batch_size=1, negatives=2, chunk_size=1)
    read = read_example(
        {"s": [cut, *ROWS]}, Pick("s", 0), preprocess=preprocess, shapes=shapes, seed=0
    )
    (bad,) = read.bad
    assert (bad.source, bad.id, bad.path) == ("s", "0", "positive0.png")
    assert bad.reason.startswith("positive: image cannot be decoded: OSError: image file is trunc")


def test_little_shared_memory_is_not_used(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("unime_jax.data.loader.MIN_SHARED_MEMORY", 0)
    assert _smallest_shared() == 2**16 and not caplog.records
    monkeypatch.setattr("unime_jax.data.loader.MIN_SHARED_MEMORY", 2**60)
    assert _smallest_shared() > 2**40
    assert "--shm-size" in caplog.text
