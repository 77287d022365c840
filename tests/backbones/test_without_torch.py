"""Rows without torch: a tokenizer, an image processor and Pillow are enough."""

import subprocess
import sys

from tests.backbones.images import encoded, noise
from unime_jax.backbones import open_backbone
from unime_jax.batch import Item, Media

PROGRAM = """
import sys
for name in ('torch', 'torchvision', 'tensorflow'): sys.modules[name] = None
from unime_jax.backbones import open_backbone
from unime_jax.batch import Item, Media
image = open(sys.argv[1], 'rb').read()
for folder in sys.argv[2:]:
    row = open_backbone(folder, max_length=9999).preprocess(Item('x', (Media('a.png', image),)))
    print(len(row.tokens), len(row.patches))
"""


def test_neither_torch_nor_torchvision_is_needed(llavas, qwen2_vl_folder, phi3_v_folder, tmp_path):
    folders = [llavas["onevision"].folder, llavas["next-raw"].folder]
    folders = [str(folder) for folder in (*folders, qwen2_vl_folder, phi3_v_folder)]
    item = Item("x", (Media("a.png", encoded(noise(100, 100))),))
    (tmp_path / "a.png").write_bytes(item.media[0].data)
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "a.png"), *folders],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [open_backbone(folder, max_length=9999).preprocess(item) for folder in folders]
    assert printed.splitlines() == [f"{len(row.tokens)} {len(row.patches)}" for row in rows]
    assert all(len(row.tokens) > 16 and len(row.patches) > 1 for row in rows)
