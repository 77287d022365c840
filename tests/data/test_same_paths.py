"""Images are told apart by what they show: the same path in two sources may be two pictures."""

import numpy as np
import pytest

from tests.backbones.images import encoded, noise
from unime_jax.batch import Item, Media, Row
from unime_jax.data.items import Items, Pairs
from unime_jax.data.loader import make_loader
from unime_jax.data.packing import prepare, target_hash
from unime_jax.data.schema import to_example
from unime_jax.data.shapes import Bucket, Layout, pair_shapes
from unime_jax.evaluation import tasks
from unime_jax.evaluation.encoding import stored_images
from unime_jax.evaluation.encoding.shared_encoder import SharedEncoder
from unime_jax.evaluation.tasks import mmeb

A, B = encoded(noise(8, 8, seed=1)), encoded(noise(8, 8, seed=2))


def rows(image: bytes, path: str = "images/1.png") -> list[dict]:
    """One row with the image on both sides."""
    return [
        {
            "qry": "<|image_1|> what?",
            "qry_image_path": path,
            "qry_image": image,
            "pos_text": "<|image_1|>",
            "pos_image_path": path,
            "pos_image": image,
        }
    ]


def first_byte(item: Item) -> Row:
    zero = np.zeros((1, 1), np.int32)
    return Row(np.full(1, item.media[0].data[-20], np.int32), zero, zero - 1)


def batch_of(**sources):
    shapes = pair_shapes([Bucket(2, 0)], Layout(), batch_size=2, chunk_size=4)
    return next(
        make_loader(
            sources,
            dict.fromkeys(sources, 1.0),
            batch_size=2,
            source_run=1,
            seed=0,
            preprocess=first_byte,
            shapes=shapes,
        )
    )


def test_pictures_are_known_by_content_and_not_by_path(tmp_path):
    # Two sources with one path train on their own pictures.
    batch, info = batch_of(one=rows(A), two=rows(B))
    assert info.duplicates == 0 and sum(info.rows) == 4
    assert len(set(batch.query)) == len(set(batch.positive)) == 2
    tokens, ids = batch.groups[0].tokens.reshape(-1, 2)[:, 0], batch.target_id[0].reshape(-1)
    assert {tokens[row] for row in batch.query} == {A[-20], B[-20]}
    assert len({ids[row] for row in batch.positive}) == 2, "each other's negatives"

    # One picture at two paths is one row and one target.
    batch, info = batch_of(one=rows(A), two=rows(A, "elsewhere/b.png"))
    assert info.duplicates == 2 and len(set(batch.positive)) == 1
    (key,) = {to_example("s", row).positive.identity for row in (rows(A) + rows(A, "other"))}
    assert target_hash(key) in batch.target_id[0]

    # Identity needs the content of every image.
    def several(*data):
        return Item("a", tuple(Media(f"{i}.png", d) for i, d in enumerate(data))).identity

    assert len({several(A, A), several(A, B), several(B, A), several(A), several(A, None)}) == 5
    missing = Item("a", (Media("x.png"),))
    assert missing.identity == ("a", "x.png") == missing.key

    # Embeddings of two data sets with one path do not collide.
    corpora = [Pairs(name, rows(image), ("query",)) for name, image in (("a", A), ("b", B))]
    found = Items(corpora)
    assert len(found) == len(set(found.ids)) == 2
    assert [found[i].media[0].data for i in range(2)] == [A, B]
    assert len(Items([corpora[0], corpora[0]])) == 1

    # What is prepared is known by content.
    shapes = pair_shapes([Bucket(2, 0)], Layout(), batch_size=2, chunk_size=4)
    keys = [prepare(to_example("s", rows(x)[0]), first_byte, shapes).keys for x in (A, B)]
    assert keys[0][0][0] == keys[1][0][0] and keys[0][0][1] != keys[1][0][1]

    # In an evaluation a path is one picture
    # MMEB encodes each text and path once within an evaluation. Also where two paths are the same
    # picture: the protocol counts them as two candidates.
    row = {"qry_text": "q", "qry_img_path": "", "tgt_text": ["", "", ""]}
    row["tgt_img_path"] = ["a.png", "copy.png", "a.png"]
    calls = []

    def encode(items):
        calls.append([item.key for item in items])
        return np.eye(3)[: len(items)]

    shared = SharedEncoder(encode)
    for name in ("d", "e"):
        tasks.run(mmeb.Task(name, [row]), {"a.png": A, "copy.png": A}.__getitem__, shared)
    assert calls == [[("q", ""), ("", "a.png"), ("", "copy.png")]]

    # Two pictures at one path cannot be evaluated.
    stored = {"one": [{"path": "a.png", "image": A}], "two": [{"path": "a.png", "image": A}]}
    assert stored_images.index_images(tmp_path, stored)("a.png") == A
    stored["two"][0]["image"] = B
    with pytest.raises(ValueError, match="split 'two': another split has a different image at the"):
        stored_images.index_images(tmp_path, stored)
