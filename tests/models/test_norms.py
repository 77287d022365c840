"""Norms in bfloat16 to the bit, and with another epsilon than the published."""

import jax.numpy as jnp
import numpy as np
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from unime_jax.models.layers import LayerNorm, RMSNorm

EPSILON = 0.5


def values():
    """Integers, so that squares are summed exactly, and weights with all bits of bfloat16."""
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 9, (16, 64)).astype(np.float32)
    weight = np.array(jnp.asarray(rng.normal(1, 0.3, 64), jnp.bfloat16), np.float32)
    return x, weight


def test_rms_norm_is_transformers_to_the_bit():
    """Rounded to bfloat16 before the weight, not after it, which is seen in these values."""
    x, weight = values()
    theirs = Qwen2RMSNorm(64, eps=EPSILON).to(torch.bfloat16)
    theirs.weight.data = torch.tensor(weight).to(torch.bfloat16)
    with torch.no_grad():
        expected = theirs(torch.tensor(x).to(torch.bfloat16)).float().numpy()
    ours = RMSNorm(64, epsilon=EPSILON)
    ours.weight[...] = jnp.asarray(weight)
    found = ours(jnp.asarray(x, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), expected)
    exact = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + EPSILON) * weight
    assert np.any(np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float32) != expected)

    # Layer norm in float32. Weight and bias, too, before the one rounding.
    x, weight = values()
    bias = weight[::-1] - 1
    expected = torch.nn.functional.layer_norm(
        torch.tensor(x, dtype=torch.float64),
        (64,),
        torch.tensor(weight, dtype=torch.float64),
        torch.tensor(bias.copy(), dtype=torch.float64),
        eps=EPSILON,
    )
    ours = LayerNorm(64, epsilon=EPSILON)
    ours.weight[...], ours.bias[...] = jnp.asarray(weight), jnp.asarray(bias)
    found = ours(jnp.asarray(x, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, jnp.asarray(expected.numpy(), jnp.bfloat16))
