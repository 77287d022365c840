"""Rows without torch: a tokenizer, an image processor and Pillow are enough."""

import importlib.util
import json
import pathlib
import sys

from tests import children
from tests.backbones.images import encoded, noise
from unime_jax.backbones import open_backbone
from unime_jax.batch import Item, Media


def lengths(image: pathlib.Path, folders: list[pathlib.Path]) -> list[list[int]]:
    """Tokens and patches of one item, by model."""
    item = Item("x", (Media("a.png", image.read_bytes()),))
    rows = [open_backbone(str(folder), max_length=9999).preprocess(item) for folder in folders]
    return [[len(row.tokens), len(row.patches)] for row in rows]


def write_lengths(image: pathlib.Path, folders: list[pathlib.Path]) -> None:
    """In <image>.json, by a process without torch or what else could stand in for it."""
    assert "torch" not in sys.modules and importlib.util.find_spec("torch") is None
    for name in ("torchvision", "tensorflow"):
        assert name not in sys.modules
        sys.modules[name] = None
    image.with_suffix(".json").write_text(json.dumps(lengths(image, folders)))


def test_neither_torch_nor_torchvision_is_needed(llavas, qwen2_vl_folder, phi3_v_folder, tmp_path):
    folders = [llavas["onevision"].folder, llavas["next-raw"].folder]
    folders = [*folders, qwen2_vl_folder, phi3_v_folder]
    image = tmp_path / "a.png"
    image.write_bytes(encoded(noise(100, 100)))
    process = children.start(write_lengths, image, folders, output=tmp_path / "log")
    assert process.wait(timeout=120) == 0, process.said()
    found = json.loads((tmp_path / "a.json").read_text())
    assert found == lengths(image, folders)
    assert all(tokens > 16 and patches > 1 for tokens, patches in found)
