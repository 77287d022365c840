"""A training step on pairs with clips: the same on a mesh, and with the tower's features kept."""

import jax
import numpy as np
import pytest

from tests.backbones.images import picture
from tests.backbones.tiny_clips import clip
from tests.backbones.tiny_qwen3 import write_qwen3_vl
from tests.models.noise import drawn
from tests.training import test_kept_features as kept
from tests.training.test_mesh_invariance import PAIRS
from unime_jax import backbones, sharding
from unime_jax.backbones.qwen3_vl import qwen3_vl
from unime_jax.batch import Example, Item
from unime_jax.data.packing import pack, prepare
from unime_jax.data.shapes import Bucket
from unime_jax.models import forward
from unime_jax.training import loop

SMALL = backbones.Processing(
    prompt="chat",
    grid_positions=True,
    fps=2.0,
    frames=(2, 6),
    frame_pixels=(64, 12 * 64),
    clip_pixels=50 * 64,
)


def examples():
    """Clips, images and texts on either side."""
    found = []
    for i in range(PAIRS):
        query = Item(f"what happens, {i}?", (clip(3 + i, 24 + i, 30 - i, seed=i),))
        positive = Item(f"number {i}", (picture(20 + i, 31, seed=i),) if i % 2 else ())
        found.append(Example("films", str(i), query, positive, (Item(f"not {i}"),)))
    return found


@pytest.mark.slow
def test_steps_are_the_same_on_a_mesh_and_with_kept_features(tmp_path, monkeypatch):
    """LoRA on the decoder; every second positive is an image."""
    monkeypatch.setattr(qwen3_vl, "TILE", 32)
    backbone = backbones.open_backbone(
        str(write_qwen3_vl(tmp_path)), max_length=256, processing=SMALL, clips=True
    )
    shapes = kept.shapes_of(backbone, (Bucket(64, 0), Bucket(128, 8)))
    rows = [prepare(example, backbone.preprocess, shapes) for example in examples()]
    made, info = pack(rows, shapes, ["films"])
    assert made.groups[1].patches.shape[-1] == 2 * backbone.layout.patch_bytes
    assert not info.overflowed

    results = []
    for mesh, keeps in (((2, 2, 1), False), ((1, 1, 1), True)):
        mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: np.prod(mesh)])
        model = kept.modelled(backbone, mesh, kept.DECODER, kept.ADAPTERS)
        vision = None
        if keeps:
            chunk = jax.eval_shape(lambda x: forward.chunk_at(x, 0), made.groups[1])
            vision, _ = kept.frozen_vision.frozen_vision(
                model.graph, kept.EXACT, model.parameters, model.trainable, chunk
            )
            assert vision is not None
        parameters = drawn(model.parameters)
        batch = loop.to_device(made, mesh)
        results.append(kept.steps(model, parameters, batch, mesh, vision)[:2])
    (losses, trained), (others, again) = results
    np.testing.assert_allclose(losses, others, rtol=2e-5)
    assert losses[0] != losses[-1] and np.isfinite(losses).all()
    for path in trained:
        np.testing.assert_allclose(trained[path], again[path], atol=1e-5, err_msg=path)
