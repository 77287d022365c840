"""Splash attention on TPUs: jax's Pallas kernel, which writes no scores to memory, over the mesh.

Kernels are compiled by hand-written tiles of `LANES` tokens, so rows are padded to whole blocks and
spread over the mesh by `shard_map`, as no compiler partitions a kernel.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from unime_jax import sharding

LANES = 128  # blocks are multiples of a TPU's vector registers
LARGEST = 1024  # tokens of a block: the backward pass's scores of one have room in VMEM
SMALLEST = 384  # of those that long rows are cut into: smaller ones read the keys more often
NEAR = 256  # of a block where tokens see near ones only: of a larger one more is masked
NOBODY = np.iinfo(np.int32).min  # the segment of padding, of which no token is


def refusal(queries: tuple[int, ...], keys: tuple[int, ...]) -> str:
    """Why the kernel does not take such queries and keys, [rows, tokens, heads, head]; "": it does.

    The mesh is that of `jax.set_mesh`.
    """
    rows, tokens, _, _ = queries
    if tokens != keys[1]:
        return f"{tokens} queries a row and {keys[1]} keys"
    if tokens < LANES:
        return f"rows of {tokens} tokens, fewer than {LANES}"
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ""
    if rows % sharding.row_shards(mesh):
        return f"{rows} rows, which {sharding.row_shards(mesh)} shards do not divide"
    if keys[2] % mesh.shape["tensor"]:
        return f"{keys[2]} key heads, which mesh.tensor={mesh.shape['tensor']} does not divide"
    return ""


def attend(
    q: Float[Array, "rows tokens heads head"],
    k: Float[Array, "rows tokens kv_heads head"],
    v: Float[Array, "rows tokens kv_heads head"],
    *,
    causal: bool,
    segment: Int[Array, "rows tokens"] | None,
    length: Int[Array, " rows"] | None,
    reach: int | None = None,
    interpret: bool = False,
) -> Float[Array, "rows tokens heads head"]:
    """`attention.attend` by the kernel, of what `refusal` lets pass.

    Args:
      interpret: compute as a program for any platform, for tests.

    Raises:
      ValueError: both segments and lengths.
    """
    if segment is not None and length is not None:
        raise ValueError("attention by splash: segments and lengths of rows exclude each other")
    local = functools.partial(_on_one_device, causal=causal, reach=reach, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v, segment, length)
    heads, rows = P(sharding.ROWS, None, "tensor"), P(sharding.ROWS)
    return jax.shard_map(
        local,
        in_specs=(heads, heads, heads, rows, rows),
        out_specs=heads,
        check_vma=False,  # a kernel does not say over which axes its results vary
    )(q, k, v, segment, length)


def block_of(tokens: int) -> tuple[int, int]:
    """Tokens of a block, and of a row that is padded to whole blocks.

    The largest block among those that pad least.
    """
    least = LANES * math.ceil(tokens / LANES)
    if least <= LARGEST:
        return least, least
    sizes = range(LARGEST, SMALLEST - 1, -LANES)
    padded, block = min((size * math.ceil(tokens / size), -size) for size in sizes)
    return -block, padded


def near_block_of(tokens: int, reach: int) -> tuple[int, int]:
    """As `block_of`, where tokens see those that are less than `reach` away.

    A block has two neighbours at most to look at, unless it would then be too large.
    """
    if reach > LARGEST:
        return block_of(tokens)
    block = LANES * math.ceil(max(NEAR, reach) / LANES)
    block = min(block, LANES * math.ceil(tokens / LANES))
    return block, block * math.ceil(tokens / block)


def _on_one_device(
    q: Float[Array, "rows tokens heads head"],
    k: Float[Array, "rows tokens kv_heads head"],
    v: Float[Array, "rows tokens kv_heads head"],
    segment: Int[Array, "rows tokens"] | None,
    length: Int[Array, " rows"] | None,
    *,
    causal: bool,
    reach: int | None,
    interpret: bool,
) -> Float[Array, "rows tokens heads head"]:
    """`attend` of a device's own rows and heads."""
    tokens, heads, head = q.shape[1:]
    block, padded = block_of(tokens) if reach is None else near_block_of(tokens, reach)
    scaled = (q.astype(jnp.float32) * head**-0.5).astype(q.dtype)  # the kernel does not
    widths = ((0, 0), (0, padded - tokens), (0, 0), (0, 0))
    by_head = [jnp.pad(x, widths).swapaxes(1, 2) for x in (scaled, k, v)]
    ids = _segments(tokens, padded, causal, segment, length)
    axes = None if ids is None else jax.tree.map(lambda x: 0 if x.ndim == 2 else None, ids)
    kernel = _kernel(heads, padded, block, causal, reach, interpret)
    y = jax.vmap(kernel, (0, 0, 0, axes))(*by_head, ids)
    return y.swapaxes(1, 2)[:, :tokens]


