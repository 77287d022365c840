"""Rotary positions on several axes: which axis turns which frequency."""

import jax
import numpy as np
import pytest
import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from tests.tables import for_each
from unime_jax.models import rope


@for_each("sections", [(24, 20, 20), (4, 2, 2), (11, 11, 10), (8,)])
def test_interleaved_axes_take_turns(sections):
    """Height at 1::3 up to three times its section, width at 2::3 alike, time everywhere else."""
    expected = np.zeros(sum(sections), int)
    for axis, count in enumerate(sections[1:], start=1):
        expected[axis : 3 * count : 3] = axis
    axes = rope.interleaved_axes(sections)
    assert axes == tuple(expected.tolist())
    assert np.bincount(axes).tolist() == list(sections)
    assert {type(axis) for axis in axes} == {int}  # a static part of a graph, to be hashed


def test_sections_of_published_models_and_an_axis_turns_its_own_frequencies():
    # Sections without turns are refused.
    with pytest.raises(ValueError, match=r"\[3, 2, 3\] frequencies cannot be interleaved"):
        rope.interleaved_axes((3, 2, 3))

    # The pattern of published models.
    assert rope.interleaved_axes((24, 20, 20)) == (0, 1, 2) * 20 + (0,) * 4

    # Contiguous axes come in blocks.
    assert rope.contiguous_axes((3,)) == (0, 0, 0)
    assert rope.contiguous_axes((1, 2, 2)) == (0, 1, 1, 2, 2)
    assert rope.contiguous_axes([16, 24, 24]) == (0,) * 16 + (1,) * 24 + (2,) * 24

    # Each of three axes moved alone: the cosines that change are those of its frequencies.
    axes = (2, 0, 1, 1, 0, 2)
    base = np.full((1, 1, 3), 5)
    before, _ = rope.rotary_angles(jax.device_put(base), axes, 1e4)
    for axis in range(3):
        moved = base + (np.arange(3) == axis)
        after, _ = rope.rotary_angles(jax.device_put(moved), axes, 1e4)
        changed = np.asarray(after != before)[0, 0, 0]
        assert changed.tolist() == [a == axis for a in axes] * 2


@for_each("sections", [(24, 20, 20), (4, 2, 2)])
def test_interleaved_angles_are_those_of_transformers(sections):
    head = 2 * sum(sections)
    config = Qwen3VLTextConfig(
        hidden_size=2 * head,
        num_attention_heads=2,
        head_dim=head,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": list(sections),
            "mrope_interleaved": True,
        },
    )
    positions = np.random.default_rng(0).integers(0, 500, (3, 2, 9))
    theirs = Qwen3VLTextRotaryEmbedding(config)(torch.zeros(()), torch.tensor(positions))
    ours = rope.rotary_angles(
        jax.device_put(positions.transpose(1, 2, 0)), rope.interleaved_axes(sections), 5e6
    )
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine[:, :, 0], other.numpy(), atol=1e-4, rtol=0)
