"""The decoder-only transformer of Qwen2, Qwen3, Llama, Mistral and Phi-3.

Embedders have no language-model head; judges have one, see `DecoderConfig.lm_head`. Bidirectional
models are served with causal=False.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from unime_jax.models import attention, precision, rope, scan
from unime_jax.models.layers import ACTIVATIONS, Embedding, Linear, RMSNorm


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_axes: tuple[int, ...]  # position axis of each of head_dim / 2 frequencies, see `rope`
    qkv_bias: bool
    hidden_act: str
    causal: bool = True
    long_rope: rope.LongRope | None = None
    qk_norm: bool = False  # an RMS norm over each head of queries and keys, before they are rotated
    final_norm: bool = True  # of states that are returned; a head always reads them after it
    # the language-model head: none, the token embeddings, or a kernel of its own
    lm_head: Literal["none", "tied", "own"] = "none"

    @property
    def unshared(self) -> str:
        """Why sequences of one row cannot share their beginning; "": they can."""
        if not self.causal:
            return (
                "its decoder is bidirectional, so what a beginning is encoded to depends on what"
                " follows"
            )
        if self.long_rope:
            return "its rotary frequencies (LongRoPE) depend on the length of the whole row"
        return ""

    @property
    def pack_tokens(self) -> int:
        """Tokens of a row, at most, that may hold several whole texts; 0: it cannot.

        Padding is seen by a bidirectional decoder. LongRoPE's frequencies are those of short rows
        up to a length.
        """
        if not self.causal:
            return 0
        return self.long_rope.original if self.long_rope else LONGEST_PACK


LONGEST_PACK = 2**15
SHARED = 0  # the segment of a row that the sequences of all others begin with


class Attention(nnx.Module):
    """Self-attention with rotary positions and grouped key/value heads."""

    def __init__(self, config: DecoderConfig, *, key: jax.Array):
        q, k, v, o = jax.random.split(key, 4)
        width, bias = config.hidden_size, config.qkv_bias
        queries = config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        self.q_proj = Linear(width, queries, bias=bias, key=q)
        self.k_proj = Linear(width, keys, bias=bias, key=k)
        self.v_proj = Linear(width, keys, bias=bias, key=v)
        self.o_proj = Linear(queries, width, bias=False, key=o)
        norm = functools.partial(RMSNorm, config.head_dim, epsilon=config.rms_norm_eps)
        self.q_norm = norm() if config.qk_norm else None
        self.k_norm = norm() if config.qk_norm else None
        self.head_dim = config.head_dim
        self.causal = config.causal

    @jax.named_scope("attention")
    def __call__(
        self,
        x: Float[Array, "R T D"],
        cos: Float[Array, "R T 1 head"],
        sin: Float[Array, "R T 1 head"],
        implementation: attention.Implementation,
        length: Int[Array, " R"] | None = None,
        segment: Int[Array, "R T"] | None = None,
        shares_prefix: bool = True,
    ) -> Float[Array, "R T D"]:
        rows, tokens, _ = x.shape
        heads = (rows, tokens, -1, self.head_dim)
        q, k = self.q_proj(x).reshape(heads), self.k_proj(x).reshape(heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
        v = self.v_proj(x).reshape(heads)
        # In a causal model no real token sees padding: a mask would cost and change nothing.
        length = None if self.causal else length
        y = attention.attend(
            q,
            k,
            v,
            causal=self.causal,
            length=length,
            segment=segment,
            shared=SHARED if shares_prefix else None,
            implementation=implementation,
        )
        return self.o_proj(y.reshape(rows, tokens, -1))


class MLP(nnx.Module):
    """Gated feed-forward block: down(act(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, *, key: jax.Array):
        gate, up, down = jax.random.split(key, 3)
        width, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(width, hidden, bias=False, key=gate, part="gate")
        self.up_proj = Linear(width, hidden, bias=False, key=up, part="up")
        self.down_proj = Linear(hidden, width, bias=False, key=down)
        self.hidden_act = config.hidden_act

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "R T D"]) -> Float[Array, "R T D"]:
        return self.down_proj(ACTIVATIONS[self.hidden_act](self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """Pre-norm residual layer."""

    def __init__(self, config: DecoderConfig, *, key: jax.Array):
        attention_key, mlp_key = jax.random.split(key)
        self.input_layernorm = RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps)
        self.self_attn = Attention(config, key=attention_key)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps)
        self.mlp = MLP(config, key=mlp_key)

    def __call__(
        self,
        x: Float[Array, "R T D"],
        cos: Float[Array, "R T 1 head"],
        sin: Float[Array, "R T 1 head"],
        implementation: attention.Implementation,
        length: Int[Array, " R"] | None = None,
        segment: Int[Array, "R T"] | None = None,
        shares_prefix: bool = True,
    ) -> Float[Array, "R T D"]:
        y = self.input_layernorm(x)
        x = x + self.self_attn(y, cos, sin, implementation, length, segment, shares_prefix)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nnx.Module):
    """Token embeddings, stacked layers and the final norm."""

    def __init__(self, config: DecoderConfig, *, key: jax.Array):
        embed, layers = jax.random.split(key)
        head = jax.random.fold_in(key, 1)  # so that all else is as without it
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, key=embed)
        self.layers = scan.stack(lambda k: Layer(config, key=k), config.num_layers, layers)
        self.norm = RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps)
        self.unshared = config.unshared
        self.pack_tokens = config.pack_tokens
        self.rope_axes = config.rope_axes
        self.rope_theta = config.rope_theta
        self.long_rope = config.long_rope
        self.has_head = config.lm_head != "none"
        self.final_norm = config.final_norm or self.has_head
        self.lm_head: Linear | None = nnx.data(None)
        if config.lm_head == "own":
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False, key=head)

    @jax.named_scope("decoder")
    def __call__(
        self,
        x: Float[Array, "R T D"],
        positions: Int[Array, "R T A"],
        *,
        remat: scan.Remat,
        implementation: attention.Implementation,
        length: Int[Array, " R"] | None = None,
        deepstack: Sequence[Float[Array, "R T D"]] = (),
        segment: Int[Array, "R T"] | None = None,
        shares_prefix: bool = True,
    ) -> Float[Array, "R T D"]:
        """Hidden states after the final norm, or before it, from token (or image) embeddings.

        Rows are right-padded. A model that is not causal needs their `length`: attention leaves
        padding out. Array i of `deepstack` is added to the states after layer i. `segment` is as
        `Row` has it; without `shares_prefix` no token sees another segment, also not number 0.

        Raises:
          ValueError: there are segments, and this decoder cannot keep them apart.
        """
        if segment is not None and shares_prefix and self.unshared:
            raise ValueError(f"rows of several segments: {self.unshared}")
        if segment is not None and not shares_prefix and x.shape[1] > self.pack_tokens:
            raise ValueError(
                f"rows of {x.shape[1]} tokens with several texts: this decoder keeps texts apart in"
                f" rows of up to {self.pack_tokens}"
            )
        cos, sin = rope.rotary_angles(positions, self.rope_axes, self.rope_theta, self.long_rope)
        x = scan.run(
            self.layers,
            lambda layer, x: layer(x, cos, sin, implementation, length, segment, shares_prefix),
            x,
            remat=remat,
            added=deepstack,
        )
        return self.norm(x) if self.final_norm else x

    def logits(
        self, hidden: Float[Array, "R D"], tokens: Int[Array, " n"] | None = None
    ) -> Float32[Array, "R n"]:
        """Float32 logits of tokens, or of the whole vocabulary, at states after the final norm.

        Raises:
          ValueError: the decoder was made without a head.
        """
        if not self.has_head:
            raise ValueError("logits: this decoder has no language-model head")
        if self.lm_head is None:
            rows = self.embed_tokens.embedding[...]
            kernel = (rows if tokens is None else rows[tokens]).T
        else:
            columns = self.lm_head.kernel[...]
            kernel = columns if tokens is None else columns[:, tokens]
        return jnp.matmul(
            hidden,
            kernel.astype(hidden.dtype),
            precision=precision.of(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