def _segments(
    tokens: int,
    padded: int,
    causal: bool,
    segment: Int[Array, "rows tokens"] | None,
    length: Int[Array, " rows"] | None,
) -> Any:
    """The kernel's segment ids of queries and keys, those of all rows alike without a rows axis.

    None: every token sees what the causal mask leaves. Every query has a key that it sees, padding
    included, or its softmax would be over nothing.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    if segment is not None:
        widths = ((0, 0), (0, padded - tokens))
        queries = keys = jnp.pad(segment.astype(jnp.int32), widths, constant_values=NOBODY)
    elif length is not None:
        real = jnp.arange(padded) < jnp.maximum(length, 1)[:, None]
        queries, keys = jnp.ones(real.shape, jnp.int32), real.astype(jnp.int32)
    elif causal or padded == tokens:
        return None
    else:
        queries = jnp.ones(padded, jnp.int32)
        keys = (jnp.arange(padded) < tokens).astype(jnp.int32)
    return splash_attention_kernel.SegmentIds(queries, keys)


def _kernel(
    heads: int, tokens: int, block: int, causal: bool, reach: int | None, interpret: bool
) -> Callable[..., jax.Array]:
    """The kernel of one row, with tables of the blocks that a mask leaves."""
    # Pallas takes a second to import, which other platforms need not spend.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    mask: Callable[[tuple[int, int]], Any]
    if reach is not None:
        mask = functools.partial(_near_mask, sides=(reach - 1, 0 if causal else reach - 1))
    else:
        mask = splash_attention_mask.CausalMask if causal else splash_attention_mask.FullMask
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel: Callable[..., jax.Array] = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask((tokens, tokens))] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        interpret=interpret,
    )
    return kernel


def _near_mask(shape: tuple[int, int], sides: tuple[int, int]) -> Any:
    """Mask of the keys that are up to so many tokens before and after a query."""
    return _near_mask_type()(shape, sides, 0)


@functools.cache
def _near_mask_type() -> Any:
    """Type of such masks, one for all: the kernel's tables are kept for masks that are equal."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    class NearMask(splash_attention_mask.LocalMask):
        """Local mask that compares numbers in blocks on its edges only: all others are one value.

        The kernel's tables ask for every block, which of 65,536 tokens else takes a minute.
        """

        def __getitem__(self, block: tuple[slice, slice]) -> Any:
            queries, keys = (range(*x.indices(n)) for x, n in zip(block, self.shape, strict=True))
            least, most = keys.start - queries.stop + 1, keys.stop - 1 - queries.start
            sides: Any = self.window_size  # a LocalMask may lack one, these do not
            before, after = sides
            if most < -before or least > after:
                return np.broadcast_to(False, (len(queries), len(keys)))
            if -before <= least and most <= after:
                return np.broadcast_to(True, (len(queries), len(keys)))
            return super().__getitem__(block)

    return NearMask
