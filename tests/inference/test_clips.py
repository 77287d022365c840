"""Clips at inference: an item's embedding is its own, whatever is encoded beside it."""

import jax
import numpy as np

from tests.backbones.images import picture
from tests.backbones.tiny_clips import clip
from tests.backbones.tiny_qwen import write_qwen2_5_vl
from tests.models.oracle import EXACT, pair_of
from unime_jax import paths, sharding
from unime_jax.backbones import Processing
from unime_jax.backbones.qwen2_5_vl import qwen2_5_vl
from unime_jax.batch import Item
from unime_jax.data.inference_shapes import Ladder
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.inference import encoder_programs
from unime_jax.inference.encode import make_encoder
from unime_jax.models import forward

SMALL = Processing(
    prompt="chat", fps=2.0, frames=(2, 6), frame_pixels=(64, 20 * 64), clip_pixels=90 * 64
)
ITEMS = [
    Item("an image", (picture(40, 23),)),
    Item("a clip", (clip(9, 40, 24),)),
    Item("both", (picture(30, 33, seed=3), clip(4, 30, 40, None, seed=5))),
    Item("an image", (picture(41, 22, seed=4),)),
]


def test_embeddings_are_the_items_own(tmp_path, monkeypatch):
    """On a mesh and on one device, in batches of one shape and of a ladder's, and few programs."""
    monkeypatch.setattr(qwen2_5_vl, "TILE", 32)
    pair = pair_of(write_qwen2_5_vl(tmp_path), processing=SMALL)
    graph, parameters = paths.split(pair.model)
    encode = forward.make_encode(graph, EXACT)
    compiled = []
    compile_one = encoder_programs._compile
    monkeypatch.setattr(
        encoder_programs,
        "_compile",
        lambda model, shapes: compiled.append(shapes) or compile_one(model, shapes),
    )

    def encoder(shapes, mesh=(1, 1, 1)):
        mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: np.prod(mesh)])
        placed = sharding.parameter_shardings(mesh, {p: x.shape for p, x in parameters.items()})
        own = {p: jax.device_put(np.asarray(x), placed[p]) for p, x in parameters.items()}
        return make_encoder(encode, ({}, own), pair.backbone.preprocess, shapes, mesh)

    ladder = Ladder(pair.backbone.layout, 1, 1, 256)
    one = encoder(ladder)
    alone = np.concatenate([one([item]) for item in ITEMS])
    assert len(compiled) == len(set(compiled)) <= 4
    assert {shapes.layout.clips for shapes in compiled} == {False, True}
    fixed = BatchShapes((Bucket(150, 20),), pair.backbone.layout, 4, 8)
    together = encoder(fixed, mesh=(2, 1, 2))(ITEMS)
    np.testing.assert_allclose(together, alone, atol=2e-5)
    assert len(set(compiled)) <= 6
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)
    assert (alone @ alone.T)[~np.eye(len(ITEMS), dtype=bool)].max() < 0.9999
