"""Attention in blocks: dense attention's values and gradients, in memory that grows with tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.models.test_splash import arrays, value_and_gradients
from unime_jax.models import block_attention
from unime_jax.models.qwen_vit import QwenVisionConfig, QwenVisionTower


def test_values_and_gradients_are_those_of_dense_attention(monkeypatch):
    """Rows of 37 tokens in blocks of 8, or of 4 where segments of 1 to 6 tokens look 6 away."""
    rng = np.random.default_rng(0)
    *inputs, cotangent = arrays(2, 37, 4, 2, 8, 0)
    sizes = rng.integers(1, 7, (2, 40))
    segment = jnp.asarray([np.repeat(np.arange(40), size)[:37] for size in sizes])
    far = jax.device_put(rng.integers(0, 3, (2, 37)))
    real = jnp.ones((2, 37, 1, 1), bool)
    cases = [
        dict(causal=True, segment=far, shared=1),
        dict(causal=False, segment=far),
        dict(causal=False, length=jnp.array([5, 37])),
    ]
    options = dict(implementation="xla")
    dense = [value_and_gradients(inputs, cotangent, real, **case, **options) for case in cases]
    near = value_and_gradients(inputs, cotangent, real, causal=False, segment=segment, **options)
    monkeypatch.setattr(block_attention, "LONGEST", 8)
    monkeypatch.setattr(block_attention, "BLOCK", 8)
    found = [value_and_gradients(inputs, cotangent, real, **case, **options) for case in cases]
    given = dict(causal=False, segment=segment, reach=6)
    found.append(value_and_gradients(inputs, cotangent, real, **given, **options))
    monkeypatch.setattr(block_attention, "BLOCK", 4)
    found.append(value_and_gradients(inputs, cotangent, real, **given, **options))
    for ours, theirs in zip(found, [*dense, near, near], strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, atol=2e-5, rtol=1e-4)


def test_twice_the_patches_of_a_row_take_twice_the_memory():
    """Of a tower's gradients, with all that its layers keep; with scores it would take four times.

    Those of 8192 patches are 268 MB, of each head and layer.
    """
    config = QwenVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_layers=3,
        num_heads=2,
        output_size=16,
        patch_size=2,
        frames=2,
        merge=2,
        hidden_act="silu",
        rope_theta=1e4,
        norm="rms",
        gated=True,
        window=8,
        full_layers=(1,),
    )

    def temporaries(patches):
        def loss(tower, x, position):
            y = tower(x, position, remat="none", implementation="xla")
            return tower.merger(y).sum()

        tower = jax.eval_shape(lambda k: QwenVisionTower(config, key=k), jax.random.key(0))
        x = jax.ShapeDtypeStruct((1, patches, 12), jnp.float32)
        position = jax.ShapeDtypeStruct((1, patches, 3), jnp.int32)
        program = jax.jit(jax.grad(loss)).lower(tower, x, position).compile()
        return program.memory_analysis().temp_size_in_bytes

    small, large = temporaries(4096), temporaries(8192)
    assert 1.8 * small < large < 2.2 * small
    assert large < 268e6
