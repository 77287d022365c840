"""Scaled dot-product attention: one function in front of the implementations that jax ships."""

import functools

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from unime_jax.models import block_attention, cudnn_check, precision, splash
from unime_jax.models.settings import AttentionChoice, Implementation

PLATFORMS: dict[Implementation, str] = {"splash": "tpu", "cudnn": "gpu"}  # of the kernels


def implementation(choice: AttentionChoice, mesh: Mesh) -> Implementation:
    """The implementation on a mesh's devices that a config chooses.

    An abstract mesh is one of TPUs: none but a planner's has no devices.

    Raises:
      ValueError: a kernel is asked for that is another platform's.
    """
    platform = mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else "tpu"
    if choice == "auto":
        if platform == "tpu":
            return "splash"
        return "cudnn" if platform == "gpu" and cudnn_check.passes() else "xla"
    needed = PLATFORMS.get(choice, platform)
    if needed != platform:
        raise ValueError(
            f"config.execution.attention={choice} is a kernel for the platform {needed}, and the"
            f' devices are {platform}: set "auto", which takes what there is'
        )
    return choice


def attend(
    q: Float[Array, "rows tokens heads head"],
    k: Float[Array, "rows keys kv_heads head"],
    v: Float[Array, "rows keys kv_heads head"],
    *,
    causal: bool,
    implementation: Implementation,
    segment: Int[Array, "rows tokens"] | None = None,
    shared: int | None = None,
    length: Int[Array, " rows"] | None = None,
    reach: int | None = None,
) -> Float[Array, "rows tokens heads head"]:
    """softmax(q k^T / sqrt(head)) v with grouped queries, softmax in float32.

    `heads` is a multiple of `kv_heads`. Rows are right-padded: with `causal` no real token sees
    padding, so no length mask is needed. Without `causal` every key is attended (a vision tower's)
    or, with `length`, the first so many of a row, at least one. With `segment`, tokens attend to
    those of their own segment only and, with `shared`, to those of that segment; with `reach`, a
    segment's tokens follow each other and are so many at most, and others are not looked at.

    Long rows are computed in blocks by XLA, so that memory grows with their tokens, not the square.
    What the kernel of `implementation` does not take is computed by XLA, and logged.
    """
    if reason := _refusal(q, k, implementation, segment, shared):
        _log_once(implementation, reason)
        implementation = "xla"
    with precision.asked(q.dtype):
        if implementation == "splash":
            return splash.attend(
                q, k, v, causal=causal, segment=segment, length=length, reach=reach
            )
        if implementation == "xla" and reach is not None and segment is not None:
            return block_attention.attend_segments(q, k, v, segment, reach)
        if implementation == "xla" and q.shape[1] > block_attention.LONGEST:
            return block_attention.attend(
                q, k, v, causal=causal, segment=segment, shared=shared, length=length
            )
        mask = None
        if segment is not None:
            of_key = segment[:, None, None, :]
            mask = segment[:, None, :, None] == of_key
            if shared is not None:
                mask |= of_key == shared
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            is_causal=causal,
            # No key at all would be a mean over nothing.
            key_value_seq_lengths=None if length is None else jnp.maximum(length, 1),
            implementation=implementation,
        )


def _refusal(
    q: Float[Array, "rows tokens heads head"],
    k: Float[Array, "rows keys kv_heads head"],
    implementation: Implementation,
    segment: Int[Array, "rows tokens"] | None,
    shared: int | None,
) -> str:
    """Why an implementation does not take such a call; "": it does."""
    if implementation != "xla" and segment is not None and shared is not None:
        return "a segment that all others see"
    if implementation == "splash":
        return splash.refusal(q.shape, k.shape)
    if implementation == "cudnn":
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            return f"{q.dtype}, where it has 16-bit kernels only"
        if q.shape[-1] % 8 or q.shape[-1] > 128:
            return f"heads of {q.shape[-1]}, where it has multiples of 8 up to 128"
        if segment is not None:
            return "segments, which would be a mask of tokens by tokens"
    return ""


@functools.cache
def _log_once(implementation: str, reason: str) -> None:
    logging.info("attention by XLA and not %s: %s", implementation, reason)
