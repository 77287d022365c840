"""Clips of evaluation data: items, their files, and the report's picture of them."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.data import clip_files
from tests.data.clip_files import FRAMES, squares
from unime_jax import files
from unime_jax.batch import Item, Media
from unime_jax.evaluation.encoding.item_table import ItemTable, bare_item, paths_of
from unime_jax.evaluation.encoding.stored_images import open_images
from unime_jax.evaluation.report import gallery
from unime_jax.evaluation.retrieval import files as retrieval_files
from unime_jax.evaluation.tasks import retrieval


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    (folder / "a.mp4").write_bytes(clip_files.video())
    (folder / "q.gif").write_bytes(clip_files.animation("GIF"))
    clip_files.folder(folder / "frames")
    return folder


def test_keys_of_clips_say_that_they_are(folder):
    clip, image = Media("a.mp4", kind="clip"), Media("q.gif")
    item = Item("both", (image, clip))
    assert item.key == ("both", "q.gif\0clip:a.mp4") and bare_item(item.key) == item
    assert paths_of(["q.gif", "a.mp4"]) == item.key[1]
    table = ItemTable(open_images(files.as_path(folder)), "row {}".format)
    table.add(item.key, 3)
    table.add(("", "clip:frames"), 4)
    table.add(("", "absent.mp4"), 5)
    assert [media.kind for media in table[0].media] == ["image", "clip"]
    assert table[0].media[1].data == (folder / "a.mp4").read_bytes()
    card = gallery.card(table[1], lambda path: table[1].media[0].data, {})
    shown = Image.open(io.BytesIO(base64.b64decode(card["images"][0].partition(",")[2])))
    three = [squares()[n] for n in (0, FRAMES // 2, FRAMES - 1)]
    strips = np.stack([np.concatenate(order, axis=1) for order in (three, three[::-1])])
    # It is a JPEG; backwards, it would be a strip of other frames.
    own, turned = np.abs(np.asarray(shown.convert("RGB"), int) - strips).mean(axis=(1, 2, 3))
    assert own < turned / 2
    with pytest.raises(ValueError, match="row 5: image 'absent.mp4' has no file"):
        table[2]


def test_retrieval_sets_of_clips(folder):
    rows = {
        "queries.jsonl": [{"_id": "1", "text": "a square"}],
        "corpus.jsonl": [
            {"_id": "a", "video": "a.mp4"},
            {"_id": "b", "image": "q.gif", "video": {"path": "frames", "fps": 2}},
        ],
    }
    for name, lines in rows.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n")
    (data,) = retrieval_files.open_sets(folder, {})
    names = list(dict.fromkeys(file.path for file in data.image_files(0)))
    assert names == ["a.mp4", "q.gif", *(f"frames/{n + 1}.png" for n in range(FRAMES))]
    opened = retrieval.Task(data).open(lambda path: b"")
    assert [[media.kind for media in data.items(row)[0].media] for row in range(3)] == [
        [],
        ["clip"],
        ["image", "clip"],
    ]
    assert opened
