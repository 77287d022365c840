"""BERT (Devlin et al. 2019) as a sentence encoder: mean over the tokens, or the class token.

Attributes are called as in the checkpoints, so that a parameter's path is its name there.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from unime_jax import sharding
from unime_jax.batch import Inputs
from unime_jax.models import attention, scan
from unime_jax.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear
from unime_jax.models.pooling import token_mean, unit_norm
from unime_jax.models.vlm import EmbeddingModel, Execution

Pooling = Literal["mean", "cls"]


@dataclasses.dataclass(frozen=True)
class BertConfig:
    vocab_size: int
    max_positions: int
    token_types: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    layer_norm_eps: float
    hidden_act: str
    pooling: Pooling


class Embeddings(nnx.Module):
    """Word, position and type embeddings; all tokens have the type of a single text."""

    def __init__(self, config: BertConfig, *, key: jax.Array):
        word, position, token_type = jax.random.split(key, 3)
        width = config.hidden_size
        self.word_embeddings = Embedding(config.vocab_size, width, key=word)
        self.position_embeddings = Embedding(config.max_positions, width, key=position)
        self.token_type_embeddings = Embedding(config.token_types, width, key=token_type)
        self.LayerNorm = LayerNorm(width, epsilon=config.layer_norm_eps)

    def __call__(
        self, tokens: Int[Array, "R T"], positions: Int[Array, "R T"], dtype: jnp.dtype
    ) -> Float[Array, "R T D"]:
        x = self.word_embeddings(tokens, dtype) + self.position_embeddings(positions, dtype)
        return self.LayerNorm(x + self.token_type_embeddings(jnp.zeros_like(tokens), dtype))


class SelfAttention(nnx.Module):
    """Every token attends to all of its row."""

    def __init__(self, config: BertConfig, *, key: jax.Array):
        q, k, v = jax.random.split(key, 3)
        width = config.hidden_size
        self.query = Linear(width, width, bias=True, key=q)
        self.key = Linear(width, width, bias=True, key=k)
        self.value = Linear(width, width, bias=True, key=v)
        self.num_heads = config.num_heads

    def __call__(
        self,
        x: Float[Array, "R T D"],
        length: Int[Array, " R"],
        implementation: attention.Implementation,
    ) -> Float[Array, "R T D"]:
        heads = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (linear(x).reshape(heads) for linear in (self.query, self.key, self.value))
        y = attention.attend(q, k, v, causal=False, length=length, implementation=implementation)
        return y.reshape(x.shape)


class Output(nnx.Module):
    """The end of a block: its projection, the residual, the norm."""

    def __init__(self, in_features: int, config: BertConfig, *, key: jax.Array):
        self.dense = Linear(in_features, config.hidden_size, bias=True, key=key)
        self.LayerNorm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def __call__(
        self, y: Float[Array, "R T in"], residual: Float[Array, "R T D"]
    ) -> Float[Array, "R T D"]:
        return self.LayerNorm(self.dense(y) + residual)


class Attention(nnx.Module):
    """Self-attention and its output."""

    def __init__(self, config: BertConfig, *, key: jax.Array):
        attend, output = jax.random.split(key)
        self.self = SelfAttention(config, key=attend)
        self.output = Output(config.hidden_size, config, key=output)


class Intermediate(nnx.Module):
    """The wide part of the feed-forward block."""

    def __init__(self, config: BertConfig, *, key: jax.Array):
        width, hidden = config.hidden_size, config.intermediate_size
        self.dense = Linear(width, hidden, bias=True, key=key, part="up")
        self.hidden_act = config.hidden_act

    def __call__(self, x: Float[Array, "R T D"]) -> Float[Array, "R T hidden"]:
        return ACTIVATIONS[self.hidden_act](self.dense(x))


class Layer(nnx.Module):
    """Residual layer with its norms after the sums."""

    def __init__(self, config: BertConfig, *, key: jax.Array):
        attend, intermediate, output = jax.random.split(key, 3)
        self.attention = Attention(config, key=attend)
        self.intermediate = Intermediate(config, key=intermediate)
        self.output = Output(config.intermediate_size, config, key=output)

    def __call__(
        self,
        x: Float[Array, "R T D"],
        length: Int[Array, " R"],
        implementation: attention.Implementation,
    ) -> Float[Array, "R T D"]:
        with jax.named_scope("attention"):
            x = self.attention.output(self.attention.self(x, length, implementation), x)
        with jax.named_scope("mlp"):
            return self.output(self.intermediate(x), x)


class Encoder(nnx.Module):
    """The stacked layers."""

    def __init__(self, config: BertConfig, *, key: jax.Array):
        self.layer = scan.stack(lambda k: Layer(config, key=k), config.num_layers, key)


class Bert(EmbeddingModel):
    """Texts to vectors; no pooler layer, no heads."""

    def __init__(self, config: BertConfig, *, key: jax.Array):
        embeddings, encoder = jax.random.split(key)
        self.embeddings = Embeddings(config, key=embeddings)
        self.encoder = Encoder(config, key=encoder)
        self.pooling = config.pooling

    def __call__(self, inputs: Inputs, execution: Execution) -> Float[Array, "R D"]:
        """The mean over each row's tokens, or its first token, scaled to length one."""
        hidden = self.hidden_states(inputs, execution)
        if self.pooling == "cls":
            return unit_norm(hidden[:, 0])
        return unit_norm(token_mean(hidden, None, inputs.length))

    @jax.named_scope("encoder")
    def hidden_states(self, inputs: Inputs, execution: Execution) -> Float[Array, "R T D"]:
        """Hidden states of the last layer; padded positions hold values of no meaning."""
        x = self.embeddings(inputs.tokens, inputs.positions[..., 0], execution.dtype)
        hidden = scan.run(
            self.encoder.layer,
            lambda layer, x: layer(x, inputs.length, execution.attention),
            sharding.shard_rows(x),
            remat=execution.remat,
        )
        return sharding.shard_rows(hidden)
