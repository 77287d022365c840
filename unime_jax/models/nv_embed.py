"""NV-Embed (Lee et al. 2024): Mistral that sees both ways, latent attention, mean over tokens."""

import dataclasses

import jax
from jaxtyping import Array, Float

from unime_jax import sharding
from unime_jax.batch import Inputs
from unime_jax.models.decoder import Decoder, DecoderConfig
from unime_jax.models.latent_attention import LatentAttention, LatentAttentionConfig
from unime_jax.models.pooling import token_mean, unit_norm
from unime_jax.models.vlm import EmbeddingModel, Execution


@dataclasses.dataclass(frozen=True)
class NvEmbedConfig:
    text: DecoderConfig  # not causal
    latent_attention: LatentAttentionConfig


class NvEmbed(EmbeddingModel):
    """Texts to vectors; `Inputs.pool_start` leaves instructions out of the mean."""

    def __init__(self, config: NvEmbedConfig, *, key: jax.Array):
        text, latent = jax.random.split(key)
        self.embedding_model = Decoder(config.text, key=text)
        self.latent_attention_model = LatentAttention(config.latent_attention, key=latent)

    def __call__(self, inputs: Inputs, execution: Execution) -> Float[Array, "R D"]:
        """The mean over the pooled tokens, scaled to length one."""
        hidden = self.hidden_states(inputs, execution)
        hidden = sharding.shard_rows(self.latent_attention_model(hidden))
        return unit_norm(token_mean(hidden, inputs.pool_start, inputs.length))

    def hidden_states(self, inputs: Inputs, execution: Execution) -> Float[Array, "R T D"]:
        """The decoder's states after its final norm; padded positions hold values of no meaning."""
        x = self.embedding_model.embed_tokens(inputs.tokens, execution.dtype)
        hidden = self.embedding_model(
            sharding.shard_rows(x),
            inputs.positions,
            remat=execution.remat,
            implementation=execution.attention,
            length=inputs.length,
        )
        return sharding.shard_rows(hidden)
